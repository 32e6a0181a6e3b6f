"""From boxes to masks: decode, crop, network, paste and encode, side by side.

Threads decode, crop and encode while the main thread feeds the network; all of them keep the order
of the boxes, so results do not depend on the threads. Knows nothing of outputs.

Shape suffixes: B crops, C channels, S crop pixels, G score grid.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi, crop_batch, image_rois
from malcli.data.images.decode import decode_image
from malcli.data.images.find import ImageFolder, image_path
from malcli.engine.inputs import workers_of
from malcli.engine.label.crop_sizes import crop_sides, same_sided, side_of
from malcli.engine.label.job import Manifest
from malcli.engine.label.parts import Outcome
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.processes import choose_compile, choose_device, choose_precision
from malcli.errors import BadImage, RunError
from malcli.geometry.areas import paste_majority
from malcli.geometry.boxes import roi_frame
from malcli.geometry.crops import paste_mask, resize
from malcli.geometry.released import paste_bilinear
from malcli.geometry.rle import empty_rle, encode_crop
from malcli.metrics.confidence import evidence, predict_iou
from malcli.model.checkpoint import Checkpoint
from malcli.records import STATUS_EMPTY, STATUS_OK, BoxTable
from malcli.report.progress import log

EVIDENCE_SIDE = 32  # the score's weights were fitted at this side; finer maps only cost time
FINISHED_AT_ONCE = 8  # boxes whose masks are in memory together: of large images they are large
BATCHES_AHEAD = 2  # cropped before and encoded after the batch in the network

Item = TypeVar("Item")
Made = TypeVar("Made")


def open_pipeline(
    config: LabelConfig,
    manifest: Manifest,
    checkpoint: Checkpoint,
    table: BoxTable,
    folder: ImageFolder,
    clock: Clock,
) -> "Pipeline":
    """Put the network on its device and start the threads.

    Args:
        config: What the user wants.
        manifest: What the first start of the job decided.
        checkpoint: Its networks move to the device.
        table: The boxes.
        folder: Their images.
        clock: Where the seconds are counted.

    Raises:
        ConfigError: The device is not there, or cannot take the job's precision.
    """
    predictor = open_predictor(
        config,
        checkpoint,
        threshold=manifest.threshold,
        crop_size=manifest.crop_size,
        precision=manifest.precision,
    )
    sides = " or ".join(f"{side} x {side}" for side in predictor.rule.sides)
    size = f"{manifest.batch_size} crops of {sides} pixels"
    log(f"label: {predictor.device}, {manifest.precision}, batches of {size}")
    return Pipeline(table, folder, predictor, clock, workers_of(config))


def open_predictor(
    config: LabelConfig,
    checkpoint: Checkpoint,
    *,
    threshold: tuple[float, float, float],
    crop_size: int | str,
    precision: str,
) -> Predictor:
    """Put the network on its device.

    Args:
        config: What the user wants.
        checkpoint: Its networks move to the device.
        threshold: As in `Manifest`; with `crop_size` and `precision`, in place of the user's.
        crop_size: As in `Manifest`.
        precision: As in `Manifest`.

    Raises:
        ConfigError: The device is not there, or cannot take the precision.
    """
    native, stride = checkpoint.architecture.crop_size, checkpoint.student.encoder.stride
    *smaller, largest = crop_sides(crop_size, native, stride)
    rule = LabelRule(
        network=config.network,
        tta=config.tta,
        refine=config.refine,
        threshold=threshold,
        crop_size=largest,
        margin=config.margin,
        min_score=config.min_score or 0.0,
        max_pixels=config.max_pixels,
        geometry=config.geometry,
        smaller_crops=tuple(smaller),
    )
    device = choose_device(config.device)
    compiled = choose_compile(config.compile, device)
    return Predictor(checkpoint, rule, device, choose_precision(precision, device), compiled)


def evidence_of(
    rois: Sequence[Roi], prob_BGG: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return what the scores of boxes are made of, read at a side of `EVIDENCE_SIDE` at most."""
    side = min(prob_BGG.shape[-1], EVIDENCE_SIDE)
    coarse_BGG = np.stack([resize(prob_GG, (side, side)) for prob_GG in prob_BGG])
    roi_B4, window_B4 = (np.stack([getattr(roi, key) for roi in rois]) for key in ("roi", "window"))
    box_B4 = roi_frame(window_B4.astype(np.float64), roi_B4)
    return evidence(coarse_BGG, box_B4, np.array([roi.overlap for roi in rois]))


class Pipeline:
    """Labels boxes of a table.

    Args:
        table: The boxes; its `problems` get the images that cannot be read.
        folder: Their images.
        predictor: The network.
        clock: Where the seconds are counted.
        workers: Threads that decode, crop and encode; 0: the main thread does it all.
    """

    def __init__(
        self, table: BoxTable, folder: ImageFolder, predictor: Predictor, clock: Clock, workers: int
    ) -> None:
        """Start the threads."""
        self.table = table
        self.folder = folder
        self.predictor = predictor
        self.rule = predictor.rule
        self.clock = clock
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "malcli") if workers else None
        self._free: list[NDArray[np.uint8]] = []  # crops that are done with
        self._cv2_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the threads here keep the cores busy; OpenCV's own only wait

    def close(self) -> None:
        """End the threads."""
        cv2.setNumThreads(self._cv2_threads)
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def label(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[list[Outcome]]:
        """Yield what became of each of the boxes, batch by batch, in no fixed order.

        Args:
            rows: Rows of boxes, those of an image next to each other; they alone and the batch
                size decide which boxes share a batch.
            batch_size: Crops per network call.

        Raises:
            torch.OutOfMemoryError: The device cannot hold a batch of more than one crop.
            RunError: The network gives values that are no numbers.
        """
        with self.clock.cpu("read"):
            status = self.table.take(rows, "status")["status"].to_pylist()
        usable = np.array([text == STATUS_OK for text in status], dtype=bool)
        skipped = [Outcome(int(row), text) for row, text in zip(rows, status, strict=True)]
        yield [outcome for outcome in skipped if outcome.status != STATUS_OK]
        lost: list[Outcome] = []
        maps = self.maps(rows[usable], batch_size, lost)
        yield from self._ahead(self._finish, maps, BATCHES_AHEAD)
        yield lost

    def maps(
        self, rows: NDArray[np.int64], batch_size: int, lost: list[Outcome]
    ) -> Iterator[tuple[list[Roi], list[Tensor], NDArray[np.uint8]]]:
        """Yield maps and crops of boxes that can be labelled; the others go to `lost`.

        As in `label`; no map at all: the device cannot hold even one crop.
        """
        images = self._ahead(self._decode, self._images(rows), self._workers + 1)
        batches = same_sided(self._rois(images, lost), self.rule.sides, batch_size)
        return map(self._predict, self._ahead(self._crop, batches, BATCHES_AHEAD))

    def _images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each image with the rows of its boxes."""
        image = np.asarray(self.table.take(rows, "image")["image"])
        cuts = np.flatnonzero(np.diff(image)) + 1
        for begin, end in pairwise([0, *cuts, len(rows)]):
            if end > begin:
                yield int(image[begin]), rows[begin:end]

    def _decode(
        self, job: tuple[int, NDArray[np.int64]]
    ) -> tuple[list[Roi], NDArray[np.int64], BadImage | None]:
        """Return the RoIs of an image's boxes, or no RoIs, the rows and why they are lost."""
        number, rows = job
        record = self.table.images.slice(number, 1).to_pylist()[0]
        name, hw = record["file_name"], (record["height"], record["width"])
        with self.clock.cpu("decode"):
            try:
                image = decode_image(image_path(self.folder.root, name), hw, self.rule.max_pixels)
            except BadImage as error:
                return [], rows, error
        with self.clock.cpu("crop"):
            rois = image_rois(
                image,
                rows,
                self.table.xywh(rows),
                self.rule.margin,
                self.rule.geometry,
                self.predictor.size_classes,
            )
            return rois, rows, None

    def _rois(
        self,
        images: Iterable[tuple[list[Roi], NDArray[np.int64], BadImage | None]],
        lost: list[Outcome],
    ) -> Iterator[Roi]:
        """Yield the RoIs of all images; boxes of unreadable ones go to `lost`."""
        for rois, rows, error in images:
            yield from rois
            if error:
                self.table.problems.add(f"{error.status}-file", str(error))
                lost += [Outcome(int(row), f"skipped:{error.status}") for row in rows]

    def _crop(self, rois: list[Roi]) -> tuple[list[Roi], NDArray[np.uint8]]:
        with self.clock.cpu("crop"):
            side = side_of(rois[0], self.rule.sides)
            try:
                memory = self._free.pop()
            except IndexError:  # asking first would race with the other threads
                memory = None
            return rois, crop_batch(rois, side, self.rule.border, memory)

    def _predict(
        self, batch: tuple[list[Roi], NDArray[np.uint8]]
    ) -> tuple[list[Roi], list[Tensor], NDArray[np.uint8]]:
        """Return the network's maps; none if the device cannot hold even one crop."""
        rois, crops_BSS3 = batch
        with self.clock.wall("network"):
            try:
                return rois, self.predictor(crops_BSS3, rois), crops_BSS3
            except torch.OutOfMemoryError:
                if len(rois) > 1:
                    raise
                return rois, [], crops_BSS3

    def _finish(self, batch: tuple[list[Roi], list[Tensor], NDArray[np.uint8]]) -> list[Outcome]:
        """Return the outcome of each box of a batch."""
        rois, maps, crops_BSS3 = batch
        if not maps:
            return [Outcome(roi.row, "skipped:memory") for roi in rois]
        with self.clock.wall("network"):
            arrays = [maps[0].float().cpu().numpy()]
            arrays += [refined.to(torch.uint8).cpu().numpy() for refined in maps[1:]]
        if not np.isfinite(arrays[0]).all():
            raise RunError(
                "the network gave values that are no numbers; --precision fp32 avoids overflow, "
                "else the checkpoint is damaged"
            )
        outcomes: list[Outcome] = []
        for begin in range(0, len(rois), FINISHED_AT_ONCE):
            some = slice(begin, begin + FINISHED_AT_ONCE)
            outcomes += self._outcomes(rois[some], [array[some] for array in arrays])
        self._free.append(crops_BSS3)
        return outcomes

    def _outcomes(self, rois: list[Roi], maps: list[NDArray[Any]]) -> list[Outcome]:
        """Return boxes' masks and scores."""
        with self.clock.cpu("paste"):
            masks = [self._mask(*each) for each in zip(rois, *maps, strict=True)]
            areas = [int(np.count_nonzero(mask)) for mask in masks]
            scores = self._scores(rois, maps[0], masks)
        with self.clock.cpu("encode"):
            return [self._outcome(*each) for each in zip(rois, masks, areas, scores, strict=True)]

    def _mask(
        self, roi: Roi, prob_GG: NDArray[np.float32], refined_SS: NDArray[np.uint8] | None = None
    ) -> NDArray[np.bool_]:
        """Return a box's mask, (h, w) of its window."""
        released = self.rule.geometry == "released"
        if refined_SS is None:
            paste = paste_bilinear if released else paste_mask
            mask: NDArray[np.bool_] = (
                paste(prob_GG, roi.roi, roi.window) > self.rule.threshold[roi.size]
            )
            return mask
        if released:
            half: NDArray[np.bool_] = (
                paste_bilinear(refined_SS.astype(np.float32), roi.roi, roi.window) > 0.5
            )
            return half
        return paste_majority(refined_SS, roi.roi, roi.window)

    def _scores(
        self,
        rois: list[Roi],
        prob_BGG: NDArray[np.float32],
        masks: list[NDArray[np.bool_]],
    ) -> list[float]:
        """Return the estimated IoUs of masks, or under `released` their mean probabilities."""
        if self.rule.geometry != "released":
            score_B = predict_iou(evidence_of(rois, prob_BGG))
            return [float(score) for score in score_B]
        pasted = [
            paste_bilinear(prob_GG, roi.roi, roi.window)
            for prob_GG, roi in zip(prob_BGG, rois, strict=True)
        ]
        return [
            float(prob[mask].mean(dtype=np.float64)) if mask.any() else 0.0
            for prob, mask in zip(pasted, masks, strict=True)
        ]

    def _outcome(self, roi: Roi, mask: NDArray[np.bool_], area: int, score: float) -> Outcome:
        """Return what becomes of a box."""
        score = round(score, 6)
        if not area or score < self.rule.min_score:
            counts = empty_rle(roi.image_hw)["counts"]
            return Outcome(roi.row, STATUS_EMPTY, *roi.image_hw, counts, 0, 0.0)
        rle = encode_crop(mask, int(roi.window[0]), int(roi.window[1]), roi.image_hw)
        return Outcome(roi.row, STATUS_OK, *roi.image_hw, rle["counts"], area, score)

    def _ahead(
        self, work: Callable[[Item], Made], items: Iterable[Item], count: int
    ) -> Iterator[Made]:
        """Yield work(item) of each item in order, up to `count` items at work in the threads."""
        if self._pool is None:
            yield from map(work, items)
            return
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > count:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, future: "Future[Made]") -> Made:
        if future.done():
            return future.result()
        with self.clock.wall("wait"):
            return future.result()
