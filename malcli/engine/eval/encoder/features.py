"""The encoder that `eval --clustering` and `eval --attention` look into: crops in, features out.

It is one by name, with weights of its own, or the one inside the labeler that `label` would use.

Shape suffixes: B crops, C channels, S crop pixels, h w token grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from malcli.config.evaluate import EvalConfig
from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi, crop_batch, image_rois
from malcli.engine.label.settings import resolve_label, whole_number
from malcli.engine.machine.processes import DTYPES, choose_device, choose_precision
from malcli.errors import BadImage, CheckpointError, ConfigError, DataFormatError, RunError
from malcli.model.checkpoint import load_checkpoint, read_tensors
from malcli.model.encoders import ImageEncoder, build_encoder
from malcli.model.locate import locate_checkpoint
from malcli.model.pretrained import load_encoder_weights, load_hub_weights
from malcli.records import Problems
from malcli.report.progress import log
from malcli.settings import resolve

CROP_SIZE = 512  # pixels, the paper's; rounded to the encoder's stride
BAD_IMAGE = "boxes whose image cannot be read (left out)"


@dataclass(frozen=True)
class OpenEncoder:
    """An encoder on its device, in evaluation mode.

    Attributes:
        encoder: The network.
        name: As `--encoder` says it.
        weights: `pretrained`, `none`, or the file that they come from.
        network: Of a labeler: `student` or `teacher`; else None.
        crop_size: Side of its input, pixels.
        margin: Context around a box, in halves of the box, both sides together.
        geometry: `exact` or `released`, as in `label`.
        device: Where it is.
        dtype: Number format of its weights.
    """

    encoder: ImageEncoder
    name: str
    weights: str
    network: str | None
    crop_size: int
    margin: float
    geometry: str
    device: torch.device
    dtype: torch.dtype

    def rois(
        self, image: NDArray[np.uint8], rows: NDArray[np.int64], xywh: NDArray[np.float64]
    ) -> list[Roi]:
        """Return the RoIs of an image's boxes, as `label` takes them; see `image_rois`."""
        return image_rois(image, rows, xywh, self.margin, self.geometry)

    def crops(self, rois: Sequence[Roi]) -> NDArray[np.uint8]:
        """Return the crops of RoIs, (B, S, S, 3) uint8 RGB."""
        return crop_batch(
            rois, self.crop_size, "wrap" if self.geometry == "released" else "reflect"
        )

    def normalise(self, crops_BSS3: NDArray[np.uint8]) -> Tensor:
        """Return crops as the encoder's own normalised values, (B, 3, S, S) on the device."""
        image_BCSS = torch.from_numpy(crops_BSS3).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (
            255 * torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (self.encoder.mean, self.encoder.std)
        )
        return ((image_BCSS - mean) / std).to(self.dtype)

    @torch.inference_mode()
    def features(self, crops_BSS3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the feature maps of crops, (B, h, w, C).

        Raises:
            RunError: The device's memory does not hold one crop, or values are no numbers.
        """
        try:
            feature_BChw = self.encoder(self.normalise(crops_BSS3))
        except torch.OutOfMemoryError:
            feature_BChw = None  # tried again below, where the failed call's memory is free
        if feature_BChw is None:
            return self._in_halves(crops_BSS3)
        feature_BhwC: NDArray[np.float32] = feature_BChw.permute(0, 2, 3, 1).float().cpu().numpy()
        if not np.isfinite(feature_BhwC).all():
            raise RunError(
                f"--encoder {self.name}: its features are no numbers; --precision fp32 avoids "
                f"overflow, else the weights are damaged"
            )
        return feature_BhwC

    def _in_halves(self, crops_BSS3: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(crops_BSS3)
        if count == 1:
            raise RunError(
                f"--crop-size {self.crop_size}: one crop needs more memory than the device has; "
                f"take a smaller one, or --device cpu"
            )
        parts = (crops_BSS3[: count // 2], crops_BSS3[count // 2 :])
        return np.concatenate([self.features(part) for part in parts])

    def to_json(self) -> dict[str, Any]:
        """Return what a result says of it."""
        return {
            "encoder": self.name,
            "weights": self.weights,
            "network": self.network,
            "crop_size": self.crop_size,
            "stride": self.encoder.stride,
            "margin": self.margin,
            "geometry": self.geometry,
        }


def open_encoder(config: EvalConfig) -> OpenEncoder:
    """Load the encoder that the settings name, or that of the labeler that `label` would use.

    Raises:
        ConfigError: An unknown encoder, device or crop size.
        CheckpointError: Weights cannot be used.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    opened = _named if config.encoder is not None else _of_labeler
    encoder, about = opened(config)
    dtype = DTYPES[precision]
    label = _label_settings(config)
    found = OpenEncoder(
        encoder=encoder.eval().requires_grad_(False).to(device, dtype),
        margin=label.margin,
        geometry=label.geometry,
        device=device,
        dtype=dtype,
        **about,
    )
    log(
        f"eval: encoder {found.name}, weights {found.weights}, crops of {found.crop_size} x "
        f"{found.crop_size} pixels, {device}, {precision}"
    )
    return found


def _named(config: EvalConfig) -> tuple[ImageEncoder, Mapping[str, Any]]:
    """Return `--encoder` with its `--weights`."""
    assert config.encoder is not None
    torch.manual_seed(config.seed)  # for --weights none
    crop_size = _given_crop_size(config) or CROP_SIZE
    encoder = build_encoder(config.encoder, crop_size)
    if config.crop_size is None and crop_size % encoder.stride:
        crop_size = round(crop_size / encoder.stride) * encoder.stride
        encoder.set_crop_size(crop_size)
    if config.weights is None:
        load_hub_weights(encoder, config.encoder, crop_size)
    elif config.weights != "none":
        path = Path(config.weights)
        tensors = read_tensors(path)
        if any(key.startswith(("student.", "teacher.")) for key in tensors):
            raise CheckpointError(
                f"{path}: is a labeler, not an encoder; give it as --checkpoint, without --encoder"
            )
        load_encoder_weights(encoder, tensors, path, crop_size)
    return encoder, {
        "name": config.encoder,
        "weights": config.weights or "pretrained",
        "network": None,
        "crop_size": crop_size,
    }


def _of_labeler(config: EvalConfig) -> tuple[ImageEncoder, Mapping[str, Any]]:
    """Return the encoder inside `--checkpoint`, the newest run or the labeler that ships."""
    network = config.network or "student"
    if network == "mean":
        raise ConfigError("--network mean: two networks share no features; take student or teacher")
    path = locate_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    labeler = checkpoint.teacher if network == "teacher" else checkpoint.student
    crop_size = _given_crop_size(config) or checkpoint.architecture.crop_size
    labeler.set_crop_size(crop_size)
    return labeler.encoder, {
        "name": checkpoint.architecture.encoder,
        "weights": str(path),
        "network": network,
        "crop_size": crop_size,
    }


def _given_crop_size(config: EvalConfig) -> int | None:
    return None if config.crop_size is None else whole_number(config.crop_size, "--crop-size")


def _label_settings(config: EvalConfig) -> LabelConfig:
    """Return the settings of `label` on the same boxes: what a user did not set is its default."""
    names = ("margin", "geometry", "checkpoint")
    options = {"boxes": config.gt} | {name: getattr(config, name) for name in names}
    if config.encoder is None:
        return resolve_label(options)
    settings: LabelConfig = resolve(LabelConfig, options, None, "label").config
    return settings


def lose_boxes(config: EvalConfig, problems: Problems, error: BadImage, boxes: int) -> None:
    """Count the boxes of an image that cannot be read.

    Raises:
        DataFormatError: With `strict`.
    """
    if config.strict:
        raise DataFormatError(config.gt, f"--strict: {boxes} {BAD_IMAGE}: {error}")
    problems.add(BAD_IMAGE, str(error), boxes)
