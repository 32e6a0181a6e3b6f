"""How well `malcli_score` tells the IoU with human masks, beside the mean probability of the mask.

    python benchmarks/score.py GT.json [--images DIR] [--checkpoint FILE] [--limit N] [--fit]

Labels the boxes of GT with the defaults of `malcli label`, compares with its human masks, and
prints for both scores: rank correlation with the IoU, how well masks below 0.6 are told, the mean
distance from the diagonal of the reliability diagram, what the mean IoU gains when the least sure
tenth, fifth or third are dropped, and the diagram itself, as a bar of the mean IoU for each tenth
of the score. `--fit` also prints the weights that GT's masks give, and their measures with
cross-validation by image: how `malcli.metrics.confidence.WEIGHTS` were made.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.config import LabelConfig
from malcli.data.formats import open_boxes, select
from malcli.data.images import find_images
from malcli.data.rois import Roi
from malcli.engine.inference import Road, Watch, open_predictor
from malcli.engine.jobs import Job, Manifest
from malcli.engine.parts import Outcome
from malcli.geometry.boxes import roi_frame
from malcli.geometry.crops import paste_mask
from malcli.geometry.rle import from_segmentation, paired_iou
from malcli.metrics.confidence import EVIDENCE, evidence, fit_weights, measure_score, predict_iou
from malcli.model.checkpoint import load_checkpoint
from malcli.model.locate import locate_checkpoint
from malcli.records import records_of

STAGES = ("read", "decode", "crop", "network", "paste", "encode", "wait")
FOLDS = 5
BATCH = 16

Columns = dict[str, NDArray[np.float64]]


class Recorder(Road):
    """Labels as `label` does, and keeps what the score is made of."""

    kept: dict[int, list[float]]

    def _score(self, roi: Roi, prob_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
        prob = paste_mask(prob_map, roi.roi, roi.window)
        box = roi_frame(roi.window.astype(np.float64), roi.roi)
        found = evidence(prob_map, box, roi.overlap)
        self.kept[roi.row] = [found[name] for name in EVIDENCE] + [float(prob[mask].mean())]
        return super()._score(roi, prob_map, mask)


def measure(gt: Path, images: Path | None, checkpoint: Path | None, limit: int | None) -> Columns:
    """Return columns of all labelled masks: evidence, `mean`, `score`, `iou` and `image`."""
    table = select(open_boxes(gt), None, limit)
    folder = find_images(gt, table, images)
    loaded = load_checkpoint(locate_checkpoint(checkpoint))
    size = loaded.architecture.crop_size
    job = Job("", "", {})
    manifest = Manifest(job, table.boxes.num_rows, 1, BATCH, "auto", loaded.threshold, size)
    watch = Watch(dict.fromkeys(STAGES, 0.0))
    predictor = open_predictor(LabelConfig(boxes=gt), manifest, loaded)
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
    columns["score"] = np.array([one.score for one in outcomes])
    columns["iou"] = paired_iou(human, made)
    columns["image"] = np.asarray(table.take(rows, "image")["image"]).astype(np.float64)
    return columns


def cross_validated(columns: Columns) -> NDArray[np.float64]:
    """Return scores of masks by weights that were fitted without the masks of their image."""
    evidence_NK = np.stack([columns[name] for name in EVIDENCE], axis=1)
    images, place = np.unique(columns["image"], return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(images))[place] % FOLDS
    score = np.zeros(len(fold))
    for number in range(FOLDS):
        rest = fold != number
        weights = fit_weights(evidence_NK[rest], columns["iou"][rest], EVIDENCE)
        for row in np.flatnonzero(~rest):
            score[row] = predict_iou(dict(zip(EVIDENCE, evidence_NK[row], strict=True)), weights)
    return score


def show(title: str, score: NDArray[np.float64], iou: NDArray[np.float64]) -> None:
    """Print the measures of a score and its reliability diagram."""
    found = measure_score(score, iou)
    gain = ", ".join(f"{float(s):.0%} {value:+.3f}" for s, value in found["gain"].items())
    print(
        f"{title}: {len(iou)} masks, mean IoU {found['mean_iou']:.3f}; Spearman "
        f"{found['spearman']:.3f}, AUROC (IoU < 0.6) {found['auroc']:.3f}, gap {found['gap']:.3f}; "
        f"dropped {gain}"
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
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    columns = measure(given.gt, given.images, given.checkpoint, given.limit)
    show("mean probability", columns["mean"], columns["iou"])
    show("malcli_score", columns["score"], columns["iou"])
    if given.fit:
        show("fitted here, cross-validated", cross_validated(columns), columns["iou"])
        evidence_NK = np.stack([columns[name] for name in EVIDENCE], axis=1)
        print(fit_weights(evidence_NK, columns["iou"], EVIDENCE))


if __name__ == "__main__":
    main()
