"""From RoIs to masks: crop, network, paste and encode, side by side.

Threads crop and encode while the caller's thread feeds the network; all of them keep the order of
the boxes, so results do not depend on the threads. Knows nothing of files or tables.

Shape suffixes: B crops, C channels, S crop pixels, G score grid.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from malcli.data.crops.label_crops import Roi, crop_batch, image_rois
from malcli.engine.label.crop_sizes import same_sided, side_of
from malcli.engine.label.parts import Outcome
from malcli.engine.label.predictor import Predictor
from malcli.engine.machine.clock import Clock
from malcli.errors import RunError
from malcli.geometry.areas import paste_majority
from malcli.geometry.boxes import roi_frame
from malcli.geometry.crops import paste_mask, resize
from malcli.geometry.released import paste_bilinear
from malcli.geometry.rle import empty_rle, encode_crop
from malcli.metrics.confidence import evidence, predict_iou
from malcli.records import NO_MEMORY, STATUS_EMPTY, STATUS_OK, skipped

EVIDENCE_SIDE = 32  # the score's weights were fitted at this side; finer maps only cost time
FINISHED_AT_ONCE = 8  # boxes whose masks are in memory together: of large images they are large
BATCHES_AHEAD = 2  # cropped before and encoded after the batch in the network

Item = TypeVar("Item")
Made = TypeVar("Made")
Batch = tuple[list[Roi], list[Tensor], NDArray[np.uint8]]  # with its maps and crops


def evidence_of(
    rois: Sequence[Roi], prob_BGG: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return what the scores of boxes are made of, read at a side of `EVIDENCE_SIDE` at most."""
    side = min(prob_BGG.shape[-1], EVIDENCE_SIDE)
    coarse_BGG = np.stack([resize(prob_GG, (side, side)) for prob_GG in prob_BGG])
    roi_B4, window_B4 = (np.stack([getattr(roi, key) for roi in rois]) for key in ("roi", "window"))
    box_B4 = roi_frame(window_B4.astype(np.float64), roi_B4)
    return evidence(coarse_BGG, box_B4, np.array([roi.overlap for roi in rois]))


class _OneThread:
    """OpenCV without threads of its own while anyone here works: ours keep the cores busy.

    The number belongs to the process, so it is set once for all who work at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    def begin(self) -> None:
        with self._lock:
            if not self._users:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                cv2.setNumThreads(self._before)


_one_thread = _OneThread()


class MaskMaker:
    """Makes the masks of RoIs.

    Args:
        predictor: The network.
        clock: Where the seconds are counted.
        workers: Threads that crop and encode; 0: the caller's thread does it all.
    """

    def __init__(self, predictor: Predictor, clock: Clock, workers: int) -> None:
        """Start the threads."""
        self.predictor = predictor
        self.rule = predictor.rule
        self.clock = clock
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, "malcli") if workers else None
        self._free: list[NDArray[np.uint8]] = []  # crops that are done with
        _one_thread.begin()

    def close(self) -> None:
        """End the threads."""
        _one_thread.end()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def rois(
        self, image: NDArray[np.uint8], rows: NDArray[np.int64], xywh: NDArray[np.float64]
    ) -> list[Roi]:
        """Return the RoIs of an image's boxes, with the arguments of `image_rois`."""
        with self.clock.cpu("crop"):
            return image_rois(
                image,
                rows,
                xywh,
                self.rule.margin,
                self.rule.geometry,
                self.predictor.size_classes,
            )

    def label(self, rois: Iterable[Roi], batch_size: int) -> Iterator[list[Outcome]]:
        """Yield what became of each of the RoIs, batch by batch, in no fixed order.

        Args:
            rois: They alone and the batch size decide which boxes share a batch.
            batch_size: Crops per network call.

        Raises:
            torch.OutOfMemoryError: The device cannot hold a batch of more than one crop.
            RunError: The network gives values that are no numbers.
        """
        yield from self.ahead(self._finish, self.maps(rois, batch_size), BATCHES_AHEAD)

    def maps(self, rois: Iterable[Roi], batch_size: int) -> Iterator[Batch]:
        """Yield maps and crops of RoIs, as in `label`.

        No map at all: the device cannot hold even one crop.
        """
        batches = same_sided(rois, self.rule.sides, batch_size)
        return map(self._predict, self.ahead(self._crop, batches, BATCHES_AHEAD))

    def _crop(self, rois: list[Roi]) -> tuple[list[Roi], NDArray[np.uint8]]:
        with self.clock.cpu("crop"):
            side = side_of(rois[0], self.rule.sides)
            try:
                memory = self._free.pop()
            except IndexError:  # asking first would race with the other threads
                memory = None
            return rois, crop_batch(rois, side, self.rule.border, memory)

    def _predict(self, batch: tuple[list[Roi], NDArray[np.uint8]]) -> Batch:
        """Return the network's maps; none if the device cannot hold even one crop."""
        rois, crops_BSS3 = batch
        with self.clock.wall("network"):
            try:
                return rois, self.predictor(crops_BSS3, rois), crops_BSS3
            except torch.OutOfMemoryError:
                if len(rois) > 1:
                    raise
                return rois, [], crops_BSS3

    def _finish(self, batch: Batch) -> list[Outcome]:
        """Return the outcome of each box of a batch."""
        rois, maps, crops_BSS3 = batch
        if not maps:
            return [Outcome(roi.row, skipped(NO_MEMORY)) for roi in rois]
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

    def ahead(
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
