"""What malcli changes in timm's networks: heads off, another stem, another crop size.

Knows single networks of timm, not which of them is wanted.
"""

import itertools
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_abs_pos_embed_nhwc
from timm.models import group_parameters
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

JOIN_LAST = 99999  # timm's mark of a group that joins the one before it


class ConvStem(nn.Sequential):
    """Four convolutions of stride 2 that stand for patches of 16, as in the released code.

    Source: mal.md 2.1; the paper does not mention it.
    """

    def __init__(self, width: int) -> None:
        """Start from torch's own values.

        Args:
            width: Channels of the tokens, a multiple of 8.
        """
        stages = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, after, eps=1e-6),
                nn.GELU(),
            )
            for before, after in itertools.pairwise((3, width // 8, width // 4, width // 2, width))
        ]
        stages[-1].append(nn.Conv2d(width, width, 1))
        super().__init__(*stages)


def put_stem(body: Any) -> bool:  # noqa: ANN401
    """Put the released code's convolutions in place of a patch embedding, in place.

    Returns:
        Whether it fits: only plain ViTs with patches of 16 have the place for it.
    """
    patch: Any = getattr(body, "patch_embed", None)
    if not has_grid(body) or type(patch) is not PatchEmbed or patch.patch_size[0] != 16:
        return False
    patch.proj = ConvStem(body.embed_dim)
    return True


def is_resizable(body: nn.Module) -> bool:
    """Return whether a network that depends on the crop's size can be fitted to another one."""
    return hasattr(body, "set_input_size") or isinstance(body, VisionTransformerSAM)


def resize(body: Any, side: int, position: str, windows: Any) -> None:  # noqa: ANN401
    """Fit a network to crops of another side, in place; position values are resampled.

    Args:
        body: A network with `set_input_size`, or a SAM encoder.
        side: Side of the crops, pixels.
        position: `antialiased` or `released`; the latter for plain ViTs only.
        windows: What `windows_of` said of it when it was new.
    """
    if isinstance(body, VisionTransformerSAM):
        _resize_sam(body, side)
        return
    released = position == "released"
    grid, old = (body.pos_embed, body.patch_embed.grid_size[0]) if released else (None, 0)
    # The windows of a Swin stay as they were trained; timm would let them grow with the crop.
    kept = {"window_size": windows} if windows else {}
    with warnings.catch_warnings():
        # Tables of windows larger than the map are shrunk by timm in a way that torch minds.
        warnings.simplefilter("ignore", UserWarning)
        body.set_input_size(img_size=(side, side), **kept)
    if grid is not None:
        values = resample_released(grid.detach(), old, body.patch_embed.grid_size[0])
        body.pos_embed = nn.Parameter(values, requires_grad=grid.requires_grad)


def resample_released(grid_1NC: Tensor, old: int, new: int) -> Tensor:
    """Return a position grid of another size, as the released code resamples it.

    Bicubic without antialiasing, from the coordinate `(i + 0.5) * old / (new + 0.1) - 0.5`: its
    scale factor is a tenth of a cell too large, and used as it is.

    Args:
        grid_1NC: (1, P + old * old, C): P values of class and register tokens, then the grid
            row by row.
        old: Side of the stored grid, cells.
        new: Side of the grid wanted, cells.

    Source: mal.md 2.2.
    """
    if old == new:
        return grid_1NC
    prefix = grid_1NC.shape[1] - old * old
    grid_1Chw = grid_1NC[:, prefix:].mT.reshape(1, -1, old, old)
    resampled_1Chw = F.interpolate(
        grid_1Chw,
        scale_factor=(new + 0.1) / old,
        mode="bicubic",
        align_corners=False,
        recompute_scale_factor=False,
    )
    return torch.cat([grid_1NC[:, :prefix], resampled_1Chw.flatten(2).mT], dim=1)


def drop_heads(body: Any) -> set[str]:  # noqa: ANN401
    """Take off what comes after the feature map, in place; return the names of its parameters.

    A norm that stands after the pooling is applied to each feature instead.
    """
    before = set(body.state_dict())
    late = getattr(body, "fc_norm", nn.Identity())
    if isinstance(getattr(body, "norm", None), nn.Identity) and not isinstance(late, nn.Identity):
        body.norm = late
    if isinstance(body, ConvNeXt) and isinstance(body.norm_pre, nn.Identity):
        body.norm_pre = body.head.norm
    if hasattr(body, "prune_intermediate_layers"):
        body.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    return before - set(body.state_dict())


def has_grid(body: Any) -> bool:  # noqa: ANN401
    """Return whether a network is a plain ViT with a learned grid of position values."""
    return isinstance(body, VisionTransformer) and body.pos_embed is not None


def windows_of(body: Any) -> Any:  # noqa: ANN401
    """Return the side of a Swin's attention windows, one for all stages or one for each."""
    if not isinstance(body, SwinTransformer):
        return None
    windows = [stage.blocks[0].window_size for stage in body.layers]
    return windows[0] if len(set(windows)) == 1 else windows


def _resize_sam(body: VisionTransformerSAM, side: int) -> None:
    """Fit a SAM encoder to crops of another side: its grid and its global relative positions.

    timm does the same in every forward; done once, they are trained and saved at this size.
    """
    cells = side // body.patch_embed.patch_size[0]
    body.patch_embed.set_input_size(img_size=(side, side))
    grid = body.pos_embed
    if grid is not None:
        values = resample_abs_pos_embed_nhwc(grid.detach(), [cells, cells])
        body.pos_embed = nn.Parameter(values, requires_grad=grid.requires_grad)
    for block in body.blocks:
        if block.window_size or not block.attn.use_rel_pos:
            continue
        for key in ("rel_pos_h", "rel_pos_w"):
            table_LC = getattr(block.attn, key)
            if len(table_LC) != 2 * cells - 1:
                values = F.interpolate(table_LC.detach().T[None], 2 * cells - 1, mode="linear")
                new = nn.Parameter(values[0].T.contiguous(), requires_grad=table_LC.requires_grad)
                setattr(block.attn, key, new)


def stored_cells(body: Any, grid: Tensor) -> int:  # noqa: ANN401
    """Return the side of a stored grid of position values in cells; 0 if it is not of this kind.

    Args:
        body: A network that can be resized.
        grid: (1, P + side * side, C), or SAM's (1, side, side, C).
    """
    own = getattr(body, "pos_embed", None)
    if not isinstance(own, Tensor) or grid.ndim != own.ndim:
        return 0
    if own.ndim == 4:
        height, width = grid.shape[1:3]
        return height if height == width else 0
    cells = max(0, grid.shape[1] - (own.shape[1] - body.patch_embed.num_patches))
    side = math.isqrt(cells)
    return side if side**2 == cells else 0


def layers_above(body: Any) -> dict[str, int]:  # noqa: ANN401
    """Return for each parameter's name the number of layers above its own, as timm groups them.

    Args:
        body: A network with `group_matcher`.
    """
    groups = dict(body.group_matcher())
    first, last = next(iter(groups)), list(groups)[-1]
    if isinstance(groups[first], str):
        groups[first] += r"|^rope\."  # learned rotations, which timm's pattern forgets
    patterns = [(groups[last], None)] if isinstance(groups[last], str) else list(groups[last])
    # All other names belong to what stands behind the last block; timm's number joins them to it.
    groups[last] = [*patterns, (r".", (JOIN_LAST,))]
    layer: dict[str, int] = group_parameters(body, groups, reverse=True)
    return {name: max(layer.values()) - number for name, number in layer.items()}


def leaves(output: Tensor) -> set[int]:
    """Return the ids of the parameters that an output depends on."""
    found: set[int] = set()
    seen: set[Any] = {None}
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found
