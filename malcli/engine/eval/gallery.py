"""The pictures of `eval`'s report: which instances are shown, and what stands beside them."""

import numpy as np
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.compare import EQUAL, Comparison
from malcli.engine.eval.pair_scores import Scored
from malcli.engine.eval.read_instances import Sides
from malcli.records import Rle
from malcli.report.plots import (
    HUMAN,
    MALCLI,
    SECOND,
    Colour,
    Example,
    Subject,
    draw_subjects,
    photo_reader,
)
from malcli.report.progress import log

SHOWN = 12  # pictures a gallery

Rows = NDArray[np.int64]


def draw_galleries(
    config: EvalConfig, sides: Sides, scored: Scored, comparison: Comparison | None
) -> dict[str, list[Example]]:
    """Return the pictures by title, human mask first, those of `--compare` before the others.

    Args:
        config: For the image folder.
        sides: What was compared.
        scored: The scores that pictures are chosen by.
        comparison: A second file of masks, drawn third.
    """
    chosen = {} if comparison is None else _changed(comparison)
    chosen |= _chosen(sides, scored)
    read = photo_reader(sides.table, config.images, config.max_pixels, log, config.exif)
    return {
        title: draw_subjects([_subject(int(n), sides, scored, comparison) for n in rows], read)
        for title, rows in chosen.items()
    }


def _chosen(sides: Sides, scored: Scored) -> dict[str, Rows]:
    """Return the instances to show of those with a mask: by IoU, and by the labeler's doubt."""
    rles, partner = sides.predicted.rles, scored.pairs.predicted
    iou = scored.scores["pred"]["iou"]
    drawn = np.array([n for n, j in enumerate(partner) if j >= 0 and rles[j]], dtype=np.int64)
    order = drawn[np.argsort(iou[drawn], kind="stable")]
    middle = max(0, (len(order) - SHOWN) // 2)
    chosen = {
        "Worst": order[:SHOWN],
        "Median": order[middle : middle + SHOWN],
        "Best": order[::-1][:SHOWN],
    }
    score = sides.predicted.score[partner[drawn]]
    if len(np.unique(score)) > 1:  # without scores all are 1
        chosen["Most uncertain"] = drawn[np.argsort(score, kind="stable")][:SHOWN]
    return chosen


def _changed(comparison: Comparison) -> dict[str, Rows]:
    """Return the instances whose IoU changed most."""
    change = comparison.change
    order = np.argsort(change, kind="stable")
    return {
        "Most improved by the second masks": order[::-1][: (change > EQUAL).sum()][:SHOWN],
        "Most worsened by the second masks": order[: (change < -EQUAL).sum()][:SHOWN],
    }


def _subject(n: int, sides: Sides, scored: Scored, comparison: Comparison | None) -> Subject:
    human, predicted, frame = sides.human, sides.predicted, sides.frame
    i, j = int(scored.pairs.human[n]), int(scored.pairs.predicted[n])
    row = int(human.image[i])
    name = frame.categories.get(int(human.category[i]), str(human.category[i]))
    iou = f"IoU {scored.scores['pred']['iou'][n]:.3f}"
    masks: list[tuple[Rle | None, Colour]] = [
        (human.rles[i], HUMAN),
        (predicted.rles[j] if j >= 0 else None, MALCLI),
    ]
    if comparison is not None:
        other = int(comparison.second.pairs.predicted[n])
        masks.append((comparison.predicted.rles[other] if other >= 0 else None, SECOND))
        iou += f" → {comparison.second.scores['iou'][n]:.3f}"
    score = f", score {predicted.score[j]:.2f}" if j >= 0 else ""
    return Subject(
        file_name=frame.names[row],
        image_hw=frame.sizes_hw[row],
        xywh=human.xywh[i],
        masks=tuple(masks),
        caption=(f"{iou}{score}, {name}", f"id {human.ids[i]}, {frame.names[row]}"),
    )
