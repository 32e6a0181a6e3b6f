"""The transformer of the query decoder: one learned query, masked attention (Mask2Former).

Knows nothing of encoders or size classes: maps and pixel embedding come in, a mask goes out. Each
layer's mask only steers the next layer's attention; Mask2Former trains every one of them with a
loss of its own, which a decoder that returns one map cannot offer.

Shape suffixes: B crops, C channels, h w a map's grid, N pixels of a map, M attention heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_HEADS = 8
FEED_FORWARD = 4  # hidden width over channels
TEMPERATURE = 10_000.0  # longest over shortest wavelength of the position code


class QueryLayer(nn.Module):
    """Masked cross-attention, self-attention and feed-forward, each added and normalised.

    Self-attention among a single query weighs that query by 1, whatever its query and key
    projections say: what is left of it is one linear map.

    Source: arXiv 2112.01527, Sec. 3.2.1.
    """

    def __init__(self, channels: int) -> None:
        """Build a layer for queries of so many channels."""
        super().__init__()
        self.heads = head_count(channels)
        self.ask = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # softmax takes no notice of a bias
        self.content = nn.Linear(channels, channels)
        self.read = nn.Linear(channels, channels)
        self.self_attention = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, FEED_FORWARD * channels),
            nn.ReLU(),
            nn.Linear(FEED_FORWARD * channels, channels),
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])

    def forward(
        self, query_B1C: Tensor, memory_BNC: Tensor, code_NC: Tensor, blocked_B1N: Tensor
    ) -> Tensor:
        """Return the query after this layer, (B, 1, C).

        Args:
            query_B1C: (B, 1, C).
            memory_BNC: (B, N, C) pixels to read.
            code_NC: (N, C) code of their positions, added to the keys.
            blocked_B1N: (B, 1, N) bool, True for pixels not to read; never all of a crop's.
        """
        read_BM1c = F.scaled_dot_product_attention(
            self._by_head(self.ask(query_B1C)),
            self._by_head(self.key(memory_BNC + code_NC)),
            self._by_head(self.content(memory_BNC)),
            attn_mask=~blocked_B1N[:, None],
        )
        read_B1C = self.read(read_BM1c.transpose(1, 2).flatten(2))
        query_B1C = self.norms[0](query_B1C + read_B1C)
        query_B1C = self.norms[1](query_B1C + self.self_attention(query_B1C))
        query_B1C = self.norms[2](query_B1C + self.feed_forward(query_B1C))
        return query_B1C

    def _by_head(self, values_BNC: Tensor) -> Tensor:
        """Return (B, N, C) as (B, M, N, C / M)."""
        batch, count, channels = values_BNC.shape
        split_BNMc = values_BNC.reshape(batch, count, self.heads, channels // self.heads)
        return split_BNMc.transpose(1, 2)


class QueryTransformer(nn.Module):
    """A learned query, refined by layers that cycle over the scales, times the pixel embedding.

    One crop holds one object, so there is one query, without the embedding that tells queries
    apart. Parameters at 256 channels: 5.3 million, 6 layers.

    Args:
        channels: Of query, memories and pixel embedding.
        scales: Number of memories.
        rounds: Times that the layers go through all memories; Mask2Former has 3.

    Source: arXiv 2112.01527, Sec. 3.2 and Fig. 2.
    """

    def __init__(self, channels: int, scales: int, rounds: int = 2) -> None:
        """Build the layers and the mask head, an MLP of three layers."""
        super().__init__()
        self.query_C = nn.Parameter(torch.randn(channels))
        self.scale_SC = nn.Parameter(torch.randn(scales, channels))
        self.layers = nn.ModuleList([QueryLayer(channels) for _ in range(scales * rounds)])
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )

    def forward(self, memories: list[Tensor], pixel_BChw: Tensor) -> Tensor:
        """Return the last layer's mask logits (B, h, w).

        Args:
            memories: (B, C, h, w) maps, coarse to fine, one a scale.
            pixel_BChw: (B, C, h, w) pixel embedding.
        """
        query_B1C = self.query_C.expand(len(pixel_BChw), 1, -1)
        logits_Bhw = self.mask_logits(query_B1C, pixel_BChw)
        for index, layer in enumerate(self.layers):
            scale = index % len(memories)
            memory_BChw = memories[scale]
            side_hw = (memory_BChw.shape[-2], memory_BChw.shape[-1])
            memory_BNC = memory_BChw.flatten(2).transpose(1, 2) + self.scale_SC[scale]
            code_NC = position_code(side_hw, memory_BNC)
            blocked_B1N = blocked_pixels(logits_Bhw.detach(), side_hw)
            query_B1C = layer(query_B1C, memory_BNC, code_NC, blocked_B1N)
            logits_Bhw = self.mask_logits(query_B1C, pixel_BChw)
        return logits_Bhw

    def mask_logits(self, query_B1C: Tensor, pixel_BChw: Tensor) -> Tensor:
        """Return the mask logits (B, h, w) of queries (B, 1, C)."""
        key_BC = self.head(self.norm(query_B1C))[:, 0]
        return torch.einsum("bc,bchw->bhw", key_BC, pixel_BChw)


def head_count(channels: int) -> int:
    """Return the most attention heads, 8 at most, that divide the channels."""
    return max(heads for heads in range(1, MAX_HEADS + 1) if channels % heads == 0)


def blocked_pixels(logits_Bhw: Tensor, side_hw: tuple[int, int]) -> Tensor:
    """Return which pixels of a map of another side lie outside the mask, (B, 1, N) bool.

    Outside is a probability below 0.5. A crop with an empty mask has none blocked.

    Source: arXiv 2112.01527, Eq. 2-3.
    """
    resized_B1hw = F.interpolate(
        logits_Bhw[:, None].float(), side_hw, mode="bilinear", align_corners=False
    )
    blocked_B1N = resized_B1hw.flatten(2) < 0
    return blocked_B1N & ~blocked_B1N.all(dim=2, keepdim=True)


def position_code(side_hw: tuple[int, int], like: Tensor) -> Tensor:
    """Return sines and cosines of pixels' places, (N, C), in the type and channels of `like`.

    Places are relative to the crop, so that the code does not depend on the map's side.

    Args:
        side_hw: Height and width of the map, N = h * w.
        like: (..., C) whose last axis, type and device the code takes.
    """
    channels = like.shape[-1]
    count = math.ceil(channels / 4)  # sine and cosine of each wavelength, for y and for x
    frequency_F = 2 * math.pi * TEMPERATURE ** -(torch.arange(count, device=like.device) / count)
    parts = []
    for axis, side in enumerate(side_hw):
        place_side = (torch.arange(side, device=like.device) + 0.5) / side
        wave = place_side[:, None] * frequency_F
        code = torch.cat([wave.sin(), wave.cos()], dim=1)
        parts.append(code[:, None] if axis == 0 else code[None])
    code_hwC = torch.cat([part.expand(*side_hw, -1) for part in parts], dim=2)
    return code_hwC.flatten(0, 1)[:, :channels].to(like.dtype)
