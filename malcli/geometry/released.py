"""The released code's geometry, in one place: RoIs, box pixels and the way back to the image.

`boxes` and `crops` hold malcli's own rules; these here give the labels of released checkpoints
(mal.md 1 and 8). Boxes are absolute pixels; RoIs are integer rectangles that may leave the image.

Shape suffixes: S crop pixels.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def released_roi(xyxy: FloatArray, margins: FloatArray) -> IntArray:
    """Return the RoIs of boxes grown by a margin on each side.

    The centre and the half sides are float32 and the products float64, as in the released code:
    a pixel more or less hangs on it where a side falls on a whole pixel.

    Args:
        xyxy: (..., 4) corners, pixels, below 1e9 in size.
        margins: (..., 4) left, top, right, bottom, in halves of the box's side.

    Returns:
        (..., 4) int64 corners, with one pixel more at the right and the bottom, not clipped.

    Source: mal.md 1.1, 1.2.
    """
    corner = xyxy.astype(np.float32)
    centre = (corner[..., 2:] + corner[..., :2]) / np.float32(2)
    grow = 1.0 + margins
    begin = centre - (centre - corner[..., :2]) * grow[..., :2]
    end = centre + (corner[..., 2:] - centre) * grow[..., 2:] + 1.0
    return np.concatenate([np.floor(begin), np.ceil(end)], axis=-1).astype(np.int64)


def nearby_roi(xyxy: FloatArray, margin: float, image_hw: tuple[int, int]) -> IntArray:
    """Return the RoIs of boxes to label, (..., 4), at most one image beyond the image's edges.

    The released code knows no RoIs that go further; without the limit, a box of a million pixels
    would take as much memory.

    Args:
        xyxy: (..., 4) corners, pixels, each box with a part inside the image.
        margin: Context, in halves of the box, both sides together.
        image_hw: (height, width) of the image.

    Source: mal.md 1.3, 1.5.
    """
    height, width = image_hw
    low, high = -np.array([width, height] * 2), 2 * np.array([width, height] * 2)
    near = np.clip(xyxy, low, high)
    return np.clip(released_roi(near, np.full_like(near, margin / 2)), low, high)


def released_area(xyxy: FloatArray) -> NDArray[np.float32]:
    """Return the areas (...) of boxes (..., 4) in float32: which of them are a whole 1024 or 9216.

    Source: mal.md 3.2.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        corner = xyxy.astype(np.float32)
        side = corner[..., 2:] - corner[..., :2]
        area: NDArray[np.float32] = side[..., 0] * side[..., 1]
    return area


def box_pixels(xyxy: FloatArray, image_hw: tuple[int, int]) -> IntArray:
    """Return the whole pixels that boxes (..., 4) take of the image, as rectangles (..., 4).

    Both corners are cut to whole numbers and belong to the box: a box of 3 x 3 pixels takes 4 x 4.
    A corner outside the image is moved to its edge; the released code loses boxes that begin left
    of or above the image, or takes them from its far side.

    Source: mal.md 1.7.
    """
    height, width = image_hw
    last = np.array([width, height] * 2) - 1
    whole = np.clip(np.trunc(xyxy), 0, last).astype(np.int64)
    whole[..., 2:] += 1
    return whole


def box_lines(pixels: IntArray, roi: IntArray, size: int) -> NDArray[np.uint8]:
    """Return which rows and which columns of a crop its box takes, (2, size) of 0 and 1.

    The released code crops a mask of the box, with zeros outside the image, and resizes it with
    Pillow, which takes one axis at a time and rounds after each. A rectangle stays one, so the
    mask is the outer product of the two lines, without an H x W array.

    Args:
        pixels: (4,) rectangle of `box_pixels`.
        roi: (4,) the crop's RoI.
        size: Side of the crop, pixels.

    Source: mal.md 1.7.
    """
    lines = np.empty((2, size), dtype=np.uint8)
    for line, axis in zip(lines, (1, 0), strict=True):
        place = np.arange(roi[axis], roi[axis + 2])
        taken = (place >= pixels[axis]) & (place < pixels[axis + 2])
        cut = Image.fromarray(taken[None, :].astype(np.uint8))
        line[:] = np.asarray(cut.resize((size, 1), Image.Resampling.BICUBIC))[0]
    return lines


def image_part(roi: IntArray, image_hw: tuple[int, int]) -> IntArray:
    """Return the parts of RoIs (..., 4) inside the image: where the released code puts masks.

    It is wider than the box, so a mask may leave its box by the pixel that resizing blurs.

    Source: mal.md 8.4, 8.9.
    """
    height, width = image_hw
    return np.clip(roi, 0, np.array([width, height] * 2))


def paste_bilinear(
    prob_SS: NDArray[np.float32], roi: IntArray, window: IntArray
) -> NDArray[np.float32]:
    """Return a crop's values at the image pixels of a window, never averaged when shrinking.

    Args:
        prob_SS: (S, S) values on the crop's grid.
        roi: (4,) the crop's RoI, x0 y0 x1 y1, pixels.
        window: (4,) integer rectangle inside the RoI, pixels.

    Returns:
        (h, w) float32 of the window: what torch's bilinear interpolation to the whole RoI gives
        there, but for rounding.

    Source: mal.md 8.3, 8.4.
    """
    x0, y0, x1, y1 = (int(value) for value in roi)
    left, top, right, bottom = (int(value) for value in window)
    rows_hS = _along_rows(prob_SS, y1 - y0, top - y0, bottom - y0)
    rows_wh = _along_rows(np.ascontiguousarray(rows_hS.T), x1 - x0, left - x0, right - x0)
    return rows_wh.T


def _along_rows(
    values: NDArray[np.float32], length: int, begin: int, end: int
) -> NDArray[np.float32]:
    """Return rows [begin, end) of values (N, M) resized to `length` rows, bilinearly.

    Positions are float32 as torch has them: on steep maps float64's differ by 3e-5 in value.
    """
    count, half = len(values), np.float32(0.5)
    scale = np.float32(count) / np.float32(length)
    place = np.maximum((np.arange(begin, end, dtype=np.float32) + half) * scale - half, 0)
    first = np.minimum(place.astype(np.int64), count - 1)
    resized: NDArray[np.float32] = values[first]
    step = values[np.minimum(first + 1, count - 1)]
    step -= resized
    step *= (place - first.astype(np.float32))[:, None]
    resized += step
    return resized
