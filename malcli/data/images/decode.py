"""Finds the image folder and decodes images of unknown origin safely.

Pillow decodes, behind a check of the header: it neither crashes, nor lies about a truncated file,
nor swallows a bomb, as other decoders do. Nothing outside the image folder is ever opened. Knows
nothing of boxes.
"""

import contextlib
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from malcli.data.images.jpeg import is_cut, may_be_cut
from malcli.errors import MalcliError, MissingImageError
from malcli.records import BoxTable

# Image formats only: Pillow would hand an EPS to Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 179_000_000
FIRST_NAMES = 32  # looked for in every place
MORE_NAMES = 100_000  # looked for where none of the first is anywhere
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong becomes BadImage
_LOCK = threading.Lock()
_PILLOW = r"PIL\."
_SILENCE = ("ignore", None, UserWarning, re.compile(_PILLOW), 0)  # as Python keeps the filter
_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/")  # a drive letter or a URL
# Names that are unique in their data set (COCO and LVIS, Objects365, Open Images), which people
# keep in other folders than the annotations say; other names are taken as they are.
_UNIQUE = re.compile(
    r"(?:.*/)?(?:(?:patch\d+|(?:train|val|test|unlabeled)20\d\d)/[^/]+"
    r"|(?:COCO_\w+_)?\d{12}\.\w+|objects365_v\d_\d+\.\w+|obj365_\w+\.\w+|[0-9a-f]{16}\.\w+)"
)
_PATCHES = ("", "v1", "v2", "images/v1", "images/v2")  # folders that hold patch folders
_HEX = re.compile(r"(?:\w+_)?[0-9a-f]")
_SPLITS = ("train", "validation", "val", "test")


class BadImage(MalcliError):  # noqa: N818
    """An image cannot be used; its boxes are skipped.

    Args:
        status: `no-image` or `bad-image`.
        reason: One line, with the file.
    """

    def __init__(self, status: str, reason: str) -> None:
        """Keep both as `args`, so that it crosses processes."""
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


@dataclass(frozen=True)
class ImageFolder:
    """Where the images lie.

    Attributes:
        root: The folder that `file_name` is relative to.
        found: How many of the first names are there.
        tried: How many were looked for.
    """

    root: Path
    found: int
    tried: int


def find_images(annotation_path: Path, table: BoxTable, images: Path | None) -> ImageFolder:
    """Return the folder that has most of the table's first images.

    Args:
        annotation_path: The places are relative to its folder.
        table: For the file names.
        images: The only place, if given.

    Raises:
        MissingImageError: None of the images is in any of the places.
    """
    if images is None and table.path.is_dir():
        annotation_path = table.path
    return find_folder(annotation_path, table.images["file_name"], images)


def find_folder(
    annotation_path: Path, names: pa.ChunkedArray, images: Path | None = None
) -> ImageFolder:
    """Return the folder that has most of the first of the named images, as `find_images` does."""
    places = [images] if images else _places(annotation_path)
    first = [name for name in names.slice(0, FIRST_NAMES).to_pylist() if name]
    counts = [sum(_is_there(place, name) for name in first) for place in places]
    best = counts.index(max(counts))
    if counts[best] or not len(names):
        return ImageFolder(places[best], counts[best], len(first))
    for name in names.slice(FIRST_NAMES, MORE_NAMES).to_pylist():
        for place in places:
            if name and _is_there(place, name):
                return ImageFolder(place, 0, len(first))
    tried = ", ".join(map(str, places))
    example = f", such as {first[0]!a}," if first else ""
    raise MissingImageError(
        f"{annotation_path}: none of its images{example} is found in {tried}; name their folder "
        "with --images"
    )


def _places(annotation_path: Path) -> list[Path]:
    """Return where images lie beside an annotation file, or in a data set's folder."""
    if annotation_path.is_dir():
        return [annotation_path.absolute()]
    beside = annotation_path.absolute().parent
    stem = re.sub(r"^(instances|boxes)_", "", annotation_path.stem)
    places = [beside, beside / "images", beside.parent / "images"]
    if stem not in ("", "images"):
        places.append(beside.parent / stem)
    places += [beside.parent, beside.parent / "coco"]  # LVIS: names with train2017/, val2017/
    for split in (split for split in _SPLITS if split in stem.lower()):
        places += [root / split for root in (*places[:3], beside.parent)]
        break
    return places


def _is_there(root: Path, name: str) -> bool:
    try:
        return resolve(root, name).is_file()
    except (BadImage, OSError):
        return False


def resolve(folder: Path, file_name: str) -> Path:
    """Return the path of an image inside the folder.

    A name that is unique in its data set (COCO's, Objects365's, Open Images') is also looked for by
    its last two parts, by its last one, and by that in patch and hex-digit folders.

    Args:
        folder: The image folder.
        file_name: As the annotation file says it: relative, perhaps with sub-folders.

    Returns:
        The first of these that is there, else `folder / file_name`.

    Raises:
        BadImage: The name is empty, absolute, a URL, or has `..`, a drive letter or a NUL.
    """
    plain = file_name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or "\0" in plain:
        raise BadImage("no-image", f"{file_name!a} is no file name")
    if plain.startswith("/") or ".." in parts or _ELSEWHERE.match(plain):
        raise BadImage("no-image", f"{file_name!a} leaves the image folder; it is not opened")
    wanted = folder / plain
    if _UNIQUE.fullmatch(plain) and not os.path.isfile(wanted):
        return next(filter(os.path.isfile, _other_places(folder, parts)), wanted)
    return wanted


def _other_places(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield where else in the folder an image may lie that is known by its last part."""
    yield folder.joinpath(*parts[-2:])
    yield folder / parts[-1]
    digit = parts[-1][0]
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return
    for place in _sub_folders(folder, changed):
        if (
            place.name.startswith("patch")
            or place.name == digit
            or place.name.endswith(f"_{digit}")
        ):
            yield place / parts[-1]


@lru_cache(maxsize=64)
def _sub_folders(folder: Path, changed: int) -> tuple[Path, ...]:
    """Return the patch folders of Objects365 and the hex-digit folders of Open Images.

    Args:
        folder: The image folder.
        changed: When it changed; the answer is kept for as long as it did not.
    """
    patches = [path for base in _PATCHES for path in sorted((folder / base).glob("patch*"))]
    digits = [path for path in sorted(folder.iterdir()) if _HEX.fullmatch(path.name)]
    return tuple(path for path in patches + digits if path.is_dir())


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels as an image's header says, before any rotation.

    Raises:
        BadImage: Missing or unreadable.
    """
    with _opened(path) as image:
        return image.height, image.width


def check_image(path: Path, hw: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Check an image's header: readable, small enough, of the stated size.

    Raises:
        BadImage: It is not.
    """
    with _opened(path) as image:
        _is_turned(path, image, hw, max_pixels)


def decode_image(
    path: Path, hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB, of the stated size.

    A file of the stated size is taken as it is stored; one of the transposed size is rotated if its
    EXIF says so. Alpha is dropped, 16-bit grey keeps its upper 8 bits, animations give their first
    frame.

    Args:
        path: The file.
        hw: (height, width) that the annotation file states, pixels.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        BadImage: Missing, truncated, unreadable, too large, or of another size than stated.
    """
    with _opened(path) as image:
        turned = _is_turned(path, image, hw, max_pixels)
        image.load()
        if may_be_cut(image) and is_cut(path.read_bytes(), image):
            raise BadImage("bad-image", f"{path}: cut: it ends before its picture does")
        upright = ImageOps.exif_transpose(image) if turned else image
        pixels = _to_rgb(path, upright)
    if pixels.shape != (*hw, 3):
        raise BadImage("bad-image", f"{path}: its size changed while it was decoded")
    return pixels


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises in the block becomes BadImage. Threads may do so."""
    try:
        with _regular(path) as file, Image.open(file, formats=_formats()) as image:
            yield image
    except BadImage:
        raise
    # Pillow raises OSError, SyntaxError, ValueError, struct.error, MemoryError and others.
    except Exception as error:
        raise BadImage("bad-image", f"{path}: cannot be decoded ({_line(error)})") from None


@contextlib.contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file: a pipe would block for ever."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise BadImage("no-image", f"{path}: is not a file")
        file = path.open("rb")
    except FileNotFoundError:
        raise BadImage("no-image", f"{path}: no such file") from None
    except OSError as error:
        raise BadImage("no-image", f"{path}: cannot be opened ({error.strerror})") from None
    with file:
        yield file


def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow can open; silence it, and switch its pixel limit off.

    Limit and warnings belong to the process: setting and resetting them at each call would race
    with other threads, one of which would refuse a good image. Ours is checked before decoding.
    """
    with _LOCK:
        Image.init()
        Image.MAX_IMAGE_PIXELS = None
        if _SILENCE not in warnings.filters:  # of damaged metadata, which is not used
            warnings.filterwarnings("ignore", category=UserWarning, module=_PILLOW)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_turned(path: Path, image: Image.Image, hw: tuple[int, int], max_pixels: int) -> bool:
    """Return whether EXIF's rotation is needed to reach the stated size.

    Raises:
        BadImage: Too many pixels, or another size.
    """
    stored = (image.height, image.width)
    for height, width in (stored, _tile(image)):
        if height * width > max_pixels:
            raise BadImage(
                "bad-image",
                f"{path}: {height} x {width} pixels are more than --max-pixels {max_pixels}",
            )
    if stored == tuple(hw):
        return False
    if stored[::-1] == tuple(hw) and image.getexif().get(ExifTags.Base.Orientation) in TURNED:
        return True
    raise BadImage(
        "bad-image",
        f"{path}: is {stored[0]} x {stored[1]} (height x width), the annotations state "
        f"{hw[0]} x {hw[1]}",
    )


def _tile(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of a TIFF's tiles, which are decoded whole; (0, 0) if it has none."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    height, width = (image.tag_v2.get(tag, 0) for tag in (TILE_LENGTH, TILE_WIDTH))
    return int(height), int(width)


def _to_rgb(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a loaded image as a writable (H, W, 3) array."""
    if image.mode in DEEP_GREY:
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("bad-image", f"{path}: its grey values have more than 16 bits")
        # Pillow's own conversion would clip at 255, which leaves a white image.
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadImage("bad-image", f"{path}: its pixels are floats of unknown range")
    # Converting RGB to RGB copies the image once more.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
