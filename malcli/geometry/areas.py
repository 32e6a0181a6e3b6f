"""Masks of crops at the image's pixels, by area: what `crops.paste_mask` does to a mask of 0 and 1.

A pixel's area mean is four sums from the crop's corner to the pixel's corners, which lie between
the crop's own: exact, and cheaper than adding up the crop's values for each pixel anew.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from malcli.geometry.crops import LARGE, paste_mask
from malcli.geometry.released import paste_bilinear

BAND = 1 << 22  # pixels of a large window that are pasted together


def paste_majority(
    mask_SS: NDArray[np.uint8], roi: NDArray[np.int64], window: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the pixels of a window more than half of whose area is in a crop's mask.

    Args:
        mask_SS: (S, S) of 0 and 1, on the crop's grid.
        roi: (4,) the crop's RoI, x0 y0 x1 y1, pixels.
        window: (4,) integer rectangle inside the RoI, pixels.

    Returns:
        (h, w) bool: `paste_mask(mask_SS, roi, window) > 0.5`, also along sides that grow, but for
        pixels that are half inside to float32's precision.
    """
    side = mask_SS.shape[0]
    x0, y0, x1, y1 = (int(value) for value in roi)
    left, top, right, bottom = (int(value) for value in window)
    if x1 - x0 > side or y1 - y0 > side:
        return paste_above(mask_SS.astype(np.float32), roi, window, 0.5)
    y = np.arange(top - y0, bottom - y0 + 1) * (side / (y1 - y0))
    x = np.arange(left - x0, right - x0 + 1) * (side / (x1 - x0))
    first_row, first_column = int(y[0]), int(x[0])
    needed = mask_SS[first_row : int(np.ceil(y[-1])), first_column : int(np.ceil(x[-1]))]
    sums = cv2.integral(needed)
    row, below = _between(y - first_row, sums.shape[0])
    column, beyond = _between(x - first_column, sums.shape[1])
    half = 0.5 * (side / (y1 - y0)) * (side / (x1 - x0))
    # Rows are taken faster than columns.
    strips_wh = cv2.transpose(_differences(sums, row, below))
    tiles_wh = _differences(strips_wh, column, beyond)
    inside: NDArray[np.bool_] = (tiles_wh > half).T
    return inside


def paste_above(
    prob_SS: NDArray[np.float32],
    roi: NDArray[np.int64],
    window: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.bool_]:
    """Return the pixels of a window, (h, w) bool, where `paste_mask` is above a threshold.

    A RoI too large to be held as floats is pasted in bands of rows, bilinearly, equal but for
    rounding.
    """
    x0, y0, x1, y1 = (int(value) for value in roi)
    if (x1 - x0) * (y1 - y0) <= LARGE:
        return paste_mask(prob_SS, roi, window) > threshold
    left, top, right, bottom = (int(value) for value in window)
    above = np.empty((bottom - top, right - left), dtype=bool)
    step = max(1, BAND // (right - left))
    for row in range(top, bottom, step):
        band = np.array([left, row, right, min(row + step, bottom)])
        above[row - top : row - top + step] = paste_bilinear(prob_SS, roi, band) > threshold
    return above


def _differences(
    lines: NDArray[Any], before: NDArray[np.int64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the differences of successive lines in between the given ones.

    Args:
        lines: (L, N) values.
        before: (M,) which line comes before each.
        share: (M,) of the way to the next line.

    Returns:
        (M - 1, N).
    """
    first = lines.take(before, axis=0)
    step = lines.take(before + 1, axis=0)
    step -= first
    between = step * share[:, None]
    between += first
    return between[1:] - between[:-1]


def _between(
    position: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the last of `count` lines before each position, and how far it lies beyond that."""
    line = np.minimum(position.astype(np.int64), count - 2)
    return line, position - line
