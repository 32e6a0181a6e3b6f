"""The IoU metrics of paired instances: predictions and baselines against human masks.

Knows nothing of files or pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from malcli.metrics.miou import (
    Groups,
    Interval,
    IouMetrics,
    Mean,
    Scores,
    group_instances,
    intervals,
    scores_of_all,
    summarise,
)
from malcli.metrics.pairing import Instances, Pairs, pair_instances
from malcli.records import Rle
from malcli.report.progress import Progress

CHUNK = 512  # instances between two looks at the clock

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The IoU metrics of the paired instances, and what pictures are chosen by."""

    metrics: IouMetrics[Mean]
    baselines: dict[str, IouMetrics[Mean]]  # box, ellipse
    intervals: IouMetrics[Interval]
    baseline_intervals: dict[str, IouMetrics[Interval]]
    groups: Groups
    pairs: Pairs
    scores: dict[str, Scores]  # by who made the masks: pred, box, ellipse


@dataclass(frozen=True)
class Second:
    """The IoU metrics of another side on the same instances."""

    metrics: IouMetrics[Mean]
    pairs: Pairs
    scores: Scores


def score_pairs(human: Instances, predicted: Instances, draws: NDArray[np.uint8]) -> Scored:
    """Return the IoU metrics of predictions and baselines on the same human instances.

    Args:
        human: Human instances, crowd included.
        predicted: Predicted instances on the same image rows.
        draws: (R, images) bootstrap resamples.
    """
    pairs = pair_instances(human, predicted)
    xywh, image = human.xywh[pairs.human], human.image[pairs.human]
    masks = {"pred": [predicted.rles[j] if j >= 0 else None for j in pairs.predicted]}
    groups = group_instances(image, human.category[pairs.human], xywh)
    scores = _all_scores(_truth(human, pairs), masks, xywh)
    values = {name: summarise(part, groups) for name, part in scores.items()}
    bounds = {name: intervals(part, groups, draws) for name, part in scores.items()}
    return Scored(
        metrics=values.pop("pred"),
        baselines=values,
        intervals=bounds.pop("pred"),
        baseline_intervals=bounds,
        groups=groups,
        pairs=pairs,
        scores=scores,
    )


def score_second(human: Instances, second: Instances, groups: Groups) -> Second:
    """Return the IoU metrics of other predictions on the same human instances.

    Args:
        human: Human instances, crowd included.
        second: Predicted instances on the same image rows.
        groups: As `score_pairs` gives them.
    """
    pairs = pair_instances(human, second)
    masks = {"pred": [second.rles[j] if j >= 0 else None for j in pairs.predicted]}
    scores = _all_scores(_truth(human, pairs), masks, None)["pred"]
    return Second(summarise(scores, groups), pairs, scores)


def _truth(human: Instances, pairs: Pairs) -> list[Rle]:
    return [rle for rle in (human.rles[i] for i in pairs.human) if rle is not None]


def _all_scores(
    truth: list[Rle], masks: Mapping[str, list[Rle | None]], xywh: FloatArray | None
) -> dict[str, Scores]:
    """Return `scores_of_all`, with progress."""
    parts: list[dict[str, Scores]] = []
    with Progress(len(truth), "masks", "eval") as progress:
        for begin in range(0, max(1, len(truth)), CHUNK):
            part = slice(begin, begin + CHUNK)
            some = {name: values[part] for name, values in masks.items()}
            boxes = None if xywh is None else xywh[part]
            parts.append(scores_of_all(truth[part], some, boxes))
            progress.advance(len(truth[part]))
    return {
        name: {key: np.concatenate([one[name][key] for one in parts]) for key in scores}
        for name, scores in parts[0].items()
    }
