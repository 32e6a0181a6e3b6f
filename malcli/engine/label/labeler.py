"""`Labeler`: an image in memory and its boxes in, masks out, without files.

Does what `label` does with a photograph, by the same code; knows nothing of jobs and outputs.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from malcli.config.label import LabelConfig
from malcli.data.boxtable.checks import overlaps
from malcli.data.images.decode import to_rgb
from malcli.engine.inputs import workers_of
from malcli.engine.label.batch_size import with_largest_batch
from malcli.engine.label.crop_sizes import AUTO
from malcli.engine.label.job import Job
from malcli.engine.label.mask_maker import MaskMaker
from malcli.engine.label.overlaps import settle_contested
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pipeline import open_predictor
from malcli.engine.label.plan import manifest_of
from malcli.engine.label.settings import resolve_label, result_settings
from malcli.engine.machine.clock import Clock
from malcli.errors import BadImage, ConfigError, InputError, RunError
from malcli.geometry.rle import decode_rle, empty_rle
from malcli.model.checkpoint import Checkpoint, load_checkpoint
from malcli.model.locate import locate_checkpoint, shipped_labeler
from malcli.records import Rle

SHIPPED = "shipped"

FloatArray = NDArray[np.float64]


class Labeler:
    """A labeler on its device; make one with `Labeler.load`.

    Masks and scores are, bit for bit, those that `malcli label` writes for a file of this image
    alone with these boxes, on the same machine with the same settings. In a file of several images
    a batch mixes their boxes, and a network may round otherwise in other batches; so do boxes given
    in several calls.

    Threads may share one: calls wait for each other, since they share the network and its memory.

    Attributes:
        config: The settings, as `label` understands them.
        batch_size: Crops per network call; halved when memory does not suffice.

    Example:
        >>> labeler = Labeler.load()
        >>> masks, scores = labeler.predict(image, [[10.0, 20.0, 110.0, 90.0]])
    """

    def __init__(self, config: LabelConfig, checkpoint: Checkpoint) -> None:
        """Put the networks on their device.

        Args:
            config: What is about files in it is not read.
            checkpoint: Its networks move to the device.

        Raises:
            ConfigError: The device is not there, or a setting cannot be used.
        """
        settings = result_settings(config)
        if settings.get("threshold") == AUTO:
            raise ConfigError(
                f"threshold={AUTO!r}: looks at a whole set of boxes; give one number or three, or "
                f"leave it out for the checkpoint's"
            )
        manifest = manifest_of(config, Job("", "", settings), checkpoint, 0, 0)
        manifest = with_largest_batch(config, manifest, checkpoint)
        self.config = config
        self.batch_size = manifest.batch_size
        self._predictor = open_predictor(
            config,
            checkpoint,
            threshold=manifest.threshold,
            crop_size=manifest.crop_size,
            precision=manifest.precision,
        )
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        *,
        device: str | None = None,
        precision: str | None = None,
        network: str | None = None,
        tta: str | None = None,
        refine: str | None = None,
        overlaps: str | None = None,
        threshold: str | float | None = None,
        crop_size: str | int | None = None,
        margin: float | None = None,
        geometry: str | None = None,
        min_score: float | None = None,
        max_pixels: int | None = None,
        batch_size: str | int | None = None,
        workers: int | None = None,
        compile: bool | None = None,
        recipe: str | None = None,
    ) -> "Labeler":
        """Load a labeler; unlike `label`, it never looks into ./runs by itself.

        Args:
            checkpoint: A run folder or checkpoint file; None or `shipped`: the one that ships.
            device: As in `label`, like all that follow; None: the default of `label`, or what the
                preset of a released checkpoint says.
            precision: Number format of the network.
            network: `student`, `teacher` or `mean`.
            tta: `flip` or `none`.
            refine: `crf`, `colour` or `none`.
            overlaps: `keep`, `smaller` or `score`, among the boxes of one call.
            threshold: One number, or three by box size such as `0.4,0.5,0.6`.
            crop_size: Pixels, or `auto`.
            margin: Context around the box, in halves of the box.
            geometry: `exact` or `released`.
            min_score: Masks with a lower score are left empty.
            max_pixels: Larger images are refused.
            batch_size: Crops per network call, or `auto`.
            workers: Threads that crop and encode.
            compile: Let torch compile the networks.
            recipe: A preset (`paper`, `released`) or a TOML file of `label`.

        Raises:
            ConfigError: A setting is wrong, or the device is not there.
            CheckpointError: Nothing there, or it cannot be used.
        """
        given = {k: v for k, v in locals().items() if k not in ("cls", "checkpoint", "recipe")}
        path = _located(checkpoint)
        options: dict[str, Any] = {**given, "boxes": Path("an image in memory"), "checkpoint": path}
        return cls(resolve_label(options, recipe), load_checkpoint(path))

    def predict(
        self, image: NDArray[np.uint8] | Image.Image, boxes_xyxy: ArrayLike
    ) -> tuple[NDArray[np.bool_], FloatArray]:
        """Return the mask of each box, and how sure it is.

        Args:
            image: (H, W, 3) uint8 RGB, or a PIL image of any mode. It is taken as it is stored: an
                orientation in its EXIF is not applied, as in `label` where the annotations state
                the stored size; apply it first (`PIL.ImageOps.exif_transpose`) if the boxes are
                those of the upright image.
            boxes_xyxy: (N, 4) x0 y0 x1 y1, pixels; `label` gets them as x0, y0, x1 - x0, y1 - y0.

        Returns:
            masks: (N, H, W), in the order of the boxes. That of a box without an area inside the
                image is empty, with score 0: `label` skips such a box.
            scores: (N,) the estimated IoU with a human's mask, in [0, 1].

        Raises:
            InputError: The image or the boxes have another type or shape, or are not finite.
            RunError: Memory does not suffice, or the network gives values that are no numbers.
        """
        rles, scores = self.predict_rle(image, boxes_xyxy)
        masks = np.zeros((len(rles), *_size_of(image)), dtype=bool)
        for mask, rle in zip(masks, rles, strict=True):
            mask[:] = decode_rle(rle)
        return masks, scores

    def predict_rle(
        self, image: NDArray[np.uint8] | Image.Image, boxes_xyxy: ArrayLike
    ) -> tuple[list[Rle], FloatArray]:
        """Return what `predict` does, the masks as COCO's compressed RLE.

        Far smaller than masks for many boxes of a large image.

        Returns:
            rles: {"size": [H, W], "counts": text} of each box.
            scores: (N,) as in `predict`.
        """
        xywh = _checked_boxes(boxes_xyxy)
        with self._lock:
            pixels = _checked_image(image, self.config.max_pixels)
            image_hw = (pixels.shape[0], pixels.shape[1])
            rows = np.flatnonzero(overlaps(xywh, np.array([image_hw], dtype=np.float64)))
            outcomes = self._label(pixels, rows, xywh)
        rles, scores = [empty_rle(image_hw) for _ in xywh], np.zeros(len(xywh))
        for outcome in outcomes:
            if outcome.counts is None:
                raise RunError("memory does not suffice for a single crop")
            rles[outcome.row] = Rle(size=[*image_hw], counts=outcome.counts)
            scores[outcome.row] = outcome.score
        return rles, scores

    def _label(
        self, pixels: NDArray[np.uint8], rows: NDArray[np.int64], xywh: FloatArray
    ) -> Sequence[Outcome]:
        """Return the outcomes of an image's boxes, with smaller batches if memory runs out."""
        while True:
            maker = MaskMaker(self._predictor, Clock(), workers_of(self.config))
            try:
                rois = maker.rois(pixels, rows, xywh[rows])
                made = [one for batch in maker.label(rois, self.batch_size) for one in batch]
                break
            except torch.OutOfMemoryError:
                self.batch_size = max(1, self.batch_size // 2)
            finally:
                maker.close()
        if self.config.overlaps == "keep":
            return made
        return settle_contested(made, [0] * len(made), self.config.overlaps)


def _located(checkpoint: str | Path | None) -> Path:
    """Return the checkpoint file that is meant."""
    if checkpoint is None or checkpoint == SHIPPED:
        return shipped_labeler()
    return locate_checkpoint(Path(checkpoint))


def _size_of(image: NDArray[np.uint8] | Image.Image) -> tuple[int, int]:
    """Return the height and width of a checked image, pixels."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width, _ = np.shape(image)
    return height, width


def _checked_image(image: object, max_pixels: int) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB.

    Raises:
        InputError: It is none.
    """
    if isinstance(image, Image.Image):
        if image.width * image.height > max_pixels:
            raise InputError(_too_large(image.height, image.width, max_pixels))
        try:
            image.load()
            return to_rgb("image", image)
        except (BadImage, OSError, ValueError, SyntaxError) as error:
            raise InputError(f"image: cannot be decoded: {error}") from None
    try:
        pixels = np.asarray(image)
    except Exception as error:  # what libraries of tensors raise is their own
        raise InputError(f"image: no array: {error}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            f"image: {pixels.dtype} of shape {pixels.shape}; give (height, width, 3) uint8 RGB, or "
            f"a PIL image"
        )
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise InputError(_too_large(pixels.shape[0], pixels.shape[1], max_pixels))
    return np.ascontiguousarray(pixels)


def _too_large(height: int, width: int, max_pixels: int) -> str:
    return f"image: {height} x {width} pixels are more than max_pixels {max_pixels}"


def _checked_boxes(boxes_xyxy: ArrayLike) -> FloatArray:
    """Return boxes as (N, 4) xywh.

    Raises:
        InputError: They are no (N, 4) of finite numbers.
    """
    try:
        xyxy = np.asarray(boxes_xyxy, dtype=np.float64)
    except Exception as error:
        raise InputError(f"boxes_xyxy: no array of numbers: {error}") from None
    if not xyxy.size:
        return np.zeros((0, 4))
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise InputError(f"boxes_xyxy: of shape {xyxy.shape}; give (N, 4): x0, y0, x1, y1 of each")
    with np.errstate(over="ignore", invalid="ignore"):
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    bad = np.flatnonzero(~np.isfinite(xywh).all(axis=1))
    if bad.size:
        raise InputError(f"boxes_xyxy[{bad[0]}]: {xyxy[bad[0]].tolist()} are no finite numbers")
    return xywh
