"""IoU, Dice and boundary IoU of paired masks: per instance, then by size and category.

Everything here is a mean over human instances; an instance without a usable prediction counts 0.
Knows nothing of files, scores or detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from malcli.geometry.boxes import SIZE_NAMES, clip_xyxy, size_class, xywh_to_xyxy
from malcli.geometry.rle import decode_windows, empty_rle, encode_crop, paired_iou, rle_box
from malcli.records import Rle

BOUNDARY_RATIO = 0.02  # of the image's diagonal, as in the Boundary IoU paper for COCO
IOU_LEVELS = ("0.5", "0.75", "0.9")
NAMES = ("all", *SIZE_NAMES)

Window = tuple[int, int, int, int]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """What instances are averaged over, N rows.

    Attributes:
        image: (N,) row of the image, the unit of the bootstrap.
        category: (N,) category id.
        size: (N,) 0 small, 1 medium, 2 large, by box area.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    size: NDArray[np.int64]


def group_instances(
    image: NDArray[np.int64], category: NDArray[np.int64], xywh: FloatArray
) -> Groups:
    """Return the groups of instances by their boxes (N, 4), pixels."""
    return Groups(image, category, size_class(xywh[:, 2] * xywh[:, 3]))


def instance_scores(human: Sequence[Rle], predicted: Sequence[Rle | None]) -> dict[str, FloatArray]:
    """Return `iou`, `dice` and `boundary_iou` of each pair, (N,) in [0, 1].

    Args:
        human: Checked masks.
        predicted: Checked masks of the same sizes; None (missing, skipped) counts as empty.
    """
    filled = [p or empty_rle(_hw(h)) for h, p in zip(human, predicted, strict=True)]
    iou = paired_iou(human, filled)
    return {
        "iou": iou,
        "dice": 2 * iou / (1 + iou),
        "boundary_iou": boundary_iou(human, filled),
    }


def boundary_iou(a: Sequence[Rle], b: Sequence[Rle]) -> FloatArray:
    """Return the IoU of the boundaries of each a and its b, (N,); 0 where both are empty.

    A boundary is the mask's pixels near the outside: within 0.02 of the image's diagonal, at least
    one pixel, in chessboard distance. What lies beyond the image's border is outside.

    Args:
        a: Checked masks.
        b: As many, of the same sizes.

    Source: Cheng et al., Boundary IoU, CVPR 2021, Sec. 4.
    """
    return np.array(
        [_edge_iou(one, other) for one, other in zip(_edges(a), _edges(b), strict=True)]
    )


def _edges(rles: Sequence[Rle]) -> list[tuple[Window, NDArray[np.uint8]]]:
    """Return each mask's window and its boundary there; outside of it all is background."""
    windows = [(x, y, x + w, y + h) for x, y, w, h in map(rle_box, rles)]
    edges = []
    for rle, mask in zip(rles, decode_windows(rles, windows), strict=True):
        reach = max(1, round(BOUNDARY_RATIO * float(np.hypot(*_hw(rle)))))
        edges.append(_boundary(np.ascontiguousarray(mask), reach))
    return list(zip(windows, edges, strict=True))


def _boundary(mask: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    if mask.size == 0:
        return mask
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~np.asarray(inner, dtype=np.uint8)


def _edge_iou(a: tuple[Window, NDArray[np.uint8]], b: tuple[Window, NDArray[np.uint8]]) -> float:
    (window_a, edge_a), (window_b, edge_b) = a, b
    x0, y0 = max(window_a[0], window_b[0]), max(window_a[1], window_b[1])
    x1, y1 = min(window_a[2], window_b[2]), min(window_a[3], window_b[3])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    cut_a = edge_a[y0 - window_a[1] : y1 - window_a[1], x0 - window_a[0] : x1 - window_a[0]]
    cut_b = edge_b[y0 - window_b[1] : y1 - window_b[1], x0 - window_b[0] : x1 - window_b[0]]
    both = int(np.count_nonzero(cut_a & cut_b))
    either = int(np.count_nonzero(edge_a)) + int(np.count_nonzero(edge_b)) - both
    return both / either


def _hw(rle: Rle) -> tuple[int, int]:
    return rle["size"][0], rle["size"][1]


def box_masks(xywh: FloatArray, sizes_hw: Sequence[tuple[int, int]]) -> list[Rle]:
    """Return the baseline that fills each box (N, 4): every pixel whose centre lies inside."""
    return [_draw(box, hw, ellipse=False) for box, hw in zip(xywh, sizes_hw, strict=True)]


def ellipse_masks(xywh: FloatArray, sizes_hw: Sequence[tuple[int, int]]) -> list[Rle]:
    """Return the baseline of the ellipse inscribed in each box (N, 4), by pixel centres."""
    return [_draw(box, hw, ellipse=True) for box, hw in zip(xywh, sizes_hw, strict=True)]


def _draw(xywh: FloatArray, image_hw: tuple[int, int], *, ellipse: bool) -> Rle:
    # ceil(edge - 0.5) is the first pixel whose centre is at or beyond the edge.
    corners = clip_xyxy(xywh_to_xyxy(xywh), image_hw)
    x0, y0, x1, y1 = np.ceil(corners - 0.5).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return empty_rle(image_hw)
    mask = np.ones((y1 - y0, x1 - x0), dtype=bool)
    if ellipse:
        half = xywh[2:] / 2
        centre = xywh[:2] + half
        u = (np.arange(x0, x1) + 0.5 - centre[0]) / half[0]
        v = (np.arange(y0, y1) + 0.5 - centre[1]) / half[1]
        mask = u[None, :] ** 2 + v[:, None] ** 2 <= 1
    return encode_crop(mask, x0, y0, image_hw)


def summarise(scores: dict[str, FloatArray], groups: Groups) -> dict[str, Any]:
    """Return the metrics of `eval`: means by size, undefined ones None.

    Args:
        scores: As `instance_scores` gives them.
        groups: Of the same instances.

    Returns:
        `miou`, `category_miou`, `dice`, `boundary_iou`: each {all, small, medium, large};
        `iou_over`: shares of instances whose IoU is at least 0.5, 0.75, 0.9.
    """
    return _nested(scores, groups, None)


def intervals(
    scores: dict[str, FloatArray], groups: Groups, draws: NDArray[np.uint8]
) -> dict[str, Any]:
    """Return the nesting of `summarise` with [low, high]: 95 % bootstrap intervals over images.

    Args:
        scores: As `instance_scores` gives them.
        groups: Of the same instances.
        draws: (R, images) how often each resample holds each image; see `resample_images`.
    """
    return _nested(scores, groups, draws)


def _nested(
    scores: dict[str, FloatArray], groups: Groups, draws: NDArray[np.uint8] | None
) -> dict[str, Any]:
    everything = np.ones(len(groups.image), dtype=bool)
    picked = {"all": everything}
    picked |= {name: groups.size == number for number, name in enumerate(SIZE_NAMES)}
    one = np.zeros(len(groups.image), dtype=np.int64)

    def cells(values: FloatArray, category: NDArray[np.int64]) -> dict[str, Any]:
        return {
            name: _cell(values[rows], groups.image[rows], category[rows], draws)
            for name, rows in picked.items()
        }

    return {
        "miou": cells(scores["iou"], one),
        "category_miou": cells(scores["iou"], groups.category),
        "dice": cells(scores["dice"], one),
        "boundary_iou": cells(scores["boundary_iou"], one),
        "iou_over": {
            level: _cell((scores["iou"] >= float(level)).astype(float), groups.image, one, draws)
            for level in IOU_LEVELS
        },
    }


def _cell(
    values: FloatArray,
    image: NDArray[np.int64],
    category: NDArray[np.int64],
    draws: NDArray[np.uint8] | None,
) -> float | list[float] | None:
    """Return the mean over categories of their mean, or its interval; None if undefined."""
    if values.size == 0:
        return None
    kinds, kind = np.unique(category, return_inverse=True)
    if draws is None:
        return float((np.bincount(kind, values) / np.bincount(kind)).mean())
    total, defined = np.zeros(len(draws)), np.zeros(len(draws))
    for number in range(len(kinds)):
        # Only the images of this category: most categories are in few images.
        rows = kind == number
        images, place = np.unique(image[rows], return_inverse=True)
        weight = draws[:, images].astype(np.float64)
        count = weight @ np.bincount(place)
        mean = (weight @ np.bincount(place, values[rows])) / np.maximum(count, 1)
        total += np.where(count > 0, mean, 0)
        defined += count > 0
    return interval(np.where(defined > 0, total / np.maximum(defined, 1), np.nan))


def interval(values: FloatArray) -> list[float] | None:
    """Return [2.5th, 97.5th] percentiles of resampled values; None if all are NaN."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [float(low), float(high)]


def resample_images(images: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """Return (resamples, images): how often each bootstrap resample holds each image."""
    rng = np.random.default_rng(seed)
    draws = np.zeros((resamples, images), dtype=np.uint8)
    for row in draws:
        picked = rng.integers(0, images, images) if images else np.zeros(0, dtype=np.int64)
        row[:] = np.bincount(picked, minlength=images)
    return draws


def category_means(iou: FloatArray, category: NDArray[np.int64]) -> dict[int, tuple[float, int]]:
    """Return {category id: (mean IoU, instances)}."""
    kinds, kind = np.unique(category, return_inverse=True)
    means = np.bincount(kind, iou) / np.bincount(kind) if kinds.size else np.zeros(0)
    counts = np.bincount(kind) if kinds.size else np.zeros(0, dtype=np.int64)
    rows = zip(kinds.tolist(), means.tolist(), counts.tolist(), strict=True)
    return {number: (mean, count) for number, mean, count in rows}
