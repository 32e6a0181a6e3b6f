"""What `malcli eval` measured of masks, and its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malcli.engine.eval.compare import ApComparison, Comparison
from malcli.metrics.confidence import ScoreQuality
from malcli.metrics.miou import Bounded, Interval, IouMetrics, Mean
from malcli.records import Problems
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class EvalIntervals:
    """95 % bootstrap intervals over images.

    Attributes:
        metrics: Of the IoU metrics; None for a results list.
        baselines: Of those of `box` and `ellipse`; None for a results list.
        ap: Of COCO's numbers, mask.
        box_ap: The same of the boxes.
    """

    metrics: IouMetrics[Interval] | None
    baselines: dict[str, IouMetrics[Interval]] | None
    ap: dict[str, Interval]
    box_ap: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return what is inside `intervals` of `malcli eval --json`."""
        beside = {} if self.baselines is None else {"baselines": _each(self.baselines)}
        return {**_values(self.metrics), **beside, "ap": self.ap, "box_ap": self.box_ap}


@dataclass(frozen=True)
class EvalResult(Shown):
    """What was measured; every part is None where it is undefined.

    Attributes:
        gt: The human masks.
        pred: The masks scored; None if they were made here and not kept.
        checkpoint: What made the masks: the labeler's path or `shipped`; with `pred` the hash that
            their file states.
        metrics: The IoU metrics.
        ap: COCO's twelve numbers, mask; with LVIS's frequencies also APr, APc, APf.
        box_ap: The same of the boxes.
        baselines: The IoU metrics of `box` and `ellipse`.
        counts: Instances, paired, missing, unmatched, crowd.
        intervals: 95 % intervals over images; None without resamples.
        retention: {AP name: what is kept of the oracle's}, per cent.
        comparison: The second file of masks or detections.
        score: How well the masks' scores tell their IoU, as `confidence.measure_score` has it.
        quality: What the labeler says of its quality on human masks; None: not measured, or `pred`.
        problems: Records that could not be used.
        report: The page that was written, if any.
    """

    gt: Path
    pred: Path | None
    checkpoint: str | None
    metrics: IouMetrics[Mean] | None
    ap: dict[str, Mean]
    box_ap: dict[str, Mean]
    baselines: dict[str, IouMetrics[Mean]] | None
    counts: dict[str, int] | None
    intervals: EvalIntervals | None
    retention: dict[str, Bounded] | None = None
    comparison: Comparison | ApComparison | None = None
    score: ScoreQuality | None = None
    quality: dict[str, Any] | None = None
    problems: Problems = field(default_factory=Problems)
    report: Path | None = None

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.tables import eval_tables

        return eval_tables(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `malcli eval --json`."""
        return {
            **_values(self.metrics),
            "ap": self.ap,
            "box_ap": self.box_ap,
            "baselines": _each(self.baselines),
            "counts": self.counts,
            "intervals": None if self.intervals is None else self.intervals.to_json(),
            "retention": self.retention,
            "compare": None if self.comparison is None else self.comparison.to_json(),
            "score": self.score,
            "gt": str(self.gt),
            "pred": None if self.pred is None else str(self.pred),
            "checkpoint": self.checkpoint,
            "quality": self.quality,
            "problems": self.problems.counts,
        }


def _values(metrics: IouMetrics[Any] | None) -> dict[str, Any]:
    """Return every metric, None where there are no instances with one mask each."""
    names = [item.name for item in fields(IouMetrics)]
    return dict.fromkeys(names) if metrics is None else metrics.to_json()


def _each(metrics: Mapping[str, IouMetrics[Any]] | None) -> dict[str, Any] | None:
    return None if metrics is None else {name: one.to_json() for name, one in metrics.items()}
