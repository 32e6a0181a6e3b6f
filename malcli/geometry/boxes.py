"""Boxes: corner forms, clipping, size classes and the random expansion of Sec. 3.1.

Boxes are absolute float pixels; pixel i covers [i, i + 1). RoIs are integer rectangles that may
leave the image. This module knows nothing of pixels' content.
"""

import numpy as np
from numpy.typing import NDArray

from malcli.geometry.released import released_roi

# COCO's size classes, by box area: small < 32^2 <= medium < 96^2 <= large (App. A.2, half open).
SMALL_AREA = 32.0**2
MEDIUM_AREA = 96.0**2
SIZE_NAMES = ("small", "medium", "large")
NO_SIZE = 3  # the released code's class of areas that are exactly a border (mal.md 3.2)

BLOCK = 128  # boxes that are compared at a time with as many: what fits a core's cache

FloatArray = NDArray[np.float64]


def xywh_to_xyxy(xywh: FloatArray) -> FloatArray:
    """Return corners (..., 4) x0 y0 x1 y1 of boxes (..., 4) x y w h."""
    return np.concatenate([xywh[..., :2], xywh[..., :2] + xywh[..., 2:]], axis=-1)


def xyxy_to_xywh(xyxy: FloatArray) -> FloatArray:
    """Return boxes (..., 4) x y w h of corners (..., 4) x0 y0 x1 y1."""
    return np.concatenate([xyxy[..., :2], xyxy[..., 2:] - xyxy[..., :2]], axis=-1)


def clip_xyxy(xyxy: FloatArray, image_hw: tuple[int, int]) -> FloatArray:
    """Return corners (..., 4) clipped to the image of (height, width) pixels."""
    height, width = image_hw
    return np.clip(xyxy, 0.0, np.array([width, height, width, height], dtype=np.float64))


def round_outward(xyxy: FloatArray) -> NDArray[np.int64]:
    """Return the smallest integer rectangles (..., 4) that hold the boxes (..., 4)."""
    low, high = np.floor(xyxy[..., :2]), np.ceil(xyxy[..., 2:])
    return np.concatenate([low, high], axis=-1).astype(np.int64)


def size_class(area: NDArray[np.floating], law: str = "half-open") -> NDArray[np.int64]:
    """Return 0 (small), 1 (medium) or 2 (large) for box areas in square pixels.

    Args:
        area: Of any shape, square pixels.
        law: What areas of exactly 1024 and 9216 are: of the class above (`half-open`), of the
            class below (`closed`: the released thresholds), or of none: `NO_SIZE` (`strict`: the
            released network).

    Source: App. A.2, half-open ranges; mal.md 3.2 and 8.5 for the released code's.
    """
    borders = (SMALL_AREA, MEDIUM_AREA)
    size = np.asarray(np.digitize(area, borders, right=law == "closed"), dtype=np.int64)
    if law == "strict":
        size = np.where(np.isin(area, borders), NO_SIZE, size)
    return size


def largest_overlaps(xyxy: FloatArray) -> FloatArray:
    """Return for each box (N, 4) the largest IoU with another one of them, (N,).

    It is 0 where there is no other one; boxes without area overlap nothing. Boxes are compared
    block by block, blocks that promise most first; one that promises no more than what every box
    of the other has already is left out, which makes n log n of n squared for all but boxes that
    lie on one another by the thousand.
    """
    blocks = _near_blocks(xyxy)
    area = np.prod(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0), axis=1)
    found = np.zeros(len(xyxy))
    if len(blocks) < 2:
        return _largest_iou(xyxy, area, xyxy, area, same=True) if len(xyxy) else found
    low = np.array([xyxy[rows].min(axis=0) for rows in blocks])
    high = np.array([xyxy[rows].max(axis=0) for rows in blocks])
    least = np.array([area[rows].min() for rows in blocks])
    for number, rows in enumerate(blocks):
        box, own = xyxy[rows], area[rows]
        best = _largest_iou(box, own, box, own, same=True)
        promised = _most_iou(low, high, least, number)
        for other in np.argsort(-promised, kind="stable"):
            if promised[other] <= best.min():
                break
            if other != number:
                there = blocks[other]
                best = np.maximum(best, _largest_iou(box, own, xyxy[there], area[there]))
        found[rows] = best
    return found


def _near_blocks(xyxy: FloatArray) -> list[NDArray[np.int64]]:
    """Return the rows of boxes (N, 4) in blocks of at most BLOCK whose corners are near."""
    waiting, blocks = [np.arange(len(xyxy))], []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= BLOCK:
            blocks.append(rows)
            continue
        corners, half = xyxy[rows], len(rows) // 2
        order = np.argpartition(corners[:, np.ptp(corners, axis=0).argmax()], half)
        waiting += [rows[order[:half]], rows[order[half:]]]
    return blocks


def _most_iou(low: FloatArray, high: FloatArray, least: FloatArray, number: int) -> FloatArray:
    """Return what the IoU of a box of one block with one of each block (K,) cannot exceed.

    Args:
        low: (K, 4) smallest corners of each block.
        high: (K, 4) largest corners.
        least: (K,) smallest area.
        number: Of the one block.
    """
    right, left = np.minimum(high[:, 2:], high[number, 2:]), np.maximum(low[:, :2], low[number, :2])
    shared = np.prod(np.maximum(right - left, 0), axis=1)
    # The union is no smaller than either box, nor than both without what they share.
    union = np.maximum(np.maximum(least, least[number]), least + least[number] - shared)
    most = np.divide(shared, union, out=np.ones_like(shared), where=shared < union)
    # Rounding, which makes no IoU larger than 1.
    return np.asarray(np.minimum(most * (1 + 1e-9), 1))


def _largest_iou(
    xyxy: FloatArray, area: FloatArray, others: FloatArray, their: FloatArray, same: bool = False
) -> FloatArray:
    """Return the largest IoU of each box (N, 4) with the others (M, 4), its own row left out."""
    one = xyxy[:, None]
    sides = np.minimum(one[..., 2:], others[:, 2:]) - np.maximum(one[..., :2], others[:, :2])
    shared = np.maximum(sides[..., 0], 0) * np.maximum(sides[..., 1], 0)
    union = their + area[:, None] - shared
    iou = shared / np.maximum(union, np.finfo(np.float64).tiny)
    if same:
        np.fill_diagonal(iou, 0)
    return np.asarray(iou.max(axis=1))


def expand_box(xyxy: FloatArray, margins: FloatArray, law: str = "exact") -> NDArray[np.int64]:
    """Return the integer RoIs of boxes grown by a margin on each side.

    Args:
        xyxy: (..., 4) corners, pixels.
        margins: (..., 4) left, top, right, bottom, in halves of the box's side, >= 0.
        law: `exact`, or `released`: in part float32, and one pixel more at the right and bottom.

    Returns:
        (..., 4) int64 corners, rounded outward, not clipped to the image.

    Source: Sec. 3.1, with the `1 +` that the printed formula lacks (mal.md 12); mal.md 1.2.
    """
    if law == "released":
        return released_roi(xyxy, margins)
    half = (xyxy[..., 2:] - xyxy[..., :2]) / 2
    grow = margins * np.concatenate([-half, half], axis=-1)
    return round_outward(xyxy + grow)


def random_margins(rng: np.random.Generator, count: int, theta: float, law: str) -> FloatArray:
    """Draw the margins of `expand_box`, (count, 4).

    Args:
        rng: Random generator.
        count: Number of boxes.
        theta: Upper bound of the expansion, in halves of the box.
        law: `paper`: the sum of both sides is uniform in [0, theta] and split uniformly;
            `released`: each side is uniform in [0, theta], times a gate shared by the axis
            (mal.md 1.4).

    Source: Sec. 3.1; mal.md 1.4.
    """
    gate = rng.random((count, 2))
    share = np.concatenate([gate, 1 - gate], axis=1)
    draws = rng.random((count, 4)) if law == "released" else np.tile(rng.random((count, 2)), 2)
    margins: FloatArray = theta * draws * share
    return margins


def roi_frame(xyxy: FloatArray, roi: NDArray[np.int64]) -> FloatArray:
    """Return boxes (..., 4) in the unit square of their RoIs (..., 4).

    0 is the RoI's left or top edge, 1 its right or bottom edge.
    """
    origin = np.concatenate([roi[..., :2], roi[..., :2]], axis=-1)
    side = roi[..., 2:] - roi[..., :2]
    framed: FloatArray = (xyxy - origin) / np.concatenate([side, side], axis=-1)
    return framed
