"""`malcli eval`: masks against human masks: read both sides, pair, measure, report.

Knows nothing of how masks are made: without `--pred` it asks `label` for them.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.config import EvalConfig, LabelConfig
from malcli.data.formats import open_boxes, select
from malcli.engine.instances import (
    Frame,
    Sides,
    open_predicted,
    read_frame,
    read_human,
    read_predicted,
)
from malcli.errors import DataFormatError
from malcli.metrics.ap import ApResult, box_ap, mask_ap, resample
from malcli.metrics.miou import (
    box_masks,
    category_means,
    ellipse_masks,
    group_instances,
    instance_scores,
    interval,
    intervals,
    resample_images,
    summarise,
)
from malcli.metrics.pairing import Instances, Pairs, pair_instances
from malcli.metrics.retention import retention
from malcli.records import BoxTable, Problems, Rle
from malcli.report.html import check_page, eval_page, write_page
from malcli.report.plots import HUMAN, MALCLI, Example, Subject, draw_subjects, photo_reader
from malcli.report.progress import Progress, log

AP_RESAMPLES = 200  # accumulating AP again costs more than a mean
CHUNK = 512  # instances between two looks at the clock
SHOWN = 12  # pictures a gallery
IOU_METRICS = ("miou", "category_miou", "dice", "boundary_iou", "iou_over")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class EvalResult:
    """What was measured; every part is None where it is undefined.

    Attributes:
        gt: The human masks.
        pred: The masks scored; None if they were made here and not kept.
        checkpoint: What made the masks, as their file says it.
        metrics: The IoU metrics: `miou`, `category_miou`, `dice`, `boundary_iou`, `iou_over`.
        ap: COCO's twelve numbers, mask.
        box_ap: COCO's twelve numbers, box.
        baselines: `box` and `ellipse`, each with the IoU metrics.
        counts: Instances, paired, missing, unmatched, crowd.
        intervals: The same nesting with [low, high].
        retention: {AP name: {value, low, high}}, per cent.
        problems: Records that could not be used.
    """

    gt: Path
    pred: Path | None
    checkpoint: str | None
    metrics: dict[str, Any]
    ap: dict[str, float | None] | None
    box_ap: dict[str, float | None] | None
    baselines: dict[str, Any] | None
    counts: dict[str, int] | None
    intervals: dict[str, Any] | None
    retention: dict[str, Any] | None = None
    problems: Problems = field(default_factory=Problems)

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `malcli eval --json`."""
        return {
            **self.metrics,
            "ap": self.ap,
            "box_ap": self.box_ap,
            "baselines": self.baselines,
            "counts": self.counts,
            "intervals": self.intervals,
            "retention": self.retention,
            "gt": str(self.gt),
            "pred": None if self.pred is None else str(self.pred),
            "checkpoint": self.checkpoint,
            "problems": self.problems.counts,
        }


@dataclass(frozen=True)
class Scored:
    """The IoU metrics of the paired instances, and what pictures are chosen by."""

    metrics: dict[str, Any]
    baselines: dict[str, Any]
    intervals: dict[str, Any]
    pairs: Pairs
    scores: dict[str, dict[str, FloatArray]]  # by who made the masks: pred, box, ellipse


def evaluate(config: EvalConfig) -> EvalResult:
    """Score masks against human masks, and write the report that the settings ask for.

    Args:
        config: Files, what to leave out, and how `label` is to make masks without `pred`.

    Raises:
        DataFormatError: A file cannot be understood, holds no human mask, or masks of other images;
            with `strict`, any record that cannot be used.
        OutputError: The report would replace an input or another file.
    """
    if config.report is not None:
        inputs = [config.gt, config.pred, config.oracle, config.masks]
        check_page(config.report, inputs, config.overwrite)
    sides = read_sides(config)
    images = len(sides.frame.names)
    draws = resample_images(images, config.bootstrap, config.seed)
    # A list of detections is not one mask for each box: AP alone.
    listed = not isinstance(sides.source, BoxTable)
    scored = None if listed else score_pairs(sides.human, sides.predicted, sides.frame, draws)
    log("eval: average precision")
    aps = {
        "ap": mask_ap(sides.human, sides.predicted, images, boxes_too=listed),
        "box_ap": box_ap(sides.human, sides.predicted, images),
    }
    result = EvalResult(
        gt=config.gt,
        pred=config.pred or config.masks,
        checkpoint=_checkpoint_of(sides.source),
        metrics=scored.metrics if scored else dict.fromkeys(IOU_METRICS),
        ap=aps["ap"].stats,
        box_ap=aps["box_ap"].stats,
        baselines=scored.baselines if scored else None,
        counts=scored.pairs.counts if scored else None,
        intervals=_intervals(scored, aps, draws),
        retention=_retention(config, sides, aps["ap"], draws) if config.oracle else None,
        problems=sides.problems,
    )
    if config.report is not None:
        _write_report(config, result, sides, scored)
    return result


def read_sides(config: EvalConfig) -> Sides:
    """Read human and predicted instances; without `--pred` the masks are made first.

    Raises:
        DataFormatError: As `evaluate`.
    """
    log(f"eval: reading {config.gt}")
    problems = Problems()
    table = select(
        open_boxes(config.gt, config.format, config.images), config.categories, config.limit
    )
    frame = read_frame(table, config)
    human = read_human(table, frame, problems)
    if config.strict:
        _refuse_problems(config.gt, problems)
    with _masks(config) as path:
        source = open_predicted(path)
        predicted = read_predicted(source, frame, problems)
    if config.strict:
        _refuse_problems(path, problems)
    for kind, examples in problems.examples.items():
        log(f"eval: {problems.counts[kind]} {kind}, such as {examples[0]}")
    return Sides(table, source, frame, human, predicted, problems)


@contextlib.contextmanager
def _masks(config: EvalConfig) -> Iterator[Path]:
    """Yield the masks to score; without `--pred` they are made first, and kept with `--masks`."""
    if config.pred is not None:
        yield config.pred
    elif config.masks is not None:
        yield _label(config, config.masks)
    else:
        with tempfile.TemporaryDirectory(prefix="malcli-eval-") as folder:
            yield _label(config, Path(folder) / "masks.json")


def _label(config: EvalConfig, out: Path) -> Path:
    """Label the boxes of `--gt`, with the settings that both commands share."""
    from malcli.engine.label import label
    from malcli.engine.survey import resolve_label

    known = {item.name for item in dataclasses.fields(LabelConfig)} - {"report"}
    shared = {key: value for key, value in vars(config).items() if key in known}
    label(resolve_label({"boxes": config.gt, "out": out, **shared}))
    return out


def _checkpoint_of(source: BoxTable | Path) -> str | None:
    """Return the checkpoint's hash that `label` wrote into a file of masks."""
    info = source.header.get("info") if isinstance(source, BoxTable) else None
    ours = info.get("malcli") if isinstance(info, dict) else None
    checkpoint = ours.get("checkpoint") if isinstance(ours, dict) else None
    return None if checkpoint is None else str(checkpoint)


def _refuse_problems(path: Path, problems: Problems) -> None:
    for kind, examples in problems.examples.items():
        raise DataFormatError(path, f"--strict: {problems.counts[kind]} {kind}: {examples[0]}")


def score_pairs(
    human: Instances, predicted: Instances, frame: Frame, draws: NDArray[np.uint8]
) -> Scored:
    """Return the IoU metrics of predictions and baselines on the same human instances.

    Args:
        human: Human instances, crowd included.
        predicted: Predicted instances on the same image rows.
        frame: The images.
        draws: (R, images) bootstrap resamples.
    """
    pairs = pair_instances(human, predicted)
    xywh, image = human.xywh[pairs.human], human.image[pairs.human]
    sizes = [frame.sizes_hw[row] for row in image]
    masks: dict[str, list[Rle | None]] = {
        "pred": [predicted.rles[j] if j >= 0 else None for j in pairs.predicted],
        "box": list(box_masks(xywh, sizes)),
        "ellipse": list(ellipse_masks(xywh, sizes)),
    }
    truth = [rle for rle in (human.rles[i] for i in pairs.human) if rle is not None]
    groups = group_instances(image, human.category[pairs.human], xywh)
    scores = _all_scores(truth, masks)
    values = {name: summarise(part, groups) for name, part in scores.items()}
    bounds = {name: intervals(part, groups, draws) for name, part in scores.items()}
    return Scored(
        metrics=values.pop("pred"),
        baselines=values,
        intervals={**bounds.pop("pred"), "baselines": bounds},
        pairs=pairs,
        scores=scores,
    )


def _all_scores(
    truth: list[Rle], masks: Mapping[str, list[Rle | None]]
) -> dict[str, dict[str, FloatArray]]:
    """Return `instance_scores` of every list of masks, with progress."""
    parts: dict[str, list[dict[str, FloatArray]]] = {name: [] for name in masks}
    with Progress(len(truth), "masks", "eval") as progress:
        for begin in range(0, max(1, len(truth)), CHUNK):
            part = slice(begin, begin + CHUNK)
            for name, values in masks.items():
                parts[name].append(instance_scores(truth[part], values[part]))
            progress.advance(len(truth[part]))
    return {
        name: {key: np.concatenate([one[key] for one in some]) for key in some[0]}
        for name, some in parts.items()
    }


def _intervals(
    scored: Scored | None, aps: Mapping[str, ApResult], draws: NDArray[np.uint8]
) -> dict[str, Any] | None:
    """Return the 95 % intervals of everything, None without resamples."""
    if len(draws) == 0:
        return None
    bounds = {
        key: {
            name: None if value.stats[name] is None else interval(drawn)
            for name, drawn in resample(value, draws[:AP_RESAMPLES]).items()
        }
        for key, value in aps.items()
    }
    return {**(scored.intervals if scored else dict.fromkeys(IOU_METRICS)), **bounds}


def _retention(
    config: EvalConfig, sides: Sides, ap: ApResult, draws: NDArray[np.uint8]
) -> dict[str, Any]:
    """Return 100 * AP over the AP of `--oracle`, on the same resamples."""
    assert config.oracle is not None
    found = Problems()
    results = read_predicted(open_predicted(config.oracle), sides.frame, found)
    if config.strict:
        _refuse_problems(config.oracle, found)
    oracle = mask_ap(sides.human, results, len(sides.frame.names))
    few = draws[:AP_RESAMPLES]
    return dict(retention(ap.stats, oracle.stats, resample(ap, few), resample(oracle, few)))


def _write_report(
    config: EvalConfig, result: EvalResult, sides: Sides, scored: Scored | None
) -> None:
    assert config.report is not None
    log(f"eval: writing {config.report}")
    histograms, categories, galleries = {}, [], {}
    if scored is not None and len(scored.pairs.human):
        iou = scored.scores["pred"]["iou"]
        titles = {"pred": "masks", "ellipse": "ellipse", "box": "filled box"}
        histograms = {title: scored.scores[name]["iou"] for name, title in titles.items()}
        means = category_means(iou, sides.human.category[scored.pairs.human])
        named = sides.frame.categories
        categories = [(named.get(k, str(k)), mean, count) for k, (mean, count) in means.items()]
        galleries = _galleries(config, sides, scored)
    problems = {
        f"{count} {kind}": result.problems.examples.get(kind, [])
        for kind, count in result.problems.counts.items()
    }
    page = eval_page(result.to_json(), histograms, categories, galleries, problems)
    write_page(config.report, page)


def _galleries(config: EvalConfig, sides: Sides, scored: Scored) -> dict[str, list[Example]]:
    """Return pictures of the worst, the median and the best masks."""
    frame, human, predicted = sides.frame, sides.human, sides.predicted
    pairs, iou = scored.pairs, scored.scores["pred"]["iou"]
    drawn = [n for n, j in enumerate(pairs.predicted) if j >= 0 and predicted.rles[j] is not None]
    order = np.array(drawn, dtype=np.int64)[np.argsort(iou[drawn], kind="stable")]
    middle = max(0, (len(order) - SHOWN) // 2)
    chosen = {
        "Worst": order[:SHOWN],
        "Median": order[middle : middle + SHOWN],
        "Best": order[::-1][:SHOWN],
    }

    def subject(n: int) -> Subject:
        i, row = int(pairs.human[n]), int(human.image[pairs.human[n]])
        name = frame.categories.get(int(human.category[i]), str(human.category[i]))
        return Subject(
            file_name=frame.names[row],
            image_hw=frame.sizes_hw[row],
            xywh=human.xywh[i],
            masks=((human.rles[i], HUMAN), (predicted.rles[pairs.predicted[n]], MALCLI)),
            caption=(f"IoU {iou[n]:.3f}, {name}", f"id {human.ids[i]}, {frame.names[row]}"),
        )

    read = photo_reader(sides.table, config.images, config.max_pixels, log)
    return {
        title: draw_subjects([subject(int(n)) for n in rows], read)
        for title, rows in chosen.items()
    }
