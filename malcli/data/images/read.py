"""Reads the images of a folder: finds each, decodes it, and stops where the machine fails.

The one way to an image's pixels for all commands. Knows nothing of boxes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from malcli.data.images.decode import MAX_PIXELS, check_image, decode_image
from malcli.data.images.find import ImageFolder, image_path
from malcli.errors import BadImage


def read_image(
    folder: ImageFolder,
    name: str,
    hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    told: list[str] | None = None,
) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB in the frame that the annotations use.

    Args:
        folder: Where it is.
        name: As the annotation file says it.
        hw: As in `decode_image`.
        max_pixels: As in `decode_image`.
        told: As in `decode_image`.

    Raises:
        BadImage: This image cannot be used.
        RunError: The machine failed, or too many images cannot be read.
    """
    with _counted(folder, name) as path:
        return decode_image(path, hw, max_pixels, folder.frame, told)


def check_header(
    folder: ImageFolder, name: str, hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> str | None:
    """Check an image's header as `check_image` does, with the errors of `read_image`."""
    with _counted(folder, name) as path:
        return check_image(path, hw, max_pixels, folder.frame)


@contextmanager
def _counted(folder: ImageFolder, name: str) -> Iterator[Path]:
    """Count what becomes of an image; a name that leaves the folder is no read."""
    path = image_path(folder.root, name, folder.shared)
    try:
        yield path
    except BadImage as error:
        folder.health.bad(path, error)
        raise
    folder.health.good(path)
