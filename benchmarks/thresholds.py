"""`--threshold auto` beside the checkpoint's thresholds and the best that human masks could choose.

    python benchmarks/thresholds.py --gt instances.json [--images DIR] [--checkpoint FILE]
        [--limit N] [--no-refine]

Runs the network once on the boxes of GT, and prints for three choices of thresholds the mIoU with
the human masks, by size, before the mean field and, unless `--no-refine`, after it. `auto` looks
at boxes alone, as `malcli label --threshold auto` does; `best` takes for each size class the
candidate of the highest mIoU before the mean field on these very masks: an upper bound, not a
choice that anybody could make without them.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import find_images
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pipeline import Pipeline, open_predictor
from malcli.engine.label.predictor import Predictor
from malcli.engine.label.thresholds import CANDIDATES, best_thresholds, box_fit, sample_rows
from malcli.engine.machine.clock import Clock
from malcli.geometry.areas import paste_majority
from malcli.geometry.boxes import SIZE_NAMES, clip_xyxy, xywh_to_xyxy
from malcli.geometry.crops import paste_mask
from malcli.geometry.rle import decode_rle, from_segmentation
from malcli.model.checkpoint import load_checkpoint
from malcli.model.locate import locate_checkpoint
from malcli.records import BoxTable, records_of

BATCH = 16
STAGES = ("read", "decode", "crop", "network", "paste", "encode", "wait")

Floats = NDArray[np.float64]


@dataclasses.dataclass
class Boxes:
    """What the network says of each box, and the human mask of it."""

    rois: list[Roi]
    crops: list[NDArray[np.uint8]]
    probs: list[NDArray[np.float32]]
    parts: list[NDArray[np.bool_]]  # of the human mask, in the box
    areas: list[int]  # of the whole human mask
    fits: list[Floats]

    @property
    def size(self) -> NDArray[np.int64]:
        """Size classes."""
        return np.array([roi.size for roi in self.rois])


def look(table: BoxTable, pipeline: Pipeline) -> Boxes:
    """Run the network on all boxes that have a human mask."""
    found = Boxes([], [], [], [], [], [])
    rows = np.concatenate([boxes.rows for boxes in table.by_image()])
    usable = np.array(table.take(rows, "status")["status"].to_pylist()) == "ok"
    rows = rows[usable]
    human = dict(zip(rows.tolist(), records_of(table, rows), strict=True))
    xyxy = dict(zip(rows.tolist(), xywh_to_xyxy(table.xywh(rows)), strict=True))
    lost: list[Outcome] = []
    for rois, maps, crops_BSS3 in pipeline.maps(rows, BATCH, lost):
        for roi, crop, prob in zip(rois, crops_BSS3, maps[0].float().cpu().numpy(), strict=True):
            rle = from_segmentation(human[roi.row]["segmentation"], roi.image_hw)
            mask = decode_rle(rle).astype(bool)
            x0, y0, x1, y1 = roi.window.tolist()
            around = clip_xyxy(roi.roi.astype(np.float64), roi.image_hw).astype(np.int64)
            box = clip_xyxy(xyxy[roi.row], roi.image_hw) - np.tile(around[:2], 2)
            found.rois.append(roi._replace(image=roi.image[:1, :1]))
            found.crops.append(crop)
            found.probs.append(prob)
            found.parts.append(mask[y0:y1, x0:x1])
            found.areas.append(int(mask.sum()))
            found.fits.append(box_fit(paste_mask(prob, roi.roi, around), box))
    return found


def iou(mask: NDArray[np.bool_], part: NDArray[np.bool_], area: int) -> float:
    """Return the IoU of a mask in a box with a human mask that may go beyond it."""
    shared = int((mask & part).sum())
    return shared / max(1, int(mask.sum()) + area - shared)


def plain(boxes: Boxes) -> Floats:
    """Return the IoU of each box with each candidate, (N, T), before the mean field."""
    rows = []
    for roi, prob, part, area in zip(
        boxes.rois, boxes.probs, boxes.parts, boxes.areas, strict=True
    ):
        pasted = paste_mask(prob, roi.roi, roi.window)
        rows.append([iou(pasted > level, part, area) for level in CANDIDATES])
    return np.array(rows)


def refined(boxes: Boxes, predictor: Predictor, threshold: tuple[float, float, float]) -> Floats:
    """Return the IoU of each box after the mean field, (N,)."""
    predictor.rule = dataclasses.replace(predictor.rule, threshold=threshold, refine="crf")
    found = []
    for begin in range(0, len(boxes.rois), BATCH):
        part = slice(begin, begin + BATCH)
        rois = boxes.rois[part]
        crops = torch.from_numpy(np.stack(boxes.crops[part])).permute(0, 3, 1, 2)
        networks = predictor.networks[crops.shape[-1]]
        image = networks[0].normalise(crops.to(predictor.device))
        logits = torch.from_numpy(np.stack(boxes.probs[part])).to(predictor.device).logit()
        with torch.inference_mode():
            masks = predictor._refined(image, logits, rois).to(torch.uint8).cpu().numpy()
        for roi, mask, human, area in zip(
            rois, masks, boxes.parts[part], boxes.areas[part], strict=True
        ):
            found.append(iou(paste_majority(mask, roi.roi, roi.window), human, area))
    return np.array(found)


def line(values: Floats, size: NDArray[np.int64]) -> str:
    """Return the means of all and of each size class."""
    parts = [values, *(values[size == number] for number in range(len(SIZE_NAMES)))]
    return " ".join(f"{part.mean():7.4f}" if len(part) else "      –" for part in parts)


def main() -> None:
    """Look, choose, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gt", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--no-refine", action="store_true")
    given = parser.parse_args()
    table = select(open_boxes(given.gt), None, given.limit)
    loaded = load_checkpoint(locate_checkpoint(given.checkpoint))
    predictor = open_predictor(
        LabelConfig(boxes=given.gt, refine="none"),
        loaded,
        threshold=loaded.threshold,
        crop_size=loaded.architecture.crop_size,
        precision="auto",
    )
    folder = find_images(given.gt, table, given.images)
    boxes = look(table, Pipeline(table, folder, predictor, Clock(dict.fromkeys(STAGES, 0.0)), 0))
    size, plain_NT = boxes.size, plain(boxes)
    sampled = np.isin([roi.row for roi in boxes.rois], sample_rows(table))
    auto = best_thresholds(size[sampled], np.array(boxes.fits)[sampled]) or loaded.threshold
    best = tuple(
        CANDIDATES[int(plain_NT[size == number].mean(axis=0).argmax())]
        if (size == number).any() else level
        for number, level in enumerate(loaded.threshold)
    )  # fmt: skip
    print(f"{len(size)} boxes; mIoU: all, {', '.join(SIZE_NAMES)}")
    for name, threshold in (("checkpoint's", loaded.threshold), ("auto", auto), ("best", best)):
        levels = np.array([CANDIDATES.index(round(level * 20) / 20) for level in threshold])
        values = plain_NT[np.arange(len(size)), levels[size]]
        said = ", ".join(f"{level:g}" for level in threshold)
        print(f"{name:13} ({said:17})  before mean field {line(values, size)}", flush=True)
        if not given.no_refine:
            print(f"{'':34} after mean field  {line(refined(boxes, predictor, threshold), size)}")


if __name__ == "__main__":
    main()
