"""The Mask Auto-Labeler: encoder + decoder (Fig. 2). The only place that wires them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from malcli.geometry.boxes import NO_SIZE
from malcli.model.decoders import GRID_SCALE, build_decoder
from malcli.model.encoders import ImageEncoder, build_encoder, check_crop_size


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint must say to build its network again; plain values only."""

    encoder: str
    decoder: str
    crop_size: int
    channels: int
    key_pool: str
    key_layers: int
    upsample_before: int
    size_scaling: bool
    stem: str = "patch"
    position: str = "antialiased"
    size_classes: str = "half-open"
    feature_scale: float = 1.0

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


class MaskLabeler(nn.Module):
    """Crops and size classes in, mask logits out."""

    def __init__(self, encoder: ImageEncoder, decoder: nn.Module, crop_size: int) -> None:
        """Wire the parts; mean and std travel with the module but not in its state."""
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.crop_size = crop_size
        mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
        self.register_buffer("mean_C11", 255 * mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", 255 * std.view(-1, 1, 1), persistent=False)

    @property
    def grid(self) -> int:
        """Side of the logits."""
        return self.crop_size // self.encoder.stride * self.encoder.upsample * GRID_SCALE

    def set_crop_size(self, crop_size: int) -> None:
        """Take crops of another side from now on, in place.

        Raises:
            ConfigError: The side is not a multiple of the encoder's stride.
        """
        check_crop_size(crop_size, self.encoder.stride)
        self.encoder.set_crop_size(crop_size)
        self.crop_size = crop_size

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Return crops in [0, 255] as the encoder's own normalised float values."""
        mean, std = self.get_buffer("mean_C11"), self.get_buffer("std_C11")
        return (image_BCHW.to(mean.dtype) - mean) / std

    def forward(self, image_BCHW: Tensor, size_B: Tensor) -> Tensor:
        """Return logits (B, G, G) float32; sigmoid gives the mask's probability.

        Args:
            image_BCHW: (B, 3, S, S) normalised RGB crops.
            size_B: (B,) size class of each box, 0 small, 1 medium, 2 large; `NO_SIZE` gets logits
                of 0, as in the released code (mal.md 3.2).
        """
        logits: Tensor = self.decoder(self.encoder(image_BCHW), size_B)
        return logits * (size_B != NO_SIZE).to(logits.device)[:, None, None]


def build_labeler(architecture: Architecture, drop_path: float = 0.0) -> MaskLabeler:
    """Return a labeler of random values.

    Args:
        architecture: What to build.
        drop_path: Stochastic depth of the encoder, for training.

    Raises:
        ConfigError: An unknown encoder, or a crop size that it cannot take.
    """
    encoder = build_encoder(
        architecture.encoder,
        architecture.crop_size,
        stem=architecture.stem,
        position=architecture.position,
        drop_path=drop_path,
    )
    decoder = build_decoder(
        architecture.decoder,
        encoder.channels,
        encoder.upsample,
        channels=architecture.channels,
        key_pool=architecture.key_pool,
        key_layers=architecture.key_layers,
        upsample_before=architecture.upsample_before,
        size_scaling=architecture.size_scaling,
        feature_scale=architecture.feature_scale,
    )
    return MaskLabeler(encoder, decoder, architecture.crop_size)
