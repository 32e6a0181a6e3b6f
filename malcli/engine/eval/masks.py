"""`malcli eval`: masks against human masks: read both sides, pair, measure, report.

Knows nothing of how masks are made: without `--pred` it asks `label` for them.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes, select
from malcli.engine.eval.compare import ApComparison, Comparison, compare_masks, compare_results
from malcli.engine.eval.gallery import draw_galleries
from malcli.engine.eval.pair_scores import Scored, score_pairs
from malcli.engine.eval.read_instances import (
    Frame,
    Sides,
    checkpoint_of,
    open_predicted,
    read_frame,
    read_human,
    read_predicted,
)
from malcli.engine.eval.result import EvalIntervals, EvalResult
from malcli.engine.inputs import refuse_problems, with_sizes
from malcli.engine.machine.signals import command_of
from malcli.errors import Interrupted
from malcli.geometry.boxes import SIZE_NAMES
from malcli.metrics.ap import ApResult, box_ap, frequency_ap, mask_ap, resample
from malcli.metrics.confidence import ScoreQuality, measure_score
from malcli.metrics.miou import Bounded, Interval, category_means, interval, resample_images
from malcli.metrics.pairing import Instances
from malcli.metrics.retention import retention
from malcli.model.locate import name_of
from malcli.records import BoxTable, Problems, category_names
from malcli.report.charts import Category
from malcli.report.html import check_page, eval_page, write_page
from malcli.report.progress import log

if TYPE_CHECKING:
    from malcli.engine.label.result import LabelResult

AP_RESAMPLES = 200  # accumulating AP again costs more than a mean
LVIS_RULES = (
    " by COCO's rules: 100 detections an image, and every image counts as fully annotated; LVIS's "
    "own evaluation leaves out what its annotators did not look for, so its numbers are higher"
)
UNKNOWN_CATEGORY = "predictions of categories that --gt does not have (never right)"
OTHER_NAME = "categories of another name than in --gt"


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
        inputs = [config.gt, config.pred, config.oracle, config.masks, config.compare]
        check_page(config.report, inputs, config.overwrite)
    sides = read_sides(config)
    images, frequency = len(sides.frame.names), sides.frame.frequency
    draws = resample_images(images, config.bootstrap, config.seed)
    # A list of detections is not one mask for each box: AP alone.
    listed = not isinstance(sides.source, BoxTable)
    scored = None if listed else score_pairs(sides.human, sides.predicted, draws)
    compared: Comparison | ApComparison | None = None
    if config.compare is not None and scored is not None:
        compared = compare_masks(config, config.compare, sides, scored, draws)
    log("eval: average precision" + (LVIS_RULES if listed and frequency else ""))
    again = bool(len(draws))
    aps = {
        "ap": mask_ap(sides.human, sides.predicted, images, boxes_too=listed, keep_cells=again),
        "box_ap": box_ap(sides.human, sides.predicted, images, keep_cells=again),
    }
    if config.compare is not None and scored is None:
        few = draws[:AP_RESAMPLES]
        compared = compare_results(config, config.compare, sides, aps["ap"], few)
    result = EvalResult(
        gt=config.gt,
        pred=config.pred or config.masks,
        checkpoint=sides.checkpoint,
        quality=sides.quality,
        metrics=scored.metrics if scored else None,
        ap={**aps["ap"].stats, **frequency_ap(aps["ap"], frequency)},
        box_ap={**aps["box_ap"].stats, **frequency_ap(aps["box_ap"], frequency)},
        baselines=scored.baselines if scored else None,
        counts=scored.pairs.counts if scored else None,
        intervals=_intervals(scored, aps, draws, frequency),
        retention=_retention(config, sides, aps["ap"], draws) if config.oracle else None,
        comparison=compared,
        score=_score_quality(sides, scored) if scored else None,
        problems=sides.problems,
        report=config.report,
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
    read = open_boxes(config.gt, config.format, config.images, exif=config.exif)
    sized = with_sizes(read, config.gt, config.images, config.exif)
    table = select(sized, config.categories, config.limit)
    frame = read_frame(table, config.categories, config.limit)
    human = read_human(table, frame, problems)
    if config.strict:
        refuse_problems(config.gt, problems)
    with _masks(config) as (path, labelled):
        source = open_predicted(path)
        predicted = read_predicted(source, frame, problems)
    _compare_categories(source, frame, human, predicted, problems)
    if config.strict:
        refuse_problems(path, problems)
    for kind, examples in problems.examples.items():
        log(f"eval: {problems.counts[kind]} {kind}, such as {examples[0]}")
    checkpoint, quality = checkpoint_of(source), None
    if labelled is not None and labelled.checkpoint is not None:
        checkpoint, quality = name_of(labelled.checkpoint), labelled.quality
    return Sides(table, source, frame, human, predicted, problems, checkpoint, quality)


def _compare_categories(
    source: BoxTable | Path,
    frame: Frame,
    human: Instances,
    predicted: Instances,
    problems: Problems,
) -> None:
    """Count predictions of categories that the human side does not have, or names otherwise.

    Results of a trainer that counts from 0 look like bad results otherwise.
    """
    known = np.array([*frame.categories, *np.unique(human.category)])
    for row in np.flatnonzero(~np.isin(predicted.category, known)):
        problems.add(UNKNOWN_CATEGORY, f"category {predicted.category[row]}")
    theirs = category_names(source.header) if isinstance(source, BoxTable) else {}
    for number, name in theirs.items():
        ours = frame.categories.get(number, name)
        if ours.strip().lower() != name.strip().lower():
            problems.add(OTHER_NAME, f"{number} is {name!a}, in --gt {ours!a}")


def _score_quality(sides: Sides, scored: Scored) -> ScoreQuality | None:
    """Return how well the scores tell the IoUs; None if all are equal or they are no shares."""
    partner = scored.pairs.predicted
    drawn = np.flatnonzero([j >= 0 and sides.predicted.rles[j] is not None for j in partner])
    score = sides.predicted.score[partner[drawn]]
    if len(np.unique(score)) < 2 or score.min() < 0 or score.max() > 1:
        return None
    return measure_score(score, scored.scores["pred"]["iou"][drawn])


@contextlib.contextmanager
def _masks(config: EvalConfig) -> Iterator[tuple[Path, "LabelResult | None"]]:
    """Yield the masks to score; without `--pred` they are made first, and kept with `--masks`."""
    if config.pred is not None:
        yield config.pred, None
    elif config.masks is not None:
        yield config.masks, _label(config, config.masks)
    else:
        with tempfile.TemporaryDirectory(prefix="malcli-eval-") as folder:
            out = Path(folder) / "masks.json"
            yield out, _label(config, out)


def _label(config: EvalConfig, out: Path) -> "LabelResult":
    """Label the boxes of `--gt`, with the settings that both commands share."""
    from malcli.engine.label.command import label
    from malcli.engine.label.settings import resolve_label

    known = {item.name for item in dataclasses.fields(LabelConfig)} - {"report"}
    shared = {key: value for key, value in vars(config).items() if key in known}
    try:
        return label(resolve_label({"boxes": config.gt, "out": out, **shared}))
    except Interrupted as error:  # it names `label`, and perhaps a folder that is gone by then
        kept = "finished parts" if config.masks else "nothing (with --masks FILE, finished parts)"
        again = dataclasses.replace(config, overwrite=config.overwrite and not config.masks)
        raise Interrupted(
            f"stopped while it labelled the boxes of --gt, {kept} kept; go on with: "
            f"{command_of(again, 'eval')}",
            error.signum,
        ) from None


def _intervals(
    scored: Scored | None,
    aps: Mapping[str, ApResult],
    draws: NDArray[np.uint8],
    frequency: Mapping[int, str],
) -> EvalIntervals | None:
    """Return the 95 % intervals of everything, None without resamples."""
    if len(draws) == 0:
        return None
    bounds: dict[str, dict[str, Interval]] = {}
    for key, value in aps.items():
        known = {**value.stats, **frequency_ap(value, frequency)}
        drawn = resample(value, draws[:AP_RESAMPLES], frequency)
        bounds[key] = {
            name: None if known[name] is None else interval(drawn[name]) for name in drawn
        }
    return EvalIntervals(
        metrics=scored.intervals if scored else None,
        baselines=scored.baseline_intervals if scored else None,
        ap=bounds["ap"],
        box_ap=bounds["box_ap"],
    )


def _retention(
    config: EvalConfig, sides: Sides, ap: ApResult, draws: NDArray[np.uint8]
) -> dict[str, Bounded]:
    """Return 100 * AP over the AP of `--oracle`, on the same resamples."""
    assert config.oracle is not None
    found = Problems()
    results = read_predicted(open_predicted(config.oracle), sides.frame, found)
    if config.strict:
        refuse_problems(config.oracle, found)
    oracle = mask_ap(sides.human, results, len(sides.frame.names), keep_cells=bool(len(draws)))
    few = draws[:AP_RESAMPLES]
    return retention(ap.stats, oracle.stats, resample(ap, few), resample(oracle, few))


def _write_report(
    config: EvalConfig, result: EvalResult, sides: Sides, scored: Scored | None
) -> None:
    assert config.report is not None
    log(f"eval: writing {config.report}")
    histograms: dict[str, dict[str, NDArray[np.float64]]] = {}
    categories, galleries = [], {}
    if scored is not None and len(scored.pairs.human):
        second = result.comparison if isinstance(result.comparison, Comparison) else None
        histograms = _histograms(scored, second)
        iou = scored.scores["pred"]["iou"]
        named = sides.frame.categories
        means = category_means(iou, sides.human.category[scored.pairs.human])
        categories = [Category(named.get(k, str(k)), *means[k]) for k in means]
        galleries = draw_galleries(config, sides, scored, second)
    found = [("", sides.problems)]
    if result.comparison is not None:
        found.append(("--compare: ", result.comparison.problems))
    problems = {
        f"{where}{count} {kind}": some.examples.get(kind, [])
        for where, some in found
        for kind, count in some.counts.items()
    }
    page = eval_page(result.to_json(), histograms, categories, galleries, problems)
    write_page(config.report, page)


def _histograms(
    scored: Scored, comparison: Comparison | None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the IoU of the instances by size and by who made the masks; empty sizes left out."""
    made = {"masks": scored.scores["pred"]["iou"]}
    if comparison is not None:
        made["second masks"] = comparison.second.scores["iou"]
    made |= {"ellipse": scored.scores["ellipse"]["iou"], "filled box": scored.scores["box"]["iou"]}
    size = scored.groups.size
    rows = {"all": size >= 0} | {name: size == n for n, name in enumerate(SIZE_NAMES)}
    return {
        name: {title: iou[some] for title, iou in made.items()}
        for name, some in rows.items()
        if some.any()
    }
