"""Crops of RoIs and the way back: `crop_roi` and `paste_mask` share one pixel rule.

Pixel rule: crop position u in [0, S) along an axis lies at image position
roi_begin + u * (roi_end - roi_begin) / S, so pixel centres are at u + 0.5. Resizing follows it
(align_corners=False), so a crop of the RoI's own size is a copy and pasting it is the inverse.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGE = 1 << 26  # pixels of a RoI; copies of a larger one would take gigabytes
SAMPLES = 4  # along each axis, for each pixel of a crop: 16 are averaged


def crop_roi(
    image: NDArray[np.uint8],
    roi: NDArray[np.int64],
    size: int,
    border: str = "reflect",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the RoI's pixels resized to a square, aspect ratio not kept.

    Args:
        image: (H, W, 3) uint8 RGB.
        roi: (4,) x0 y0 x1 y1, pixels; may leave the image.
        size: Side of the crop, pixels.
        border: What lies outside the image: `reflect`, or `wrap` as the released code does.
        out: (size, size, 3) uint8 where the crop goes; None: it may share the image's memory.

    Returns:
        (size, size, 3) uint8; cubic when growing, antialiased when shrinking (`resize_crop`);
        `wrap` resizes with Pillow's antialiased bicubic (mal.md 1.6).

    Source: Sec. 3.1; mal.md 1.5, 1.6.
    """
    thin = border == "reflect" and _area(roi) > LARGE
    patch = _thinned(image, roi, size) if thin else cut_roi(image, roi, border)
    if border == "wrap":
        resized = Image.fromarray(patch).resize((size, size), Image.Resampling.BICUBIC)
        cropped = np.asarray(resized)
    else:
        cropped = resize_crop(patch, size, out)
    if out is not None and cropped is not out:
        out[:] = cropped
        return out
    return cropped


def cut_roi(
    image: NDArray[np.uint8], roi: NDArray[np.int64], border: str = "reflect"
) -> NDArray[np.uint8]:
    """Return the RoI's pixels at full resolution, (h, w, 3), borders filled."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (int(value) for value in roi)
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return image[y0:y1, x0:x1]
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    beyond = (top - y0, y1 - bottom, left - x0, x1 - right)
    # OpenCV mirrors within the part that it is given, so no fill may be as wide as the part.
    if border == "reflect" and max(beyond[:2]) < bottom - top and max(beyond[2:]) < right - left:
        part = image[top:bottom, left:right]
        filled: NDArray[np.uint8] = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REFLECT_101)
        return filled
    # Only the part that the fill needs is copied: the fill mirrors at most one RoI side inward.
    rows = _border_indices(y0, y1, height, border)
    columns = _border_indices(x0, x1, width, border)
    return image[rows[:, None], columns[None, :]]


def _area(roi: NDArray[np.int64]) -> int:
    return int(roi[2] - roi[0]) * int(roi[3] - roi[1])


def _thinned(image: NDArray[np.uint8], roi: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return every n-th row and column of a large RoI, at least `SAMPLES` for each of the crop."""
    lines = []
    for begin, end, length in ((roi[1], roi[3], image.shape[0]), (roi[0], roi[2], image.shape[1])):
        step = max(1, int(end - begin) // (SAMPLES * size))
        lines.append(_border_indices(int(begin), int(end), length, "reflect")[step // 2 :: step])
    return image[lines[0][:, None], lines[1][None, :]]


def _border_indices(begin: int, end: int, length: int, border: str) -> NDArray[np.int64]:
    """Return the image index for each position in [begin, end), filled beyond [0, length)."""
    index = np.arange(begin, end)
    if border == "wrap":
        return index % length
    if length == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * (length - 1))
    return np.where(folded < length, folded, 2 * (length - 1) - folded)


def resize_crop(
    pixels: NDArray[np.uint8], size: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return pixels resized to a square, each axis by what it needs.

    An axis grows by a cubic. It shrinks linearly to the next multiple of the size, then by the mean
    of whole blocks: much like the area mean, which costs OpenCV seven times as much.

    Args:
        pixels: (h, w) or (h, w, C) uint8.
        size: Side wanted.
        out: Where the values may go; they are there only if it is what is returned.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    shrunk = min(width, size), min(height, size)
    blocks = shrunk[0] * max(1, width // size), shrunk[1] * max(1, height // size)
    if blocks != (width, height):
        pixels = cv2.resize(pixels, blocks, interpolation=cv2.INTER_LINEAR)
    if blocks != shrunk:
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        pixels = cv2.resize(pixels, (size, size), dst=out, interpolation=cv2.INTER_CUBIC)
    return pixels


def resize(values: NDArray[Any], hw: tuple[int, int]) -> NDArray[Any]:
    """Return (h, w) values resized to hw: area mean along with shrinking, bilinear otherwise.

    Args:
        values: uint8 or float32.
        hw: (height, width) wanted.
    """
    height, width = values.shape[:2]
    if (height, width) == hw:
        return values
    # INTER_AREA grows by nearest neighbour, so each axis gets the method that it needs.
    if hw[0] < height or hw[1] < width:
        shrunk = (min(hw[1], width), min(hw[0], height))
        values = cv2.resize(values, shrunk, interpolation=cv2.INTER_AREA)
    if values.shape[:2] != hw:
        values = cv2.resize(values, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
    return values


def paste_mask(
    prob_SS: NDArray[np.float32], roi: NDArray[np.int64], window: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return a crop's values at the image pixels of a window: the inverse of `crop_roi`.

    Args:
        prob_SS: (S, S) values on the crop's grid.
        roi: (4,) the crop's RoI, x0 y0 x1 y1, pixels.
        window: (4,) integer rectangle inside the RoI, pixels.

    Returns:
        (h, w) float32 of the window; bilinear when growing, area mean when shrinking.

    Source: mal.md 8.3, 8.4, without the H x W array.
    """
    x0, y0, x1, y1 = (int(value) for value in roi)
    left, top, right, bottom = (int(value) for value in window)
    full: NDArray[np.float32] = resize(prob_SS, (y1 - y0, x1 - x0))
    return full[top - y0 : bottom - y0, left - x0 : right - x0]
