"""From RoIs to masks: crop, network, paste and encode, side by side.

Threads crop and encode while the caller's thread feeds the network; all of them keep the order of
the boxes, so results do not depend on the threads. Knows nothing of files or tables.

Shape suffixes: B crops, C channels, S crop pixels, G score grid.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from malcli.data.crops.label_crops import Roi, crop_batch, cropped, image_rois, without_image
from malcli.engine.label.crop_sizes import same_sided, side_of
from malcli.engine.label.masks import evidence_of, mask_of, mean_inside, outcome_of
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pixel_budget import PixelBudget
from malcli.engine.label.predictor import Predictor
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.failures import is_out_of_memory
from malcli.errors import RunError
from malcli.metrics.confidence import predict_iou
from malcli.records import NO_MEMORY, skipped

PASTED_AT_ONCE = 1 << 22  # pixels of windows whose masks are in memory together
SCORED_AT_ONCE = 8  # boxes
LARGE_IMAGE = 1 << 19  # pixels; of a larger one, few crops are made at once and it is let go
BATCHES_AHEAD = 2  # cropped before and encoded after the batch in the network

Item = TypeVar("Item")
Made = TypeVar("Made")
Batch = tuple[list[Roi], list[Tensor], NDArray[np.uint8] | None]  # with its maps and crops


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
        self.budget = PixelBudget()
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
        """Return the RoIs of an image's boxes, with the arguments of `image_rois`.

        If their crops are smaller than the image, they are made here and it is let go.
        """
        with self.clock.cpu("crop"):
            rois = image_rois(
                image,
                rows,
                xywh,
                self.rule.margin,
                self.rule.geometry,
                self.predictor.size_classes,
            )
            return self._lightened(rois, image.shape[0] * image.shape[1])

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

    def _lightened(self, rois: list[Roi], pixels: int) -> list[Roi]:
        """Return the RoIs with their crops, and without the image, if that is smaller."""
        sides = [side_of(roi, self.rule.sides) for roi in rois]
        if pixels <= LARGE_IMAGE or sum(side * side for side in sides) >= pixels:
            return rois
        return [cropped(*each, self.rule.border) for each in zip(rois, sides, strict=True)]

    def _crop(self, rois: list[Roi]) -> tuple[list[Roi], NDArray[np.uint8] | None]:
        """Return a batch's crops; None if memory does not suffice."""
        light = [without_image(roi) for roi in rois]
        with self.clock.cpu("crop"):
            side = side_of(rois[0], self.rule.sides)
            try:
                memory = self._free.pop()
            except IndexError:  # asking first would race with the other threads
                memory = None
            try:
                return light, crop_batch(rois, side, self.rule.border, memory)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return light, None

    def _predict(self, batch: tuple[list[Roi], NDArray[np.uint8] | None]) -> Batch:
        """Return the network's maps; none if the device cannot hold even one crop."""
        rois, crops_BSS3 = batch
        with self.clock.wall("network"):
            try:
                if crops_BSS3 is not None:
                    return rois, self.predictor(crops_BSS3, rois), crops_BSS3
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        if len(rois) > 1:  # not in the handler, whose traceback holds the tensors
            raise torch.OutOfMemoryError(f"a batch of {len(rois)} crops")
        return rois, [], None

    def _finish(self, batch: Batch) -> list[Outcome]:
        """Return the outcome of each box of a batch."""
        rois, maps, crops_BSS3 = batch
        if not maps or crops_BSS3 is None:
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
        for begin in range(0, len(rois), SCORED_AT_ONCE):
            some = slice(begin, begin + SCORED_AT_ONCE)
            with self.clock.cpu("paste"):
                scores = self._scores(rois[some], arrays[0][some])
            boxes = zip(rois[some], scores, *(array[some] for array in arrays), strict=True)
            outcomes += self._outcomes(list(boxes))
        self._free.append(crops_BSS3)
        return outcomes

    def _scores(self, rois: list[Roi], prob_BGG: NDArray[np.float32]) -> list[float | None]:
        """Return the estimated IoUs of masks; None under `released`, which asks the mask."""
        if self.rule.geometry == "released":
            return [None] * len(rois)
        return [float(score) for score in predict_iou(evidence_of(rois, prob_BGG))]

    def _outcomes(self, boxes: list[tuple[Any, ...]]) -> list[Outcome]:
        """Return what becomes of boxes, each (roi, score, *maps); masks may be gigabytes.

        Small ones go together: asking the clock twice for every box costs 0.09 ms, an eighth of all
        that the host does for it.
        """
        pixels = sum(_pixels_of(box[0]) for box in boxes)
        if len(boxes) > 1 and pixels > PASTED_AT_ONCE:
            return [one for box in boxes for one in self._outcomes([box])]
        try:
            with self.budget.hold(pixels):
                with self.clock.cpu("paste"):
                    made = [self._mask(*box) for box in boxes]
                with self.clock.cpu("encode"):
                    return [outcome_of(self.rule, *each) for each in made]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(boxes) > 1:  # not in the handler, whose traceback holds the masks
            return [one for box in boxes for one in self._outcomes([box])]
        return [Outcome(boxes[0][0].row, skipped(NO_MEMORY))]

    def _mask(
        self, roi: Roi, score: float | None, *maps: NDArray[Any]
    ) -> tuple[Roi, NDArray[np.bool_], int, float]:
        """Return a box's mask, its area and its score."""
        mask = mask_of(self.rule, roi, *maps)
        score = mean_inside(maps[0], roi, mask) if score is None else score
        return roi, mask, int(np.count_nonzero(mask)), score

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


def _pixels_of(roi: Roi) -> int:
    x0, y0, x1, y1 = roi.window.tolist()
    return int((x1 - x0) * (y1 - y0))
