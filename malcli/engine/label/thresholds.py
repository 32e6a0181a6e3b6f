"""Mask thresholds from boxes alone (`--threshold auto`): those whose masks fit their boxes best.

A mask that may leave its box has a tight box of its own: the higher the threshold, the smaller. The
threshold is right where that box and the given one agree best. No human mask is read.
"""

import dataclasses

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from malcli.config.label import LabelConfig
from malcli.data.images.find import ImageFolder
from malcli.engine.inputs import workers_of
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pipeline import Pipeline, open_predictor
from malcli.engine.machine.clock import Clock
from malcli.geometry.boxes import SIZE_NAMES, FloatArray, clip_xyxy, xywh_to_xyxy
from malcli.geometry.crops import paste_mask
from malcli.model.checkpoint import Checkpoint
from malcli.records import STATUS_OK, BoxTable, Problems
from malcli.report.progress import log

CANDIDATES = tuple(step / 20 for step in range(1, 20))
SAMPLED = 512  # boxes
# A size class counts its own boxes and so many like the mean of all: few boxes are mostly noise.
BORROWED = 16

Thresholds = tuple[float, float, float]


def auto_thresholds(
    config: LabelConfig,
    checkpoint: Checkpoint,
    table: BoxTable,
    folder: ImageFolder,
    *,
    batch_size: int,
    precision: str,
    crop_size: int | str,
) -> Thresholds:
    """Return the thresholds for small, medium and large boxes that fit a sample of boxes best.

    Probabilities are those of `label` before the mean field, in malcli's own geometry; each size
    class takes the candidate with the largest mean IoU of boxes, of equal ones the lowest.

    Args:
        config: How to label.
        checkpoint: Its networks move to the device; its thresholds hold if no box can be read.
        table: The boxes.
        folder: Their images.
        batch_size: Crops per network call, the number to start with.
        precision: As in `Manifest`.
        crop_size: As in `Manifest`.

    Raises:
        ConfigError: The device is not there.
    """
    config = dataclasses.replace(config, refine="none", geometry="exact")
    seconds = dict.fromkeys(("read", "decode", "crop", "network", "wait"), 0.0)
    table = dataclasses.replace(table, problems=Problems())  # `label` itself will count them
    rows = sample_rows(table)
    predictor = open_predictor(
        config,
        checkpoint,
        threshold=checkpoint.threshold,
        crop_size=crop_size,
        precision=precision,
    )
    pipeline = Pipeline(table, folder, predictor, Clock(seconds), workers_of(config))
    try:
        while (measured := _measure(pipeline, rows, batch_size)) is None:
            batch_size = max(1, batch_size // 2)
    finally:
        pipeline.close()
    size, fit_NT = measured
    found = best_thresholds(size, fit_NT) or checkpoint.threshold
    said = ", ".join(f"{name} {value:g}" for name, value in zip(SIZE_NAMES, found, strict=True))
    log(f"thresholds that fit {len(size)} boxes best: {said}")
    return found


def sample_rows(table: BoxTable, count: int = SAMPLED) -> NDArray[np.int64]:
    """Return up to `count` rows of boxes that can be labelled, drawn at random, image by image.

    The draw is the same for equal tables. Reads the table in bounded memory.
    """
    rng = np.random.default_rng(0)
    rows, keys = np.zeros(0, dtype=np.int64), np.zeros(0)
    begin = 0
    for batch in table.batches("status"):
        usable = np.asarray(pc.equal(batch["status"], STATUS_OK)).astype(bool)
        key = rng.random(len(usable))[usable]
        rows = np.concatenate([rows, begin + np.flatnonzero(usable)])
        keys = np.concatenate([keys, key])
        kept = np.argsort(keys, kind="stable")[:count]
        rows, keys = rows[kept], keys[kept]
        begin += len(usable)
    rows = np.sort(rows)
    image = np.asarray(table.take(rows, "image")["image"])
    return rows[np.argsort(image, kind="stable")]


def box_fit(prob: NDArray[np.float32], box: FloatArray) -> FloatArray:
    """Return how well the tight box of each candidate's mask fits a box: IoUs, (T,).

    Args:
        prob: (h, w) probabilities of pixels.
        box: (4,) x0 y0 x1 y1 among them.
    """
    highest = (prob.max(axis=0), prob.max(axis=1))
    found = np.zeros(len(CANDIDATES))
    for number, threshold in enumerate(CANDIDATES):
        columns, rows = (np.flatnonzero(values > threshold) for values in highest)
        if len(columns):
            tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
            found[number] = _box_iou(tight, box)
    return found


def best_thresholds(size: NDArray[np.int64], fit_NT: FloatArray) -> Thresholds | None:
    """Return the best candidate of each size class, the lowest of equal ones; None without boxes.

    Args:
        size: (N,) size classes.
        fit_NT: (N, T) of `box_fit`.
    """
    if not len(size):
        return None
    shared = BORROWED * fit_NT.mean(axis=0)
    totals = [fit_NT[size == number].sum(axis=0) + shared for number in range(3)]
    small, medium, large = (CANDIDATES[int(np.argmax(total.round(9)))] for total in totals)
    return small, medium, large


def _measure(
    pipeline: Pipeline, rows: NDArray[np.int64], batch_size: int
) -> tuple[NDArray[np.int64], FloatArray] | None:
    """Return size classes (N,) and fits (N, T) of the boxes whose image can be read.

    None if a batch does not fit into memory.
    """
    xyxy = dict(zip(rows.tolist(), xywh_to_xyxy(pipeline.table.xywh(rows)), strict=True))
    lost: list[Outcome] = []
    size: list[int] = []
    fits: list[FloatArray] = []
    try:
        for rois, maps, _ in pipeline.maps(rows, batch_size, lost):
            if not maps:
                continue
            for roi, prob_GG in zip(rois, maps[0].float().cpu().numpy(), strict=True):
                part = clip_xyxy(roi.roi.astype(np.float64), roi.image_hw).astype(np.int64)
                box = clip_xyxy(xyxy[roi.row], roi.image_hw) - np.tile(part[:2], 2)
                size.append(roi.size)
                fits.append(box_fit(paste_mask(prob_GG, roi.roi, part), box))
    except torch.OutOfMemoryError:
        return None
    return np.array(size, dtype=np.int64), np.array(fits).reshape(len(size), len(CANDIDATES))


def _box_iou(a: FloatArray, b: FloatArray) -> float:
    """Return the IoU of two boxes with area, (4,) corners."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    return shared / (sum(areas) - shared)
