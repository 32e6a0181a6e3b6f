"""Attention maps of a plain vision transformer: its own weights, as its softmax gives them.

Knows nothing of boxes or pictures.

Shape suffixes: B crops, H heads, T all tokens (class and register tokens first), L layers,
h w patch grid.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from malcli.errors import ConfigError
from malcli.model.encoders import ImageEncoder

PLAIN = "take a plain ViT, such as vit_mae_base, vit_deit_small or vit_dinov2_base"
SUM_TOLERANCE = 0.02  # bf16 keeps three digits, and a row adds up a thousand of them


def attention_maps(
    encoder: ImageEncoder, image_BCHW: Tensor, layers: Sequence[int], patch_B: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return where the class token and one patch of each crop look, means over the heads.

    Args:
        encoder: In evaluation mode.
        image_BCHW: (B, 3, S, S) normalised crops.
        layers: Numbers of layers, the first is 1; checked by `check_layers`.
        patch_B: (B,) number of the patch of each crop, row by row.

    Returns:
        Of the class token, None where the encoder has none, and of the patch: each (B, L, h, w)
        float32, the share of the attention on each patch; with the share on class and register
        tokens it sums to 1.

    Raises:
        ConfigError: A layer has no attention between all tokens.

    Source: Fig. 5 of the paper shows maps of layers 4, 8 and 12.
    """
    batch = len(image_BCHW)
    side_h, side_w = (side // encoder.stride for side in image_BCHW.shape[-2:])
    prefix = int(getattr(encoder.body, "num_prefix_tokens", 0))
    query_B = patch_B + prefix
    rows: dict[int, Tensor] = {}  # of each layer, (B, 2, T): first token, patch

    def keep(layer: int, attention: Tensor) -> None:
        tokens = prefix + side_h * side_w
        attention_BHTT = _all_pairs(encoder, layer, attention, batch, tokens)
        picked = torch.stack([torch.zeros_like(query_B), query_B], dim=1)
        index = picked[:, None, :, None].expand(-1, attention_BHTT.shape[1], -1, tokens)
        rows[layer] = attention_BHTT.gather(2, index).float().mean(dim=1)

    with torch.inference_mode(), _watched(encoder, layers, keep):
        encoder(image_BCHW)
    for layer in layers:
        if layer not in rows:
            raise _no_attention(encoder, layer)
    maps_BL2T = torch.stack([rows[layer][..., prefix:] for layer in layers], dim=1)
    maps = maps_BL2T.reshape(batch, len(layers), 2, side_h, side_w)
    has_class = getattr(encoder.body, "cls_token", None) is not None
    return (maps[:, :, 0] if has_class else None), maps[:, :, 1]


def check_layers(encoder: ImageEncoder, layers: Sequence[int]) -> None:
    """Refuse an encoder without layers of global attention, and layers that it does not have.

    Raises:
        ConfigError: With what to take.
    """
    blocks = _blocks(encoder)
    if not blocks:
        raise _no_attention(encoder, layers[0])
    depth = len(blocks)
    if max(layers) > depth:
        good = ",".join(str(max(1, round(depth * part / 3))) for part in (1, 2, 3))
        raise ConfigError(
            f"--layers: {encoder.name} has {depth} layers, not {max(layers)}; take --layers {good}"
        )
    windows = [int(getattr(block, "window_size", 0) or 0) for block in blocks]
    bounded = [layer for layer in layers if windows[layer - 1]]
    everywhere = [str(number) for number, window in enumerate(windows, 1) if not window]
    if bounded and everywhere:
        raise ConfigError(
            f"--layers: layer {bounded[0]} of {encoder.name} attends inside windows; layers "
            f"that see the whole crop: {','.join(everywhere)}"
        )


def _blocks(encoder: ImageEncoder) -> list[Any]:
    """Return the layers of a plain ViT; empty for any other network."""
    blocks = getattr(encoder.body, "blocks", None)
    listed = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    plain = all(isinstance(_dropout(block), nn.Module) for block in listed)
    return listed if plain else []


def _dropout(block: Any) -> object:  # noqa: ANN401
    """Return the module that gets the attention weights right after their softmax."""
    return getattr(getattr(block, "attn", None), "attn_drop", None)


@contextlib.contextmanager
def _watched(
    encoder: ImageEncoder, layers: Sequence[int], keep: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call keep(layer, attention) as the network computes it; afterwards all is as it was.

    A fused kernel never holds the weights, so those layers compute them in steps meanwhile.
    """
    blocks = _blocks(encoder)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            attention = blocks[layer - 1].attn
            if hasattr(attention, "fused_attn"):
                stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
                attention.fused_attn = False

            def hook(module: nn.Module, inputs: tuple[Tensor, ...], layer: int = layer) -> None:
                keep(layer, inputs[0])

            handle = attention.attn_drop.register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield


def _all_pairs(
    encoder: ImageEncoder, layer: int, attention: Tensor, batch: int, tokens: int
) -> Tensor:
    """Return attention as (B, H, T, T), where each row is a softmax over all tokens."""
    if attention.shape[-2:] != (tokens, tokens) or attention.ndim not in (3, 4):
        raise _no_attention(encoder, layer)
    attention_BHTT = attention.reshape(batch, -1, tokens, tokens)  # SAM joins crops and heads
    sums = attention_BHTT.float().sum(dim=-1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=SUM_TOLERANCE):
        raise _no_attention(encoder, layer)
    return attention_BHTT


def _no_attention(encoder: ImageEncoder, layer: int) -> ConfigError:
    return ConfigError(
        f"--attention: {encoder.name} has no attention between all patches of a crop in layer "
        f"{layer}; {PLAIN}"
    )
