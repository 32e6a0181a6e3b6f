"""From boxes of a table to masks: images are decoded ahead of `mask_maker`, which does the rest.

Also opens the network for both. Knows nothing of outputs.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi
from malcli.data.images.find import ImageFolder
from malcli.data.images.read import read_image
from malcli.engine.inputs import UNSETTLED, workers_of
from malcli.engine.label.crop_sizes import crop_sides
from malcli.engine.label.job import Manifest
from malcli.engine.label.mask_maker import Batch, MaskMaker
from malcli.engine.label.parts import Outcome
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.processes import choose_compile, choose_device, choose_precision
from malcli.errors import BadImage
from malcli.model.checkpoint import Checkpoint
from malcli.records import STATUS_OK, BoxTable, skipped
from malcli.report.progress import log


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


class Opened(NamedTuple):
    """An image: the RoIs of its boxes, or no RoIs, their rows and why they are lost."""

    rois: list[Roi]
    rows: NDArray[np.int64]
    error: BadImage | None = None
    told: Sequence[str] = ()


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
        self.rule = predictor.rule
        self.clock = clock
        self._maker = MaskMaker(predictor, clock, workers)

    def close(self) -> None:
        """End the threads."""
        self._maker.close()

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
        judged = [Outcome(int(row), text) for row, text in zip(rows, status, strict=True)]
        yield [outcome for outcome in judged if outcome.status != STATUS_OK]
        lost: list[Outcome] = []
        yield from self._maker.label(self._read(rows[usable], lost), batch_size)
        yield lost

    def maps(
        self, rows: NDArray[np.int64], batch_size: int, lost: list[Outcome]
    ) -> Iterator[Batch]:
        """Yield maps and crops of boxes that can be labelled; the others go to `lost`.

        As in `label`; no map at all: the device cannot hold even one crop.
        """
        return self._maker.maps(self._read(rows, lost), batch_size)

    def _read(self, rows: NDArray[np.int64], lost: list[Outcome]) -> Iterator[Roi]:
        """Yield the RoIs of boxes, decoding ahead."""
        images = self._maker.ahead(self._decode, self._images(rows), self._maker.workers + 1)
        return self._rois(images, lost)

    def _images(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each image with the rows of its boxes."""
        image = np.asarray(self.table.take(rows, "image")["image"])
        cuts = np.flatnonzero(np.diff(image)) + 1
        for begin, end in pairwise([0, *cuts, len(rows)]):
            if end > begin:
                yield int(image[begin]), rows[begin:end]

    def _decode(self, job: tuple[int, NDArray[np.int64]]) -> Opened:
        """Return the RoIs of an image's boxes."""
        number, rows = job
        record = self.table.images.slice(number, 1).to_pylist()[0]
        name, hw = record["file_name"], (record["height"], record["width"])
        told: list[str] = []
        with self._maker.budget.hold(min(hw[0] * hw[1], self.rule.max_pixels)):
            with self.clock.cpu("decode"):
                try:
                    image = read_image(self.folder, name, hw, self.rule.max_pixels, told)
                except BadImage as error:
                    return Opened([], rows, error, told)
            return Opened(self._maker.rois(image, rows, self.table.xywh(rows)), rows, None, told)

    def _rois(self, images: Iterable[Opened], lost: list[Outcome]) -> Iterator[Roi]:
        """Yield the RoIs of all images; boxes of unreadable ones go to `lost`."""
        for rois, rows, error, told in images:
            for line in told:
                self.table.problems.add(UNSETTLED, line)
            yield from rois
            if error:
                self.table.problems.add(f"{error.status}-file", str(error))
                lost += [Outcome(int(row), skipped(error.status)) for row in rows]
