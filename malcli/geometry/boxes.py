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
NO_SIZE = 3  # the released code's class of areas that are exactly a border (mal_spec 3.2)

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

    Source: App. A.2, half-open ranges; mal_spec 3.2 and 8.5 for the released code's.
    """
    borders = (SMALL_AREA, MEDIUM_AREA)
    size = np.asarray(np.digitize(area, borders, right=law == "closed"), dtype=np.int64)
    if law == "strict":
        size = np.where(np.isin(area, borders), NO_SIZE, size)
    return size


def largest_overlaps(xyxy: FloatArray) -> FloatArray:
    """Return for each box (N, 4) the largest IoU with another one of them, (N,).

    It is 0 where there is no other one; boxes without area overlap nothing.
    """
    area = np.prod(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0), axis=1)
    found = np.zeros(len(xyxy))
    for row, (box, own) in enumerate(zip(xyxy, area, strict=True)):
        sides = np.minimum(xyxy[:, 2:], box[2:]) - np.maximum(xyxy[:, :2], box[:2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        iou = shared / np.maximum(area + own - shared, np.finfo(np.float64).tiny)
        iou[row] = 0
        found[row] = iou.max()
    return found


def expand_box(xyxy: FloatArray, margins: FloatArray, law: str = "exact") -> NDArray[np.int64]:
    """Return the integer RoIs of boxes grown by a margin on each side.

    Args:
        xyxy: (..., 4) corners, pixels.
        margins: (..., 4) left, top, right, bottom, in halves of the box's side, >= 0.
        law: `exact`, or `released`: in part float32, and one pixel more at the right and bottom.

    Returns:
        (..., 4) int64 corners, rounded outward, not clipped to the image.

    Source: Sec. 3.1, with the `1 +` that the printed formula lacks (mal_spec 12); mal_spec 1.2.
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
            (mal_spec 1.4).

    Source: Sec. 3.1; mal_spec 1.4.
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
