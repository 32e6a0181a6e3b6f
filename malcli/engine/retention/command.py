"""`malcli retention`: phase 2 end to end. The same student learns human and malcli's masks.

Decides who trains, and measures what the students found; `phase2` trains them. torch is loaded only
where a student is needed.

Source: Secs. 4.1 (retention rate) and 4.2 (phase 2), App. A.3 (boxes alone).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from malcli.config.retention import RetentionConfig
from malcli.engine.eval.read_instances import open_predicted, read_predicted
from malcli.engine.retention.study import (
    MEASURING,
    TrainingSide,
    ValidationSide,
    job_of,
    open_study,
    read_training,
    read_validation,
    write_json,
)
from malcli.metrics.ap import ApResult, box_ap, mask_ap, resample
from malcli.metrics.miou import interval, resample_images
from malcli.metrics.retention import retention as retained
from malcli.records import Problems
from malcli.report.progress import log
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class RetentionResult(Shown):
    """What a study measured.

    Attributes:
        out: Its folder.
        measured: `human`, `malcli` and, if asked for, `boxes`: {"ap", "box_ap"}, COCO's twelve
            numbers each, None where undefined; `intervals` of the same nesting with [low, high],
            None without resamples; `retention`: {AP name: {value, low, high}}, per cent; `counts`.
    """

    out: Path
    measured: dict[str, Any]

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.students import retention_tables

        return retention_tables(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {**self.measured, "out": str(self.out)}


def retention(config: RetentionConfig) -> RetentionResult:
    """Train the same student on human masks and on malcli's, and compare their AP.

    Raises:
        MalcliError: Settings, annotations, images or weights that cannot be used; another study in
            `out`; a NaN loss (RunError); SIGINT or SIGTERM, with the state saved (Interrupted).
    """
    job = job_of(config)
    done = open_study(config, job)
    if done is not None:
        log(f"{config.out}: the same study is finished; nothing to do")
        return RetentionResult(config.out, {key: done[key] for key in done if key != "out"})
    training = read_training(config)
    validation = read_validation(config, training.categories)
    _describe(config, training, validation)
    from malcli.engine.retention.train_students import run_students

    is_main = run_students(config, students_of(config), job, training, validation)
    measured = _measure(config, validation)
    counts = training.counts | {
        "val_images": len(validation.frame.names),
        "val_instances": int((~validation.human.crowd).sum()),
    }
    chosen = {name: getattr(config, name) for name in MEASURING}
    result = RetentionResult(config.out, {**measured, "counts": counts, **chosen})
    if is_main:
        write_json(result.to_json(), config.out / "result.json")
    return result


def students_of(config: RetentionConfig) -> tuple[str, ...]:
    """Return the names of a study's students."""
    return ("human", "malcli", "boxes") if config.boxes_only else ("human", "malcli")


def _describe(config: RetentionConfig, training: TrainingSide, validation: ValidationSide) -> None:
    """Say on stderr what is trained and measured on."""
    counts = training.counts
    left = ", ".join(
        f"{number} {reason.replace('_', ' ')}"
        for reason, number in counts.items()
        if number and reason not in ("instances", "used", "images")
    )
    log(
        f"retention: both students learn {counts['used']} of {counts['instances']} instances in "
        f"{counts['images']} images, {len(training.categories)} categories"
        + (f" (left out of both: {left})" if left else "")
    )
    log(f"retention: measured on {len(validation.frame.names)} images of {config.val}")


def _measure(config: RetentionConfig, validation: ValidationSide) -> dict[str, Any]:
    """Return AP, retention and intervals from the students' files, as `eval --oracle` would."""
    log("retention: average precision")
    frame, human = validation.frame, validation.human
    images = len(frame.names)
    draws = resample_images(images, config.bootstrap, config.seed)
    values: dict[str, Any] = dict.fromkeys(("human", "malcli", "boxes"))
    bounds: dict[str, Any] = dict.fromkeys(values)
    masks: dict[str, ApResult] = {}
    for name in students_of(config):
        source = open_predicted(config.out / f"{name}.json")
        found = read_predicted(source, frame, Problems())
        masks[name] = mask_ap(human, found, images, boxes_too=True)
        parts = {"ap": masks[name], "box_ap": box_ap(human, found, images)}
        values[name] = {key: part.stats for key, part in parts.items()}
        bounds[name] = {key: _bounds(part, draws) for key, part in parts.items()}
    drawn = {name: resample(masks[name], draws) for name in ("human", "malcli")}
    ratios = retained(masks["malcli"].stats, masks["human"].stats, drawn["malcli"], drawn["human"])
    return {**values, "retention": ratios, "intervals": bounds if len(draws) else None}


def _bounds(part: ApResult, draws: NDArray[np.uint8]) -> dict[str, list[float] | None]:
    """Return the 95 % interval of each number, None where it is undefined."""
    return {
        name: None if part.stats[name] is None else interval(values)
        for name, values in resample(part, draws).items()
    }
