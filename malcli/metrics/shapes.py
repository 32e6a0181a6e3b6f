"""Masks as the pixels of their windows: drawn or decoded, their overlaps and boundaries.

No image is built: a mask is background outside its window. Knows nothing of files or instances.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from malcli.geometry.rle import decode_windows, hw_of, rle_box
from malcli.records import Rle

BOUNDARY_RATIO = 0.02  # of the image's diagonal, as in the Boundary IoU paper for COCO

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """A mask in its window.

    Attributes:
        x: First column of the window in the image, pixels.
        y: First row.
        mask: (h, w) the window's pixels.
        image_hw: (height, width) of the image.
    """

    x: int
    y: int
    mask: Mask
    image_hw: tuple[int, int]


@functools.lru_cache(maxsize=4096)
def boundary_reach(image_hw: tuple[int, int]) -> int:
    """Return how far a boundary goes into a mask: 0.02 of the diagonal, at least one pixel."""
    return max(1, round(BOUNDARY_RATIO * math.hypot(*image_hw)))


def is_all_boundary(hw: tuple[int, int], image_hw: tuple[int, int]) -> bool:
    """Return whether a window of h x w pixels is too thin for a pixel inside the boundary."""
    return min(hw) <= 2 * boundary_reach(image_hw)


def decode_shapes(rles: Sequence[Rle]) -> list[Shape]:
    """Return the shapes of checked masks."""
    windows = [(x, y, x + w, y + h) for x, y, w, h in map(rle_box, rles)]
    masks = decode_windows(rles, windows)
    return [
        Shape(window[0], window[1], np.ascontiguousarray(mask).view(np.bool_), hw_of(rle))
        for rle, window, mask in zip(rles, windows, masks, strict=True)
    ]


def box_shapes(xywh: FloatArray, sizes_hw: Sequence[tuple[int, int]]) -> list[Shape]:
    """Return the baseline that fills each box (N, 4): every pixel whose centre lies inside."""
    return [_draw(box, hw, ellipse=False) for box, hw in zip(xywh, sizes_hw, strict=True)]


def ellipse_shapes(xywh: FloatArray, sizes_hw: Sequence[tuple[int, int]]) -> list[Shape]:
    """Return the baseline of the ellipse inscribed in each box (N, 4), by pixel centres."""
    return [_draw(box, hw, ellipse=True) for box, hw in zip(xywh, sizes_hw, strict=True)]


def _draw(xywh: FloatArray, image_hw: tuple[int, int], *, ellipse: bool) -> Shape:
    x, y, w, h = xywh.tolist()
    x0, x1 = _centres(x, x + w, image_hw[1])
    y0, y1 = _centres(y, y + h, image_hw[0])
    mask = np.ones((max(0, y1 - y0), max(0, x1 - x0)), dtype=bool)
    if ellipse and mask.size:
        u = (np.arange(x0, x1) + (0.5 - x - w / 2)) / (w / 2)
        v = (np.arange(y0, y1) + (0.5 - y - h / 2)) / (h / 2)
        mask = u[None, :] ** 2 + v[:, None] ** 2 <= 1
    return Shape(x0, y0, mask, image_hw)


def _centres(begin: float, end: float, side: int) -> tuple[int, int]:
    """Return the first pixel of an image's side whose centre lies inside, and the one after."""
    # ceil(edge - 0.5) is the first pixel whose centre is at or beyond the edge.
    first, last = (math.ceil(min(max(edge, 0.0), side) - 0.5) for edge in (begin, end))
    return first, last


def boundary(shape: Shape) -> Shape:
    """Return the pixels near the outside: within `boundary_reach`, in chessboard distance.

    What lies beyond the image's border is outside.

    Source: Cheng et al., Boundary IoU, CVPR 2021, Sec. 4.
    """
    mask = shape.mask
    if is_all_boundary((mask.shape[0], mask.shape[1]), shape.image_hw):
        return shape
    reach = boundary_reach(shape.image_hw)
    if mask.all():
        frame = np.ones_like(mask)
        frame[reach:-reach, reach:-reach] = False
        return Shape(shape.x, shape.y, frame, shape.image_hw)
    width = 2 * reach + 1
    kernel = np.ones((width, width), dtype=np.uint8)
    pixels = mask.view(np.uint8)
    inner = cv2.erode(pixels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge = mask & ~np.asarray(inner, dtype=np.uint8).view(np.bool_)
    return Shape(shape.x, shape.y, edge, shape.image_hw)


def overlaps(a: Sequence[Shape], b: Sequence[Shape]) -> FloatArray:
    """Return the IoU of each a with its b, (N,); 0 where both are empty."""
    return np.array([_iou(one, other) for one, other in zip(a, b, strict=True)], dtype=np.float64)


def _iou(a: Shape, b: Shape) -> float:
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    cut_a = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x]
    cut_b = b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]
    both = int(np.count_nonzero(cut_a & cut_b))
    either = int(np.count_nonzero(a.mask)) + int(np.count_nonzero(b.mask)) - both
    return both / either if either else 0.0
