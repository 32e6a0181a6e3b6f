"""Decodes images of unknown origin safely, in the frame that their annotations use.

Pillow decodes, behind a check of the header: it neither crashes, nor lies about a truncated file,
nor swallows a bomb, as other decoders do. A file that is not there or is no image is BadImage; a
machine that fails (EIO, ESTALE ...) is RunError. Knows nothing of boxes.
"""

import contextlib
import errno
import logging
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from malcli.data.images.jpeg import is_cut, may_be_cut
from malcli.errors import BadImage, MalcliError, RunError

# Image formats only: Pillow would hand an EPS to Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 179_000_000
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
STATED, UPRIGHT, STORED = "stated", "upright", "stored"  # frames: whichever has the stated size ...
# What a failed call says of the file alone; any other error is the machine's.
OF_THE_FILE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM,
    errno.EINVAL, errno.EISDIR,
)  # fmt: skip
UNREAD = (  # how files begin that people have and Pillow cannot read
    (re.compile(rb"(?s).{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)"), "HEIC"),
    (re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array"),
)
ROWS_AT_ONCE = 1 << 22  # pixels that are converted together: a whole copy would be gigabytes
WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH = 256, 257, 322, 323  # tags of TIFF
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong becomes BadImage
_LOCK = threading.Lock()
_PILLOW = r"PIL\."
_SILENCE = ("ignore", None, UserWarning, re.compile(_PILLOW), 0)  # as Python keeps the filter


def read_size(path: Path, frame: str = STORED) -> tuple[int, int]:
    """Return (height, width) in pixels as an image's header says.

    Args:
        path: The file.
        frame: `stored`: before any rotation; `upright`: as EXIF's orientation shows it.

    Raises:
        BadImage: Missing or unreadable.
        RunError: The machine failed.
    """
    with _opened(path) as image:
        hw = _stored_hw(image)
        return hw[::-1] if frame == UPRIGHT and orientation(image) in TURNED else hw


def check_image(
    path: Path, hw: tuple[int, int], max_pixels: int = MAX_PIXELS, frame: str = STATED
) -> str | None:
    """Check an image's header: readable, small enough, of the stated size.

    Returns:
        What its size does not settle, one line, as `unsettled` says; None: nothing.

    Raises:
        BadImage: It is not.
        RunError: The machine failed.
    """
    with _opened(path) as image:
        _is_shown(path, image, hw, max_pixels, frame)
        return unsettled(path, image, frame)


def decode_image(
    path: Path,
    hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    frame: str = STATED,
    told: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB, of the stated size.

    Alpha is dropped, 16-bit grey keeps its upper 8 bits, animations give their first frame.

    Args:
        path: The file.
        hw: (height, width) that the annotation file states, pixels.
        max_pixels: Larger images are refused before they are decoded.
        frame: `stated`: as it is stored if that has the stated size, else as EXIF's orientation
            shows it; `upright`: as EXIF shows it; `stored`: never turned.
        told: Gets what the size does not settle, one line.

    Raises:
        BadImage: Missing, truncated, unreadable, too large, or of another size than stated.
        RunError: The machine failed.
    """
    with _opened(path) as image:
        shown = _is_shown(path, image, hw, max_pixels, frame)
        turn = orientation(image)
        if told is not None and (line := unsettled(path, image, frame)):
            told.append(line)
        image.load()
        if may_be_cut(image) and is_cut(path.read_bytes(), image):
            raise BadImage("bad-image", f"{path}: cut: it ends before its picture does")
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow has turned it while loading
            turn = 1 if shown else BACK.get(turn, turn)
        elif not shown:
            turn = 1
        pixels = to_rgb(path, image)
    pixels = turned(pixels, turn)
    if pixels.shape != (*hw, 3):
        raise BadImage("bad-image", f"{path}: its size changed while it was decoded")
    return pixels


BACK = {6: 8, 8: 6}  # the other orientations undo themselves


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return stored pixels (H, W, ...) as an EXIF orientation shows them.

    Source: EXIF 2.3, tag 274: which sides the 0th row and column are.
    """
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)  # 5; the others mirror it
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def orientation(image: Image.Image) -> int:
    """Return the Orientation of an opened image's EXIF, 1 to 8; 1 where it says nothing usable.

    XMP and the file's other notes do not count, and nothing is decoded to find it.
    """
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            value = image.tag_v2.get(ExifTags.Base.Orientation)
        else:
            data = image.info.get("exif")
            if not isinstance(data, bytes):
                return 1
            exif = Image.Exif()
            exif.load(data)
            value = exif.get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata is no reason to lose the photograph
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1


def unsettled(path: Path, image: Image.Image, frame: str) -> str | None:
    """Return a line on a photograph that EXIF turns but whose size does not tell the frame."""
    turn, (height, width) = orientation(image), _stored_hw(image)
    if frame != STATED or turn == 1 or (turn in TURNED and height != width):
        return None
    return f"{path}: EXIF orientation {turn}, which its size does not settle; taken as stored"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises in the block becomes BadImage. Threads may do so."""
    try:
        with _regular(path) as file, Image.open(file, formats=_formats()) as image:
            yield image
    except MalcliError:
        raise
    except MemoryError:
        raise BadImage("memory", f"{path}: there is not enough memory to decode it") from None
    except UnidentifiedImageError:
        raise BadImage("bad-image", f"{path}: {_kind(path)}") from None
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and others; its own have no errno
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, *OF_THE_FILE):
            raise machine_failed(path, error) from None
        raise BadImage("bad-image", f"{path}: cannot be decoded ({_line(error)})") from None


def machine_failed(path: Path, error: OSError) -> RunError:
    """Return the error of a file that the machine could not read."""
    return RunError(
        f"{path}: cannot be read: {error.strerror}; a failing disk or share is no missing image; "
        "what is finished is kept; start the same command again once it can be read"
    )


def _kind(path: Path) -> str:
    """Return what a file is that Pillow does not know."""
    with _regular(path) as file:
        head = file.read(16)
    for begin, name in UNREAD:
        if begin.match(head):
            return f"{name} is not read; convert it to JPEG or PNG first"
    return "cannot be decoded (no image of a kind that is read)"


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
        if error.errno not in OF_THE_FILE:
            raise machine_failed(path, error) from None
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


def _is_shown(
    path: Path, image: Image.Image, hw: tuple[int, int], max_pixels: int, frame: str
) -> bool:
    """Return whether the frame is that of the picture as EXIF shows it.

    Raises:
        BadImage: Too many pixels, or another size.
    """
    stored = _stored_hw(image)
    for height, width in (stored, _tile(image)):
        if height * width > max_pixels:
            raise BadImage(
                "bad-image",
                f"{path}: {height} x {width} pixels are more than --max-pixels {max_pixels}",
            )
    shown = stored[::-1] if frame != STORED and orientation(image) in TURNED else stored
    if frame == STATED and stored == tuple(hw):
        return False
    if shown == tuple(hw):
        return frame != STORED
    size = shown if frame == UPRIGHT else stored
    raise BadImage(
        "bad-image",
        f"{path}: is {size[0]} x {size[1]} (height x width), the annotations state "
        f"{hw[0]} x {hw[1]}",
    )


def _stored_hw(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) before any rotation; of a TIFF, Pillow says those after it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and orientation(image) in TURNED:
        width, height = image.tag_v2[WIDTH], image.tag_v2[LENGTH]
        return int(height), int(width)
    return image.height, image.width


def _tile(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of a TIFF's tiles, which are decoded whole; (0, 0) if it has none."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    height, width = (image.tag_v2.get(tag, 0) for tag in (TILE_LENGTH, TILE_WIDTH))
    return int(height), int(width)


def to_rgb(path: Path | str, image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a loaded image as a writable (H, W, 3) array.

    Alpha is dropped, and 16-bit grey keeps its upper 8 bits.

    Args:
        path: For the error, how the image is called.
        image: In any mode.

    Raises:
        BadImage: Its values have no known range.
    """
    if image.mode in DEEP_GREY:
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("bad-image", f"{path}: its grey values have more than 16 bits")
        # Pillow's own conversion would clip at 255, which leaves a white image.
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadImage("bad-image", f"{path}: its pixels are floats of unknown range")
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    step = max(1, ROWS_AT_ONCE // image.width)
    for top in range(0, image.height, step):
        strip = image
        if step < image.height:
            strip = image.crop((0, top, image.width, min(top + step, image.height)))
        pixels[top : top + step] = np.asarray(
            strip if strip.mode == "RGB" else strip.convert("RGB")
        )
    return pixels


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
