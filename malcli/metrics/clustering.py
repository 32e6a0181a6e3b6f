"""Clustering score of Sec. 4.6: how tightly an encoder's features gather around two centres.

The human mask says which tokens of a crop are foreground and which background. Works on arrays;
knows nothing of networks or files.

Shape suffixes: N tokens, C channels, L divisions into foreground and background, h w token grid,
R resamples, I images.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.geometry.boxes import SIZE_NAMES
from malcli.geometry.rle import decode_windows
from malcli.metrics.miou import interval
from malcli.records import Rle

FloatArray = NDArray[np.float64]
Bools = NDArray[np.bool_]

TINY = 1e-30  # a vector of zeros has no direction and stays zero


def clustering_scores(
    feature_NC: NDArray[np.floating[Any]], foreground_LN: NDArray[np.bool_]
) -> FloatArray:
    """Return the score S of each division of the same tokens into two sides, (L,) in [0, 4].

    S is the mean over tokens of |f_i / |f_i| - c / |c||^2, where c is the mean of the features of
    the token's side, as they are, before any normalisation; |.| is the Euclidean norm. Smaller is
    tighter. NaN where a side has no token.

    Args:
        feature_NC: (N, C) features.
        foreground_LN: (L, N) True: foreground.

    Source: Sec. 4.6, Eq. 6.
    """
    feature_NC = feature_NC.astype(np.float64)
    unit_NC = feature_NC / np.maximum(np.linalg.norm(feature_NC, axis=1, keepdims=True), TINY)
    squares_N = np.square(unit_NC).sum(axis=1)
    total_L = np.zeros(len(foreground_LN))
    for side_LN in (foreground_LN, ~foreground_LN):
        weight_LN = side_LN.astype(np.float64)
        count_L = weight_LN.sum(axis=1)
        centre_LC = weight_LN @ feature_NC  # the sum has the mean's direction
        centre_LC /= np.maximum(np.linalg.norm(centre_LC, axis=1, keepdims=True), TINY)
        products_L = ((weight_LN @ unit_NC) * centre_LC).sum(axis=1)
        centre_L = count_L * np.square(centre_LC).sum(axis=1)
        distances_L = weight_LN @ squares_N + centre_L - 2 * products_L
        total_L += np.where(count_L > 0, np.maximum(distances_L, 0), np.nan)
    scores_L: FloatArray = total_L / max(1, feature_NC.shape[0])
    return scores_L


def token_sides(rle: Rle, roi: NDArray[np.int64], grid_hw: tuple[int, int]) -> tuple[Bools, Bools]:
    """Return which tokens of a crop lie in the image, and which are foreground, each (h, w).

    The pixel under a token's centre decides: a mean over the token's cell would lose thin objects,
    and in a small box a cell is less than a pixel.

    Args:
        rle: Checked mask of the whole image.
        roi: (4,) x0 y0 x1 y1 of the crop, pixels; may leave the image.
        grid_hw: Tokens along the crop's height and width.
    """
    height, width = rle["size"]
    x0, y0, x1, y1 = (int(side) for side in roi)
    row_h, column_w = _centres(y0, y1, grid_hw[0]), _centres(x0, x1, grid_hw[1])
    row_in, column_in = (row_h >= 0) & (row_h < height), (column_w >= 0) & (column_w < width)
    inside = row_in[:, None] & column_in[None, :]
    foreground = np.zeros(grid_hw, dtype=bool)
    if inside.any():
        window = (max(0, x0), max(0, y0), min(width, x1), min(height, y1))
        mask = decode_windows([rle], [window])[0]
        rows, columns = row_h[row_in] - window[1], column_w[column_in] - window[0]
        foreground[inside] = mask[np.ix_(rows, columns)].ravel() > 0
    return inside, foreground


def _centres(begin: int, end: int, count: int) -> NDArray[np.int64]:
    """Return the pixels under the centres of `count` equal cells of [begin, end), exactly."""
    return begin + (2 * np.arange(count) + 1) * (end - begin) // (2 * count)


def size_means(values: FloatArray, size: NDArray[np.int64]) -> dict[str, float | None]:
    """Return the mean over all instances and by size class; None where there is none.

    Args:
        values: (N,) of instances, finite.
        size: (N,) size classes, 0 small, 1 medium, 2 large.
    """
    return {
        name: float(values[rows].mean()) if rows.any() else None
        for name, rows in _groups(size).items()
    }


def size_intervals(
    values: FloatArray, size: NDArray[np.int64], image: NDArray[np.int64], draws: NDArray[np.uint8]
) -> dict[str, list[float] | None]:
    """Return the 95 % bootstrap intervals over images of `size_means`.

    Args:
        values: (N,) of instances, finite.
        size: (N,) size classes.
        image: (N,) rows of their images.
        draws: (R, images) how often each resample holds each image.
    """
    weight_RI = draws.astype(np.float64)
    bounds: dict[str, list[float] | None] = {}
    for name, rows in _groups(size).items():
        count_R = weight_RI @ np.bincount(image[rows], minlength=draws.shape[1])
        total_R = weight_RI @ np.bincount(image[rows], values[rows], minlength=draws.shape[1])
        bounds[name] = interval(np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan))
    return bounds


def _groups(size: NDArray[np.int64]) -> dict[str, Bools]:
    everything = {"all": np.ones(len(size), dtype=bool)}
    return everything | {name: size == number for number, name in enumerate(SIZE_NAMES)}
