"""Mask AP and box AP: COCO's twelve numbers by pycocotools, and their bootstrap.

COCO's own rules hold: sizes by the annotation's `area` (mask pixels where it is missing), crowd
regions ignored, at most 100 detections an image and category. Knows nothing of files.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from malcli.geometry.rle import area, rle_box
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
    """

    stats: dict[str, float | None]
    cells: list[list[Detections | None]]


def mask_ap(
    human: Instances, predicted: Instances, images: int, *, boxes_too: bool = False
) -> ApResult:
    """Return COCO's mask AP.

    Args:
        human: Instances with masks; crowd included.
        predicted: Detections; those without a mask are left out.
        images: Number of images; both sides' rows are below it.
        boxes_too: Whether detections may be of boxes alone: AP is undefined if all of them are.
    """
    if boxes_too and len(predicted) and not any(predicted.rles):
        return ApResult(undefined(), [])
    return _average_precision(human, predicted, images, "segm")


def box_ap(human: Instances, predicted: Instances, images: int) -> ApResult:
    """Return COCO's box AP, from each side's `bbox`, or its mask's where it has none."""
    return _average_precision(human, predicted, images, "bbox")


def undefined() -> dict[str, float | None]:
    """Return the twelve numbers when there is nothing to compute them from."""
    return dict.fromkeys(STATS)


def _average_precision(human: Instances, predicted: Instances, images: int, kind: str) -> ApResult:
    truth = _records(human, kind, human=True)
    found = _records(predicted, kind, human=False)
    if not truth:
        return ApResult(undefined(), [])
    categories = sorted({record["category_id"] for record in truth})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, images, categories), _coco(found, images, categories), kind
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [None if value < 0 else float(value) for value in evaluation.stats]
    stats = dict(zip(STATS, values, strict=True))
    return ApResult(stats, _collect(evaluation.evalImgs, len(categories), images))


def _records(side: Instances, kind: str, *, human: bool) -> list[dict[str, Any]]:
    """Return a side as COCO annotations with ids from 1: COCOeval takes id 0 for no match."""
    records: list[dict[str, Any]] = []
    for row, rle in enumerate(side.rles):
        box = side.xywh[row]
        if not np.isfinite(box).all():
            box = np.array(rle_box(rle) if rle else (0, 0, 0, 0), dtype=np.float64)
        if rle is None and (human or kind == "segm"):
            continue
        given = side.area[row] if human else (np.nan if kind == "segm" else box[2] * box[3])
        records.append(
            {
                "id": len(records) + 1,
                "image_id": int(side.image[row]),
                "category_id": int(side.category[row]),
                "bbox": box.tolist(),
                "segmentation": dict(rle) if rle else {},
                "area": float(given) if np.isfinite(given) or rle is None else area(rle),
                "iscrowd": int(side.crowd[row]) if human else 0,
                "score": float(side.score[row]),
            }
        )
    return records


def _coco(records: list[dict[str, Any]], images: int, categories: list[int]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": number} for number in categories],
        "annotations": records,
    }
    coco.createIndex()
    # The masks are RLEs of their image's size already; sizes are not kept in these records.
    coco.annToRLE = lambda record: record["segmentation"]
    return coco


def _collect(
    matches: list[dict[str, Any] | None], categories: int, images: int
) -> list[list[Detections | None]]:
    """Return COCOeval's per-image matches as columns, [category][area range]."""
    cells: list[list[Detections | None]] = []
    for number in range(categories):
        begin = number * 4 * images
        ranges = [matches[begin + a * images : begin + (a + 1) * images] for a in range(4)]
        cells.append([_columns([match for match in part if match]) for part in ranges])
    return cells


def _columns(matches: list[dict[str, Any]]) -> Detections | None:
    """Return the images' matches of one category and area range; None without instances."""
    instance_image = np.concatenate(
        [np.full(int((match["gtIgnore"] == 0).sum()), match["image_id"]) for match in matches]
        or [np.zeros(0)]
    ).astype(np.int64)
    if instance_image.size == 0:
        return None
    counts = [len(match["dtScores"]) for match in matches]
    score = np.concatenate([np.array(match["dtScores"], dtype=float) for match in matches])
    order = np.argsort(-score, kind="mergesort")
    matched = np.concatenate([match["dtMatches"] for match in matches], axis=1)[:, order] > 0
    ignored = np.concatenate([match["dtIgnore"] for match in matches], axis=1)[:, order] > 0
    return Detections(
        image=np.repeat([match["image_id"] for match in matches], counts)[order].astype(np.int64),
        rank=np.concatenate([np.arange(count) for count in counts])[order].astype(np.int64),
        hit=matched & ~ignored,
        miss=~matched & ~ignored,
        instance_image=instance_image,
    )


def resample(result: ApResult, draws: Draws) -> dict[str, FloatArray]:
    """Return each of the twelve numbers on resampled images, {name: (R,)}, NaN if undefined.

    A detection weighs as often as its image was drawn, which is what accumulating the drawn images
    gives (up to the order of equal scores).

    Args:
        result: As `mask_ap` or `box_ap` gives it.
        draws: (R, images) how often each resample holds each image.
    """
    sums = {name: np.zeros(len(draws)) for name in STATS}
    defined = {name: np.zeros(len(draws)) for name in STATS}
    for ranges in result.cells:
        for number, cell in enumerate(ranges):
            if cell is None:
                continue
            for name, values in _cell_stats(cell, number, draws).items():
                sums[name] += np.nan_to_num(values)
                defined[name] += np.isfinite(values)
    return {
        name: np.where(defined[name] > 0, sums[name] / np.maximum(defined[name], 1), np.nan)
        for name in STATS
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
    step = max(1, MAX_ELEMENTS // max(1, cell.hit.size))
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
    weight = draws[:, None, cell.image].astype(np.float64)  # (R, 1, D)
    true = np.cumsum(weight * cell.hit, axis=2)
    false = np.cumsum(weight * cell.miss, axis=2)
    precision = true / (true + false + np.spacing(1))
    best = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    # A recall is reached at the first detection whose recall is no lower, so each detection holds
    # the recalls between the one before and its own.
    reached = np.searchsorted(RECALLS, true / instances[:, None, None], side="right")
    held = np.diff(reached, axis=2, prepend=0)
    mean: FloatArray = (best * held).sum(axis=2) / len(RECALLS)
    mean[~np.isfinite(instances)] = np.nan
    return mean
