"""How well `malcli_score` tells the IoU with human masks; and where its weights come from.

    python benchmarks/score.py instances_val.json --images images
    python benchmarks/score.py instances_val.json --images images --fit instances_train.json --write

Labels the boxes of the file with the defaults of `malcli label`, compares with its human masks, and
prints, for the mean probability in the mask and for the score: rank correlation with the IoU, how
well masks below 0.6 are told, the mean distance from the diagonal of the reliability diagram, what
the mean IoU gains when the least sure 10, 20 or 30 % are dropped, and the diagram itself, as a bar
of the mean IoU for each tenth of the score.

`--fit TRAIN` fits the weights anew, to TRAIN's masks alone: evidence is left out as long as that
costs nothing in cross-validation by photograph, then the rest is fitted to all of TRAIN, and the
first file is measured by these weights. `--write` puts them into malcli/metrics/score_weights.py.
After a labeler that ships is trained anew, the second command is the one to run.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import find_images
from malcli.engine.label.mask_maker import evidence_of
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pipeline import Pipeline, open_predictor
from malcli.engine.machine.clock import Clock
from malcli.geometry.crops import paste_mask
from malcli.geometry.rle import from_segmentation, paired_iou
from malcli.metrics import score_weights
from malcli.metrics.confidence import (
    EVIDENCE,
    POOR_IOU,
    auroc,
    fit_weights,
    measure_score,
    predict_iou,
    spearman,
)
from malcli.metrics.score_weights import WEIGHTS
from malcli.model.checkpoint import load_checkpoint
from malcli.model.locate import locate_checkpoint
from malcli.records import records_of

STAGES = ("read", "decode", "crop", "network", "paste", "encode", "wait")
FOLDS, REPEATS = 5, 3
RESAMPLES = 200
WORTH = 0.002  # of rank correlation plus AUROC: less than this is not worth a weight
WEIGHTS_FILE = Path(score_weights.__file__)
BATCH = 16

Columns = dict[str, NDArray[np.float64]]


class Recorder(Pipeline):
    """Labels as `label` does, and keeps what the score is made of."""

    kept: dict[int, list[float]]

    def _scores(
        self,
        rois: list[Roi],
        prob_BGG: NDArray[np.float32],
        masks: list[NDArray[np.bool_]],
    ) -> list[float]:
        found = evidence_of(rois, prob_BGG)
        for place, (roi, mask) in enumerate(zip(rois, masks, strict=True)):
            prob = paste_mask(prob_BGG[place], roi.roi, roi.window)
            mean = float(prob[mask].mean()) if mask.any() else 0.0
            self.kept[roi.row] = [float(found[name][place]) for name in EVIDENCE] + [mean]
        return super()._scores(rois, prob_BGG, masks)


def measure(gt: Path, images: Path | None, checkpoint: Path | None, limit: int | None) -> Columns:
    """Return columns of all labelled masks: evidence, `mean`, `iou` and `image`."""
    table = select(open_boxes(gt), None, limit)
    folder = find_images(gt, table, images)
    loaded = load_checkpoint(locate_checkpoint(checkpoint))
    size = loaded.architecture.crop_size
    watch = Clock(dict.fromkeys(STAGES, 0.0))
    fixed: dict[str, Any] = {"threshold": loaded.threshold, "crop_size": size, "precision": "auto"}
    predictor = open_predictor(LabelConfig(boxes=gt), loaded, **fixed)
    recorder = Recorder(table, folder, predictor, watch, 0)
    recorder.kept = {}
    rows = np.concatenate([boxes.rows for boxes in table.by_image()])
    outcomes = [one for batch in recorder.label(rows, BATCH) for one in batch if one.area]
    return compared(table, outcomes, recorder.kept)


def compared(table: Any, outcomes: list[Outcome], kept: dict[int, list[float]]) -> Columns:  # noqa: ANN401
    """Return the columns of `measure`."""
    rows = np.array([one.row for one in outcomes])
    made = [{"size": [one.height, one.width], "counts": one.counts} for one in outcomes]
    human = [
        from_segmentation(record["segmentation"], (one.height, one.width))
        for record, one in zip(records_of(table, rows), outcomes, strict=True)
    ]
    names = (*EVIDENCE, "mean")
    columns = dict(zip(names, np.array([kept[row] for row in rows.tolist()]).T, strict=True))
    columns["iou"] = paired_iou(human, made)
    columns["image"] = np.asarray(table.take(rows, "image")["image"]).astype(np.float64)
    return columns


def scores_of(columns: Columns, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the scores of all masks by given weights."""
    return predict_iou({name: columns[name] for name in EVIDENCE}, weights)


def cross_validated(columns: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    """Return scores (REPEATS, N) by weights that were fitted without the masks of their image."""
    evidence_NK = np.stack([columns[name] for name in names], axis=1)
    images, place = np.unique(columns["image"], return_inverse=True)
    score = np.zeros((REPEATS, len(place)))
    for repeat in range(REPEATS):
        fold = np.random.default_rng(repeat).permutation(len(images))[place] % FOLDS
        for number in range(FOLDS):
            rest = fold != number
            weights = fit_weights(evidence_NK[rest], columns["iou"][rest], names)
            of_fold = {name: columns[name][~rest] for name in (*EVIDENCE, "iou")}
            score[repeat, ~rest] = scores_of(of_fold, weights)
    return score


def worth(columns: Columns, names: Sequence[str]) -> float:
    """Return rank correlation plus AUROC of some evidence, cross-validated."""
    iou = columns["iou"]
    return float(
        np.mean(
            [
                (spearman(score, iou) or 0) + (auroc(score, iou < POOR_IOU) or 0)
                for score in cross_validated(columns, names)
            ]
        )
    )


def choose(columns: Columns) -> tuple[str, ...]:
    """Return the evidence that cross-validation keeps, dropping the least useful first."""
    names = EVIDENCE
    value = worth(columns, names)
    while len(names) > 1:
        shorter = {name: tuple(one for one in names if one != name) for name in names}
        left = {name: worth(columns, rest) for name, rest in shorter.items()}
        name = max(left, key=left.__getitem__)
        print(f"of {', '.join(names)}: {value:.4f}; without {name} {left[name]:.4f}", flush=True)
        if left[name] < value - WORTH:
            break
        names, value = shorter[name], left[name]
    return names


def fit(columns: Columns) -> dict[str, float]:
    """Choose evidence and fit its weights; print what cross-validation says of them."""
    names = choose(columns)
    show("fitted, cross-validated", cross_validated(columns, names)[0], columns)
    evidence_NK = np.stack([columns[name] for name in names], axis=1)
    return fit_weights(evidence_NK, columns["iou"], names)


def write(weights: Mapping[str, float]) -> None:
    """Put weights into malcli's source."""
    text = WEIGHTS_FILE.read_text(encoding="utf-8")
    lines = "".join(f'    "{name}": {value:.4f},\n' for name, value in weights.items())
    begin = text.index("WEIGHTS = {")
    WEIGHTS_FILE.write_text(f"{text[:begin]}WEIGHTS = {{\n{lines}}}\n", encoding="utf-8")
    print(f"written to {WEIGHTS_FILE}")


def spread(score: NDArray[np.float64], columns: Columns) -> str:
    """Return the 95 % intervals of rank correlation and AUROC over photographs."""
    images, place = np.unique(columns["image"], return_inverse=True)
    rows = [np.flatnonzero(place == number) for number in range(len(images))]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rows[n] for n in rng.integers(len(images), size=len(images))])
        iou = columns["iou"][drawn]
        found.append((spearman(score[drawn], iou), auroc(score[drawn], iou < POOR_IOU)))
    low, high = np.nanpercentile(np.array(found, dtype=float), [2.5, 97.5], axis=0)
    parts = zip(("Spearman", "AUROC"), low, high, strict=True)
    return ", ".join(f"{name} {a:.3f} to {b:.3f}" for name, a, b in parts)


def show(title: str, score: NDArray[np.float64], columns: Columns) -> None:
    """Print the measures of a score and its reliability diagram."""
    iou = columns["iou"]
    found = measure_score(score, iou)
    gain = ", ".join(f"{float(s):.0%} {value:+.3f}" for s, value in found["gain"].items())
    print(
        f"{title}: {len(iou)} masks, mean IoU {found['mean_iou']:.3f}; Spearman "
        f"{found['spearman']:.3f}, AUROC (IoU < 0.6) {found['auroc']:.3f}, gap {found['gap']:.3f}; "
        f"dropped {gain} (95 % over photographs: {spread(score, columns)})"
    )
    for row in found["bins"]:
        bar = "#" * round(40 * row["iou"])
        print(
            f"  {row['low']:.1f}-{row['high']:.1f} {row['masks']:6d}  score {row['score']:.3f}  "
            f"IoU {row['iou']:.3f} {bar}"
        )


def main() -> None:
    """Label, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gt", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--fit", type=Path, metavar="TRAIN")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    shared = given.images, given.checkpoint, given.limit
    weights: Mapping[str, float] = WEIGHTS
    if given.fit:
        weights = fit(measure(given.fit, *shared))
        print({name: round(value, 4) for name, value in weights.items()})
    columns = measure(given.gt, *shared)
    show(f"{given.gt.name}, mean probability", columns["mean"], columns)
    show(f"{given.gt.name}, malcli_score", scores_of(columns, weights), columns)
    if given.fit and given.write:
        write(weights)


if __name__ == "__main__":
    main()
