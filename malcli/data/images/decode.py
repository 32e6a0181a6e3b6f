"""Finds the image folder and decodes images of unknown origin safely.

Pillow decodes, behind a check of the header: it neither crashes, nor lies about a truncated file,
nor swallows a bomb, as other decoders do. Nothing outside the image folder is ever opened. Knows
nothing of boxes.
"""

import contextlib
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
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from malcli.data.images.jpeg import is_cut, may_be_cut
from malcli.errors import BadImage

# Image formats only: Pillow would hand an EPS to Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 179_000_000
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong becomes BadImage
_LOCK = threading.Lock()
_PILLOW = r"PIL\."
_SILENCE = ("ignore", None, UserWarning, re.compile(_PILLOW), 0)  # as Python keeps the filter


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
        pixels = to_rgb(path, upright)
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
    # Converting RGB to RGB copies the image once more.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
