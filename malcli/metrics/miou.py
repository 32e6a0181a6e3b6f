"""IoU, Dice and boundary IoU of paired masks: per instance, then by size and category.

Everything here is a mean over human instances; an instance without a usable prediction counts 0.
Knows nothing of files, scores or detections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Generic, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from malcli.geometry.boxes import SIZE_NAMES, size_class
from malcli.geometry.rle import empty_rle, hw_of, rle_box
from malcli.metrics.matching import mask_iou
from malcli.metrics.shapes import (
    Shape,
    boundary,
    box_shapes,
    decode_shapes,
    ellipse_shapes,
    is_all_boundary,
    overlaps,
)
from malcli.records import Rle

IOU_LEVELS = ("0.5", "0.75", "0.9")
NAMES = ("all", *SIZE_NAMES)

FloatArray = NDArray[np.float64]
Ids = NDArray[np.int64]
Scores = dict[str, FloatArray]  # iou, dice, boundary_iou: (N,) in [0, 1]
Mean = float | None  # None where it is undefined
Interval = list[float] | None  # [low, high]
Cell = TypeVar("Cell")  # Mean or Interval


class Bounded(TypedDict):
    """A number with its 95 % interval; each None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class IouMetrics(Generic[Cell]):
    """The IoU metrics of instances, as means or as their intervals.

    Attributes:
        miou: By size, as all but the last: {all, small, medium, large}.
        category_miou: Mean over categories of their mean IoU.
        dice: Mean Dice.
        boundary_iou: Mean boundary IoU.
        iou_over: {level: share of the instances whose IoU is at least 0.5, 0.75, 0.9}.
    """

    miou: dict[str, Cell]
    category_miou: dict[str, Cell]
    dice: dict[str, Cell]
    boundary_iou: dict[str, Cell]
    iou_over: dict[str, Cell]

    def to_json(self) -> dict[str, dict[str, Cell]]:
        """Return {name of the metric: its values}."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


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


def instance_scores(human: Sequence[Rle], predicted: Sequence[Rle | None]) -> Scores:
    """Return `iou`, `dice` and `boundary_iou` of each pair, (N,) in [0, 1].

    Args:
        human: Checked masks.
        predicted: Checked masks of the same sizes; None (missing, skipped) counts as empty.
    """
    return scores_of_all(human, {"masks": predicted})["masks"]


def scores_of_all(
    human: Sequence[Rle],
    predicted: Mapping[str, Sequence[Rle | None]],
    xywh: FloatArray | None = None,
) -> dict[str, Scores]:
    """Return `instance_scores` of several sides against the same human masks.

    Args:
        human: Checked masks.
        predicted: Each side's, as in `instance_scores`.
        xywh: (N, 4) boxes, pixels; adds the baselines `box` (filled) and `ellipse` (inscribed).
    """
    shapes = decode_shapes(human)
    edges = [boundary(shape) for shape in shapes]
    scores = {name: _mask_scores(human, edges, masks) for name, masks in predicted.items()}
    if xywh is not None:
        sizes = [shape.image_hw for shape in shapes]
        for name, draw in (("box", box_shapes), ("ellipse", ellipse_shapes)):
            drawn = draw(xywh, sizes)
            iou = overlaps(shapes, drawn)
            scores[name] = _scores(iou, overlaps(edges, [boundary(shape) for shape in drawn]))
    return scores


def _mask_scores(
    human: Sequence[Rle], edges: Sequence[Shape], predicted: Sequence[Rle | None]
) -> Scores:
    filled = [p or empty_rle(hw_of(h)) for h, p in zip(human, predicted, strict=True)]
    iou = mask_iou(human, filled)
    return _scores(iou, _boundary_iou(iou, edges, filled))


def _boundary_iou(iou: FloatArray, edges: Sequence[Shape], predicted: Sequence[Rle]) -> FloatArray:
    """Return the IoU of each boundary with that of its prediction, (N,)."""
    thick = [
        n for n, value in enumerate(iou) if value > 0 and not _both_thin(edges[n], predicted[n])
    ]
    found = iou.copy()  # two masks that are all boundary; and boundaries of apart masks are apart
    others = [boundary(shape) for shape in decode_shapes([predicted[n] for n in thick])]
    found[thick] = overlaps([edges[n] for n in thick], others)
    return found


def _both_thin(human: Shape, predicted: Rle) -> bool:
    _, _, w, h = rle_box(predicted)
    hw = (human.mask.shape[0], human.mask.shape[1])
    return is_all_boundary(hw, human.image_hw) and is_all_boundary((h, w), human.image_hw)


def _scores(iou: FloatArray, boundary_iou: FloatArray) -> Scores:
    return {"iou": iou, "dice": 2 * iou / (1 + iou), "boundary_iou": boundary_iou}


def summarise(scores: Scores, groups: Groups) -> IouMetrics[Mean]:
    """Return the metrics of `eval`: means by size, undefined ones None.

    Args:
        scores: As `instance_scores` gives them.
        groups: Of the same instances.
    """
    return _by_size(scores, groups, _mean)


def intervals(scores: Scores, groups: Groups, draws: NDArray[np.uint8]) -> IouMetrics[Interval]:
    """Return 95 % bootstrap intervals over images of what `summarise` gives.

    Args:
        scores: As `instance_scores` gives them.
        groups: Of the same instances.
        draws: (R, images) how often each resample holds each image; see `resample_images`.
    """
    return _by_size(scores, groups, partial(_bounds, draws=draws))


def _by_size(
    scores: Scores, groups: Groups, cell: Callable[[FloatArray, Ids, Ids], Cell]
) -> IouMetrics[Cell]:
    everything = np.ones(len(groups.image), dtype=bool)
    picked = {"all": everything}
    picked |= {name: groups.size == number for number, name in enumerate(SIZE_NAMES)}
    one = np.zeros(len(groups.image), dtype=np.int64)

    def cells(values: FloatArray, category: Ids) -> dict[str, Cell]:
        return {
            name: cell(values[rows], groups.image[rows], category[rows])
            for name, rows in picked.items()
        }

    return IouMetrics(
        miou=cells(scores["iou"], one),
        category_miou=cells(scores["iou"], groups.category),
        dice=cells(scores["dice"], one),
        boundary_iou=cells(scores["boundary_iou"], one),
        iou_over={
            level: cell((scores["iou"] >= float(level)).astype(float), groups.image, one)
            for level in IOU_LEVELS
        },
    )


def _mean(values: FloatArray, image: Ids, category: Ids) -> Mean:
    """Return the mean over categories of their mean; None if undefined."""
    if values.size == 0:
        return None
    _, kind = np.unique(category, return_inverse=True)
    return float((np.bincount(kind, values) / np.bincount(kind)).mean())


def _bounds(values: FloatArray, image: Ids, category: Ids, draws: NDArray[np.uint8]) -> Interval:
    """Return the interval of what `_mean` gives; None if undefined."""
    if values.size == 0:
        return None
    kinds, kind = np.unique(category, return_inverse=True)
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


def interval(values: FloatArray) -> Interval:
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
