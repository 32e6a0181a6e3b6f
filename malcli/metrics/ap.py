"""Mask AP and box AP: COCO's twelve numbers, LVIS's frequency groups, and their bootstrap.

COCO's own rules hold: sizes by the annotation's `area` (mask pixels where it is missing), crowd
regions ignored, at most 100 detections an image and category. Knows nothing of files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.metrics.matching import Matched, match, side_of
from malcli.metrics.pairing import Instances

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Each AP's IoU level (None: all ten) and area range, as rows of COCO's parameters.
AP_CELLS = {
    "AP": (None, 0),
    "AP50": (0, 0),
    "AP75": (5, 0),
    "APs": (None, 1),
    "APm": (None, 2),
    "APl": (None, 3),
}
# Each AR's area range and detections an image.
AR_CELLS = {
    "AR1": (0, 1),
    "AR10": (0, 10),
    "AR100": (0, 100),
    "ARs": (1, 100),
    "ARm": (2, 100),
    "ARl": (3, 100),
}
LIMITS = (1, 10, 100)  # detections an image and category
AREAS = {(0, 1e10): 0, (0, 32**2): 1, (32**2, 96**2): 2, (96**2, 1e10): 3}
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}  # LVIS: rare, common, frequent
RECALLS = np.linspace(0, 1, 101)
MAX_ELEMENTS = 2_000_000  # of an array while resampling: 16 MB

FloatArray = NDArray[np.float64]
Draws = NDArray[np.uint8]


@dataclass(frozen=True)
class Detections:
    """One category and area range: its detections, best score first, and its instances.

    Attributes:
        image: (D,) row of each detection's image.
        rank: (D,) place in its image, 0 for the best score.
        hit: (T, D) matched at each IoU level to an instance that counts.
        miss: (T, D) matched to nothing.
        instance_image: (G,) row of the image of each instance that counts.
    """

    image: NDArray[np.int64]
    rank: NDArray[np.int64]
    hit: NDArray[np.bool_]
    miss: NDArray[np.bool_]
    instance_image: NDArray[np.int64]


@dataclass(frozen=True)
class ApResult:
    """The twelve numbers (None where undefined) and what they can be resampled from.

    Attributes:
        stats: {name: value in [0, 1] or None}.
        cells: One entry a category, area range by area range; None where there is no instance.
            Empty if resampling was not asked for.
        categories: The category id of each entry.
        by_category: {category id: AP}; those without an instance that counts are left out.
    """

    stats: dict[str, float | None]
    cells: list[list[Detections | None]]
    categories: list[int] = field(default_factory=list)
    by_category: dict[int, float] = field(default_factory=dict)


def mask_ap(
    human: Instances,
    predicted: Instances,
    images: int,
    *,
    boxes_too: bool = False,
    keep_cells: bool = True,
) -> ApResult:
    """Return COCO's mask AP.

    Args:
        human: Instances with masks; crowd included.
        predicted: Detections; those without a mask are left out.
        images: Number of images; both sides' rows are below it.
        boxes_too: Whether detections may be of boxes alone: AP is undefined if all of them are.
        keep_cells: Keep what `resample` needs, which takes longer.
    """
    if boxes_too and len(predicted) and not any(predicted.rles):
        return ApResult(undefined(), [])
    return _average_precision(human, predicted, images, "segm", keep_cells)


def box_ap(
    human: Instances, predicted: Instances, images: int, *, keep_cells: bool = True
) -> ApResult:
    """Return COCO's box AP, from each side's `bbox`, or its mask's where it has none."""
    return _average_precision(human, predicted, images, "bbox", keep_cells)


def undefined() -> dict[str, float | None]:
    """Return the twelve numbers when there is nothing to compute them from."""
    return dict.fromkeys(STATS)


def frequency_ap(result: ApResult, frequency: Mapping[int, str]) -> dict[str, float | None]:
    """Return `APr`, `APc`, `APf`: the mean AP of the rare, common and frequent categories.

    Under COCO's rules: at most 100 detections an image and category, and every image counts as
    fully annotated.

    Args:
        result: As `mask_ap` or `box_ap` gives it.
        frequency: {category id: r, c or f}; {}: nothing is returned.

    Source: Gupta et al., LVIS, CVPR 2019, for the groups.
    """
    if not frequency:
        return {}
    groups = {
        name: [ap for number, ap in result.by_category.items() if frequency.get(number) == letter]
        for name, letter in FREQUENCIES.items()
    }
    return {name: float(np.mean(values)) if values else None for name, values in groups.items()}


def _average_precision(
    human: Instances, predicted: Instances, images: int, kind: str, keep_cells: bool
) -> ApResult:
    truth = side_of(human, kind, human=True)
    if not truth.rles:
        return ApResult(undefined(), [])
    matched = match(truth, side_of(predicted, kind, human=False), images, kind)
    categories: list[int] = np.unique(truth.category).tolist()
    precision_TRK = matched.precision_TRKAM[..., 0, -1]
    means = {number: _mean(precision_TRK[..., place]) for place, number in enumerate(categories)}
    return ApResult(
        stats=_stats(matched),
        cells=_collect(matched.each(), len(categories)) if keep_cells else [],
        categories=categories,
        by_category={number: value for number, value in means.items() if value is not None},
    )


def _stats(matched: Matched) -> dict[str, float | None]:
    """Return the twelve numbers, as COCOeval summarises them."""
    stats: dict[str, float | None] = {}
    for name, (level, area_range) in AP_CELLS.items():
        precision_TRK = matched.precision_TRKAM[..., area_range, -1]
        stats[name] = _mean(precision_TRK if level is None else precision_TRK[level])
    for name, (area_range, most) in AR_CELLS.items():
        stats[name] = _mean(matched.recall_TKAM[..., area_range, LIMITS.index(most)])
    return stats


def _mean(values: FloatArray) -> float | None:
    """Return the mean of what is defined; COCO marks the rest by -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _collect(
    matches: Iterable[dict[str, Any] | None], categories: int
) -> list[list[Detections | None]]:
    """Return per-image matches as columns, [category][area range]."""
    parts: list[list[list[dict[str, Any]]]] = [[[] for _ in AREAS] for _ in range(categories)]
    for match_of_image in matches:
        if match_of_image:
            area_range = AREAS[(match_of_image["aRng"][0], match_of_image["aRng"][1])]
            parts[match_of_image["category_id"] - 1][area_range].append(match_of_image)
    return [[_columns(part) for part in ranges] for ranges in parts]


def _columns(matches: list[dict[str, Any]]) -> Detections | None:
    """Return the images' matches of one category and area range; None without instances."""
    matches = sorted(matches, key=lambda match: int(match["image_id"]))
    counted = [len(match["gtIgnore"]) - int(sum(match["gtIgnore"])) for match in matches]
    images = np.array([match["image_id"] for match in matches], dtype=np.int64)
    instance_image = np.repeat(images, counted)
    if instance_image.size == 0:
        return None
    counts = [len(match["dtScores"]) for match in matches]
    score = np.concatenate([np.array(match["dtScores"], dtype=float) for match in matches])
    order = np.argsort(-score, kind="mergesort")
    some = [match for match, count in zip(matches, counts, strict=True) if count]
    levels = len(matches[0]["dtMatches"])
    none = [np.zeros((levels, 0))]
    matched = np.concatenate([match["dtMatches"] for match in some] or none, axis=1)[:, order] > 0
    ignored = np.concatenate([match["dtIgnore"] for match in some] or none, axis=1)[:, order] > 0
    return Detections(
        image=np.repeat(images, counts)[order],
        rank=np.concatenate([np.arange(count) for count in counts])[order].astype(np.int64),
        hit=matched & ~ignored,
        miss=~matched & ~ignored,
        instance_image=instance_image,
    )


def resample(
    result: ApResult, draws: Draws, frequency: Mapping[int, str] | None = None
) -> dict[str, FloatArray]:
    """Return each of the twelve numbers on resampled images, {name: (R,)}, NaN if undefined.

    A detection weighs as often as its image was drawn, which is what accumulating the drawn images
    gives (up to the order of equal scores).

    Args:
        result: As `mask_ap` or `box_ap` gives it.
        draws: (R, images) how often each resample holds each image.
        frequency: {category id: r, c or f}: adds the numbers of `frequency_ap`.
    """
    names = (*STATS, *FREQUENCIES) if frequency else STATS
    group = {letter: name for name, letter in FREQUENCIES.items()}
    sums = {name: np.zeros(len(draws)) for name in names}
    defined = {name: np.zeros(len(draws)) for name in names}
    for category, ranges in zip(result.categories, result.cells, strict=False):
        extra = group.get((frequency or {}).get(category, ""))
        for number, cell in enumerate(ranges):
            stats = {} if cell is None else _cell_stats(cell, number, draws)
            if extra and "AP" in stats:
                stats[extra] = stats["AP"]
            for name, values in stats.items():
                sums[name] += np.nan_to_num(values)
                defined[name] += np.isfinite(values)
    return {
        name: np.where(defined[name] > 0, sums[name] / np.maximum(defined[name], 1), np.nan)
        for name in names
    }


def _cell_stats(cell: Detections, number: int, draws: Draws) -> dict[str, FloatArray]:
    """Return the numbers of one category that this area range makes, {name: (R,)}."""
    instances = draws[:, cell.instance_image].sum(axis=1, dtype=np.float64)
    scale = np.where(instances > 0, instances, np.nan)
    stats = {}
    for name, (area_range, most) in AR_CELLS.items():
        if area_range == number:
            hits = cell.hit[:, cell.rank < most].sum(axis=0)
            weight = draws[:, cell.image[cell.rank < most]].astype(np.float64)
            stats[name] = (weight @ hits) / len(cell.hit) / scale
    step = max(1, MAX_ELEMENTS // max(1, cell.hit.shape[1]))
    parts = [
        _precision(cell, draws[begin : begin + step], scale[begin : begin + step])
        for begin in range(0, len(draws), step)
    ]
    precision = np.concatenate(parts) if parts else np.zeros((0, len(cell.hit)))
    for name, (level, area_range) in AP_CELLS.items():
        if area_range == number:
            stats[name] = precision.mean(axis=1) if level is None else precision[:, level]
    return stats


def _precision(cell: Detections, draws: Draws, instances: FloatArray) -> FloatArray:
    """Return the mean precision over COCO's 101 recalls, (R, T); NaN without instances."""
    weight = draws[:, cell.image].astype(np.float64)  # (R, D)
    counted = cell.hit | cell.miss
    same = bool((counted == counted[0]).all())
    total = np.cumsum(weight * counted[0], axis=1)
    mean = np.zeros((len(draws), len(cell.hit)))
    for level, hit in enumerate(cell.hit):
        # Precision is highest, and recall grows, at hits alone.
        hits = np.flatnonzero(hit)
        if level and not same:
            total = np.cumsum(weight * counted[level], axis=1)
        true = np.cumsum(weight[:, hits], axis=1)
        precision = true / (total[:, hits] + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # A recall is reached at the first hit whose recall is no lower, so each hit holds the
        # recalls between the one before and its own.
        reached = np.searchsorted(RECALLS, true / instances[:, None], side="right")
        held = np.diff(reached, axis=1, prepend=0)
        mean[:, level] = (best * held).sum(axis=1) / len(RECALLS)
    mean[~np.isfinite(instances)] = np.nan
    return mean
