"""`malcli eval --compare`: a second file of masks, or of detections, for the same human instances.

Differences are second minus first, so that positive ones are improvements.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.pair_scores import Scored, Second, score_second
from malcli.engine.eval.read_instances import (
    Sides,
    checkpoint_of,
    open_predicted,
    read_predicted,
)
from malcli.engine.inputs import refuse_problems
from malcli.errors import ConfigError
from malcli.metrics.ap import ApResult, frequency_ap, mask_ap, resample
from malcli.metrics.clustering import size_intervals, size_means
from malcli.metrics.miou import Bounded, interval
from malcli.metrics.pairing import Instances
from malcli.records import BoxTable, Problems
from malcli.report.progress import log

EQUAL = 0.01  # IoU; a smaller difference of an instance counts as none

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The second file beside the first.

    Attributes:
        path: The second file.
        checkpoint: What made its masks, as the file says it.
        predicted: Its instances.
        second: Their IoU metrics on the human instances that the first was scored on.
        change: (M,) IoU of the second minus that of the first.
        difference: {all, small, medium, large: {value, low, high}} of the mean IoU.
        ap: COCO's twelve numbers of the second, mask.
        problems: Its records that could not be used.
    """

    path: Path
    checkpoint: str | None
    predicted: Instances
    second: Second
    change: FloatArray
    difference: dict[str, Bounded]
    ap: dict[str, float | None]
    problems: Problems

    def to_json(self) -> dict[str, Any]:
        """Return what is inside `compare` of `malcli eval --json`."""
        better, worse = int((self.change > EQUAL).sum()), int((self.change < -EQUAL).sum())
        return {
            "pred": str(self.path),
            "checkpoint": self.checkpoint,
            **self.second.metrics.to_json(),
            "difference": self.difference,
            "better": better,
            "worse": worse,
            "equal": len(self.change) - better - worse,
            "ap": self.ap,
            "counts": self.second.pairs.counts,
            "problems": self.problems.counts,
        }


@dataclass(frozen=True)
class ApComparison:
    """A second list of detections beside the first: AP alone.

    Attributes:
        path: The second file.
        ap: COCO's twelve numbers of the second, mask.
        difference: {AP name: {value, low, high}}, paired by image.
        problems: Its records that could not be used.
    """

    path: Path
    ap: dict[str, float | None]
    difference: dict[str, Bounded]
    problems: Problems

    def to_json(self) -> dict[str, Any]:
        """Return what is inside `compare` of `malcli eval --json`."""
        return {
            "pred": str(self.path),
            "ap": self.ap,
            "difference": self.difference,
            "problems": self.problems.counts,
        }


def compare_results(
    config: EvalConfig, path: Path, sides: Sides, first: ApResult, draws: NDArray[np.uint8]
) -> ApComparison:
    """Return the AP of a second results list, and how it differs from the first's.

    Args:
        config: For `strict`.
        path: The second file.
        sides: The human masks and the first file.
        first: The first file's AP.
        draws: (R, images) the resamples of the images, the same for both files.

    Raises:
        ConfigError: It is no results list.
        DataFormatError: It cannot be understood; with `strict`, any record that cannot be used.
    """
    source = open_predicted(path)
    if isinstance(source, BoxTable):
        raise ConfigError(
            f"--compare {path}: masks of annotations, but --pred is a results list; give two files "
            f"of one kind"
        )
    problems = Problems()
    found = _read_second(config, path, source, sides, problems)
    second = mask_ap(sides.human, found, len(sides.frame.names), keep_cells=bool(len(draws)))
    before, after = resample(first, draws), resample(second, draws)
    difference: dict[str, Bounded] = {}
    for name, value in second.stats.items():
        old = first.stats[name]
        gap = None if value is None or old is None else value - old
        bounds = None if gap is None else interval(after[name] - before[name])
        low, high = bounds or (None, None)
        difference[name] = {"value": gap, "low": low, "high": high}
    return ApComparison(path, second.stats, difference, problems)


def _read_second(
    config: EvalConfig, path: Path, source: BoxTable | Path, sides: Sides, problems: Problems
) -> Instances:
    """Return the second file's instances; what cannot be used is told, or with `strict` refused."""
    found = read_predicted(source, sides.frame, problems)
    if config.strict:
        refuse_problems(path, problems)
    for kind, examples in problems.examples.items():
        log(f"eval: {path}: {problems.counts[kind]} {kind}, such as {examples[0]}")
    return found


def compare_masks(
    config: EvalConfig, path: Path, sides: Sides, scored: Scored, draws: NDArray[np.uint8]
) -> Comparison:
    """Return how a second file of masks does on the instances that the first was scored on.

    Args:
        config: For `strict`.
        path: The second file.
        sides: The human masks and the first file.
        scored: The first file's IoU metrics.
        draws: (R, images) the resamples of the images, the same for both files.

    Raises:
        ConfigError: It is a results list, which has no mask for each box.
        DataFormatError: It cannot be understood, or holds masks of other images; with `strict`, any
            record that cannot be used.
    """
    log(f"eval: reading {path}")
    source = open_predicted(path)
    if not isinstance(source, BoxTable):
        raise ConfigError(
            f"--compare {path}: a results list, but --pred has masks of annotations; give two "
            f"files of one kind"
        )
    problems = Problems()
    predicted = _read_second(config, path, source, sides, problems)
    second = score_second(sides.human, predicted, scored.groups)
    change = second.scores["iou"] - scored.scores["pred"]["iou"]
    ap = mask_ap(sides.human, predicted, len(sides.frame.names), keep_cells=False)
    return Comparison(
        path=path,
        checkpoint=checkpoint_of(source),
        predicted=predicted,
        second=second,
        change=change,
        difference=_difference(change, scored, draws),
        ap={**ap.stats, **frequency_ap(ap, sides.frame.frequency)},
        problems=problems,
    )


def _difference(change: FloatArray, scored: Scored, draws: NDArray[np.uint8]) -> dict[str, Bounded]:
    """Return the mean change by size, with its paired bootstrap interval over images."""
    groups = scored.groups
    bounds = size_intervals(change, groups.size, groups.image, draws) if len(draws) else {}
    cells: dict[str, Bounded] = {}
    for name, value in size_means(change, groups.size).items():
        low, high = bounds.get(name) or (None, None)
        cells[name] = {"value": value, "low": low, "high": high}
    return cells
