"""Mask decoders of Tab. 3: feature map -> logits on a grid of a quarter of the crop's side.

The grid is four times as fine as a stride-16 map. The map of an encoder of stride 32 (`upsample`
2) is resized bilinearly so that the pixel head reads the same scales of the input. Decoders know
nothing of images or boxes, only the box's size class.

Shape suffixes: B crops, C channels, h w a map's grid, G score grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malcli.errors import ConfigError
from malcli.model.query import QueryTransformer

# Scale of the map that V reads over a stride-16 map, by size class: 1/32, 1/16, 1/8 of the input
# (mal.md 3.3). The last is `NO_SIZE`, whose logits the labeler zeroes: any finite value does.
SIZE_SCALES = (0.5, 1.0, 2.0, 1.0)
MEMORY_SCALES = (0.5, 1.0, 2.0)  # of the query decoder, coarse to fine: 1/32, 1/16, 1/8
CONVOLUTIONS = 4
GRID_SCALE = 4  # logits' side over a stride-16 map's


class PixelHead(nn.ModuleList):
    """V: four 3x3 convolutions with ReLU and one bilinear x2 between them (Sec. 3.2).

    Args:
        features: Channels of the feature map.
        channels: Hidden and output channels.
        upsample_before: The map is upsampled x2 before this convolution, 1 to 4.

    Source: Sec. 3.2; mal.md 3.4, where paper (3) and released code (4) differ; mal.md 3.7 for
    the start: He-normal by fan-out, zero bias.
    """

    def __init__(self, features: int, channels: int, upsample_before: int = 4) -> None:
        """Build the convolutions."""
        super().__init__()
        self.upsample_before = upsample_before
        for index in range(CONVOLUTIONS):
            convolution = nn.Conv2d(features if index == 0 else channels, channels, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            assert convolution.bias is not None  # it may be left out, but is not here
            nn.init.zeros_(convolution.bias)
            self.append(convolution)

    def forward(self, feature_BChw: Tensor) -> Tensor:
        """Return V, (B, channels, 2 h, 2 w), of a map (B, features, h, w)."""
        value = feature_BChw
        for index, convolution in enumerate(self, start=1):
            if index == self.upsample_before:
                value = _resize(value, 2 * value.shape[-1])
            value = F.relu(convolution(value))
        return value


class ScaledDecoder(nn.Module):
    """A decoder whose pixel head reads the map at a scale set by the box's size class (App. A.2).

    Args:
        features: Channels of the encoder's feature map.
        channels: Hidden and output channels.
        upsample_before: V is upsampled x2 before this convolution, 1 to 4.
        size_scaling: Resize by size class; if not, V reads a stride-16 map (mal.md 3.6, but the
            logits keep our grid).
        upsample: How many times finer than the feature map a stride-16 map is.
        feature_scale: V reads a map so many times as fine as that.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        upsample_before: int,
        size_scaling: bool,
        upsample: int,
        feature_scale: float = 1.0,
    ) -> None:
        """Build the pixel head."""
        super().__init__()
        self.upsample_before = upsample_before
        self.feature_scale = feature_scale
        self.size_scaling = size_scaling
        self.upsample = upsample
        self.value = PixelHead(features, channels, upsample_before)

    def forward(self, feature_BChw: Tensor, size_B: Tensor) -> Tensor:
        """Return logits (B, G, G) float32, G = 4 * upsample * h.

        Args:
            feature_BChw: (B, C, h, w) feature map, h = w.
            size_B: (B,) size class of each box: 0 small, 1 medium, 2 large, 3 none. On the CPU
                nobody waits for a GPU to know which crops are of a class.
        """
        if not self.size_scaling:
            return self._logits(feature_BChw, 1.0)
        grid = self._side(feature_BChw, GRID_SCALE)
        logits_BGG = feature_BChw.new_zeros((len(feature_BChw), grid, grid), dtype=torch.float32)
        for size, scale in enumerate(SIZE_SCALES):
            chosen = (size_B == size).nonzero().squeeze(1).to(feature_BChw.device)
            if len(chosen):
                logits = self._logits(feature_BChw[chosen], scale)
                logits_BGG = logits_BGG.index_copy(0, chosen, logits)
        return logits_BGG

    def scores(self, feature_BChw: Tensor, value_BChw: Tensor) -> Tensor:
        """Return logits (B, h, w) on the grid of V (B, channels, h, w), from it and the map."""
        raise NotImplementedError

    def _logits(self, feature_BChw: Tensor, scale: float) -> Tensor:
        """Return logits (B, G, G) of crops whose V reads the map at one scale."""
        side = self._side(feature_BChw, scale * self.feature_scale)
        value_BChw = self.value(_resize(feature_BChw, side))
        scores_Bhw = self.scores(feature_BChw, value_BChw).float()
        return _resize(scores_Bhw[:, None], self._side(feature_BChw, GRID_SCALE))[:, 0]

    def _side(self, feature_BChw: Tensor, scale: float) -> int:
        """Return the side of a map that is `scale` times as fine as a stride-16 map."""
        return max(1, round(feature_BChw.shape[-1] * self.upsample * scale))


class AttentionDecoder(ScaledDecoder):
    """Inner product of one instance vector K and a pixel map V (Sec. 3.2).

    Args:
        features: Channels of the encoder's feature map.
        channels: Hidden and output channels of both heads.
        key_pool: `mean` or `max` pooling in K.
        key_layers: Fully connected layers of K, 1 or 2.
        upsample_before: V is upsampled x2 before this convolution, 1 to 4.
        size_scaling: V reads the map at a scale set by the size class (App. A.2).
        upsample: How many times finer than the feature map a stride-16 map is.
        feature_scale: V reads a map so many times as fine as that.

    Source: Sec. 3.2, Fig. 3c; mal.md 3, where paper and released code differ.
    """

    def __init__(
        self,
        features: int,
        channels: int = 256,
        key_pool: str = "mean",
        key_layers: int = 2,
        upsample_before: int = 4,
        size_scaling: bool = True,
        upsample: int = 1,
        feature_scale: float = 1.0,
    ) -> None:
        """Build both heads."""
        super().__init__(features, channels, upsample_before, size_scaling, upsample, feature_scale)
        self.key_pool = key_pool
        layers: list[nn.Module] = [nn.Linear(features, channels)]
        for _ in range(key_layers - 1):
            layers += [nn.ReLU(), nn.Linear(channels, channels)]
        self.key = nn.Sequential(*layers)

    def scores(self, feature_BChw: Tensor, value_BChw: Tensor) -> Tensor:
        """Return K.V, (B, h, w)."""
        return torch.einsum("bc,bchw->bhw", self.instance_key(feature_BChw), value_BChw)

    def instance_key(self, feature_BChw: Tensor) -> Tensor:
        """Return K, (B, channels): what the object looks like, read from the un-resized map."""
        pooled = (
            feature_BChw.mean(dim=(2, 3)) if self.key_pool == "mean" else feature_BChw.amax((2, 3))
        )
        key_BC: Tensor = self.key(pooled)
        return key_BC


class FullyConvolutionalDecoder(ScaledDecoder):
    """V and one 1x1 convolution to the score map; no instance vector.

    Args:
        features: Channels of the encoder's feature map.
        channels: Channels of V.
        upsample_before: V is upsampled x2 before this convolution, 1 to 4.
        size_scaling: V reads the map at a scale set by the size class (App. A.2).
        upsample: How many times finer than the feature map a stride-16 map is.
        feature_scale: V reads a map so many times as fine as that.

    Source: Sec. 4.5, Fig. 3b: "we adopt the pixel-wise head V"; the last step is not described.
    """

    def __init__(
        self,
        features: int,
        channels: int = 256,
        upsample_before: int = 4,
        size_scaling: bool = True,
        upsample: int = 1,
        feature_scale: float = 1.0,
    ) -> None:
        """Build V and the last convolution."""
        super().__init__(features, channels, upsample_before, size_scaling, upsample, feature_scale)
        self.score = nn.Conv2d(channels, 1, 1)

    def scores(self, feature_BChw: Tensor, value_BChw: Tensor) -> Tensor:
        """Return the score map (B, h, w)."""
        score_B1hw: Tensor = self.score(value_BChw)
        return score_B1hw[:, 0]


class QueryDecoder(ScaledDecoder):
    """One learned query that attends to the map at three scales, times V: Mask2Former's design.

    The scales are those of App. A.2, all from the encoder's one map; V, scaled by size class,
    stands for Mask2Former's pixel embedding.

    Args:
        features: Channels of the encoder's feature map.
        channels: Width of the query, and channels of V.
        upsample_before: V is upsampled x2 before this convolution, 1 to 4.
        size_scaling: V reads the map at a scale set by the size class (App. A.2).
        upsample: How many times finer than the feature map a stride-16 map is.
        feature_scale: V reads a map so many times as fine as that.

    Source: Sec. 4.5, Fig. 3d, after Mask2Former (arXiv 2112.01527), Sec. 3.2.
    """

    def __init__(
        self,
        features: int,
        channels: int = 256,
        upsample_before: int = 4,
        size_scaling: bool = True,
        upsample: int = 1,
        feature_scale: float = 1.0,
    ) -> None:
        """Build V, the projection of the map and the transformer."""
        super().__init__(features, channels, upsample_before, size_scaling, upsample, feature_scale)
        self.memory = nn.Conv2d(features, channels, 1)
        self.transformer = QueryTransformer(channels, len(MEMORY_SCALES))

    def scores(self, feature_BChw: Tensor, value_BChw: Tensor) -> Tensor:
        """Return the query's mask logits (B, h, w)."""
        memory_BChw = self.memory(feature_BChw)
        memories = [
            _resize(memory_BChw, self._side(feature_BChw, scale)) for scale in MEMORY_SCALES
        ]
        logits_Bhw: Tensor = self.transformer(memories, value_BChw)
        return logits_Bhw


class FullyConnectedDecoder(nn.Module):
    """Two fully connected layers from the pooled map to every pixel of a mask of fixed side.

    The map is averaged to `pooled` x `pooled` first: flattened as it is, a map of 768 x 32 x 32
    would need 1.6 billion weights, for one crop size only. The mask has `side` x `side` pixels and
    is resized bilinearly to the grid. So any crop size works, and the number of weights depends
    on `features` alone: 85.5 million at 768. Not scaled by size class: V, which App. A.2 scales,
    has no part in it.

    Args:
        features: Channels of the encoder's feature map.
        upsample: How many times finer than the feature map a stride-16 map is.
        hidden: Width of the hidden layer.
        pooled: Side of the averaged map; 7 as in the box heads of R-CNN.
        side: Side of the mask before it is resized to the grid.

    Source: Sec. 4.5, Fig. 3a: "two fully connected layers with a hidden dimension of 2048"; the
    sides of map and mask are not given there.
    """

    def __init__(
        self, features: int, upsample: int = 1, hidden: int = 2048, pooled: int = 7, side: int = 64
    ) -> None:
        """Build both layers: He-normal, then small, so that every pixel starts near 0.5."""
        super().__init__()
        self.upsample = upsample
        self.pooled = pooled
        self.side = side
        self.hidden = nn.Linear(features * pooled**2, hidden)
        self.pixels = nn.Linear(hidden, side**2)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        nn.init.normal_(self.pixels.weight, std=0.01)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.pixels.bias)

    def forward(self, feature_BChw: Tensor, size_B: Tensor) -> Tensor:
        """Return logits (B, G, G) float32, G = 4 * upsample * h.

        Args:
            feature_BChw: (B, C, h, w) feature map, h = w.
            size_B: (B,) size classes, not used.
        """
        pooled_BN = F.adaptive_avg_pool2d(feature_BChw, self.pooled).flatten(1)
        logits_BN = self.pixels(F.relu(self.hidden(pooled_BN))).float()
        logits_B1hw = logits_BN.view(-1, 1, self.side, self.side)
        return _resize(logits_B1hw, GRID_SCALE * self.upsample * feature_BChw.shape[-1])[:, 0]


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
    feature_scale: float = 1.0,
) -> nn.Module:
    """Return a decoder of random values by its name in `cli.md`.

    Args:
        name: A key of `DECODERS`.
        features: Channels of the encoder's feature map.
        upsample: How many times finer than that map a stride-16 map is: 1, or 2 at stride 32.
        channels: Hidden and output channels; not of `fully_connected`.
        key_pool: See `AttentionDecoder`; likewise `key_layers`.
        key_layers: Not of the others.
        upsample_before: See `PixelHead`; not of `fully_connected`.
        size_scaling: See `ScaledDecoder`; not of `fully_connected`.
        feature_scale: Likewise.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in DECODERS:
        raise ConfigError(f"--decoder {name}: unknown (one of {', '.join(DECODERS)})")
    settings: dict[str, Any] = {"upsample": upsample}
    if name != "fully_connected":
        settings |= {"channels": channels, "upsample_before": upsample_before}
        settings |= {"size_scaling": size_scaling, "feature_scale": feature_scale}
    if name == "attention":
        settings |= {"key_pool": key_pool, "key_layers": key_layers}
    return DECODERS[name](features, **settings)


DECODERS: dict[str, type[nn.Module]] = {
    "attention": AttentionDecoder,
    "fully_connected": FullyConnectedDecoder,
    "fully_convolutional": FullyConvolutionalDecoder,
    "query": QueryDecoder,
}
