"""Mask decoders: feature map -> logits on a grid four times as fine as a stride-16 map.

Shape suffixes: B crops, C channels, h w feature grid, G score grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Feature map resized by size class before V: 1/32, 1/16, 1/8 of the input (mal_spec 3.3).
SIZE_SCALES = (0.5, 1.0, 2.0)
CONVOLUTIONS = 4
GRID_SCALE = 4  # logits' side over the feature map's


class AttentionDecoder(nn.Module):
    """Inner product of one instance vector K and a pixel map V (Sec. 3.2).

    Args:
        features: Channels of the encoder's feature map.
        channels: Hidden and output channels.
        key_pool: `mean` or `max` pooling in K.
        key_layers: Fully connected layers of K, 1 or 2.
        upsample_before: V is upsampled x2 before this convolution, 1 to 4.
        size_scaling: Resize the feature map by the box's size class (App. A.2).

    Source: Sec. 3.2, Fig. 3c; mal_spec 3, where paper and released code differ.
    """

    def __init__(
        self,
        features: int,
        channels: int = 256,
        key_pool: str = "mean",
        key_layers: int = 2,
        upsample_before: int = 4,
        size_scaling: bool = True,
    ) -> None:
        """Build both heads; convolutions He-normal by fan-out with zero bias (mal_spec 3.7)."""
        super().__init__()
        self.key_pool = key_pool
        self.upsample_before = upsample_before
        self.size_scaling = size_scaling
        layers: list[nn.Module] = [nn.Linear(features, channels)]
        for _ in range(key_layers - 1):
            layers += [nn.ReLU(), nn.Linear(channels, channels)]
        self.key = nn.Sequential(*layers)
        convolutions = [
            nn.Conv2d(features if index == 0 else channels, channels, 3, padding=1)
            for index in range(CONVOLUTIONS)
        ]
        self.value = nn.ModuleList(convolutions)
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            assert convolution.bias is not None  # it may be left out, but is not here
            nn.init.zeros_(convolution.bias)

    def forward(self, feature_BChw: Tensor, size_B: Tensor) -> Tensor:
        """Return logits (B, G, G), G = 4 h.

        Args:
            feature_BChw: (B, C, h, w) feature map, h = w.
            size_B: (B,) size class of each box: 0 small, 1 medium, 2 large.
        """
        key_BC = self.instance_key(feature_BChw)
        grid = feature_BChw.shape[-1] * GRID_SCALE
        if not self.size_scaling:
            return self._scores(feature_BChw, key_BC, 1.0, grid)
        logits_BGG = feature_BChw.new_zeros((len(feature_BChw), grid, grid), dtype=torch.float32)
        for size, scale in enumerate(SIZE_SCALES):
            chosen = (size_B == size).nonzero().squeeze(1)
            if len(chosen):
                scores = self._scores(feature_BChw[chosen], key_BC[chosen], scale, grid)
                logits_BGG = logits_BGG.index_copy(0, chosen, scores)
        return logits_BGG

    def instance_key(self, feature_BChw: Tensor) -> Tensor:
        """Return K, (B, channels): what the object looks like, read from the un-resized map."""
        pooled = (
            feature_BChw.mean(dim=(2, 3)) if self.key_pool == "mean" else feature_BChw.amax((2, 3))
        )
        key_BC: Tensor = self.key(pooled)
        return key_BC

    def pixel_value(self, feature_BChw: Tensor) -> Tensor:
        """Return V, (B, channels, 2 h, 2 w)."""
        value = feature_BChw
        for index, convolution in enumerate(self.value, start=1):
            if index == self.upsample_before:
                value = _resize(value, 2 * value.shape[-1])
            value = F.relu(convolution(value))
        return value

    def _scores(self, feature_BChw: Tensor, key_BC: Tensor, scale: float, grid: int) -> Tensor:
        """Return K.V of one size class, float32 logits (B, grid, grid)."""
        side = max(1, round(feature_BChw.shape[-1] * scale))
        value_BChw = self.pixel_value(_resize(feature_BChw, side))
        logits_Bhw = torch.einsum("bc,bchw->bhw", key_BC, value_BChw).float()
        return _resize(logits_Bhw[:, None], grid)[:, 0]


def _resize(values_BChw: Tensor, side: int) -> Tensor:
    """Return the map resized bilinearly to side x side; a no-op at its own side."""
    if values_BChw.shape[-1] == side:
        return values_BChw
    return F.interpolate(values_BChw, (side, side), mode="bilinear", align_corners=False)


def build_decoder(
    name: str,
    features: int,
    upsample: int,
    *,
    channels: int,
    key_pool: str,
    key_layers: int,
    upsample_before: int,
    size_scaling: bool,
) -> nn.Module:
    """Return a decoder of random values by its name in `cli.md`."""
    return AttentionDecoder(features, channels, key_pool, key_layers, upsample_before, size_scaling)
