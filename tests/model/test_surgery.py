"""Changes to timm's networks: position grids, windows and tables of other sizes."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM

from malcli.model.encoders import build_encoder
from malcli.model.surgery import resample_released, resize, windows_of


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampled_by_loops(values, old, new):
    """(old, old) -> (new, new), one output value at a time (mal.md 2.2)."""
    out = torch.zeros(new, new, dtype=torch.float64)
    for i in range(new):
        for j in range(new):
            y, x = ((k + 0.5) * old / (new + 0.1) - 0.5 for k in (i, j))
            for row in range(math.floor(y) - 1, math.floor(y) + 3):
                for column in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = values[min(max(row, 0), old - 1), min(max(column, 0), old - 1)]
                    out[i, j] += cubic(y - row) * cubic(x - column) * value
    return out


@pytest.mark.parametrize(("old", "new", "prefix"), [(14, 16, 1), (14, 4, 1), (5, 9, 0), (6, 3, 5)])
def test_the_released_resampling_is_the_formula_of_the_specification(old, new, prefix):
    grid = torch.randn(1, prefix + old * old, 2, generator=torch.Generator().manual_seed(0))
    resampled = resample_released(grid, old, new)
    assert resampled.shape == (1, prefix + new * new, 2)
    assert torch.equal(resampled[:, :prefix], grid[:, :prefix])
    for channel in range(2):
        values = grid[0, prefix:, channel].view(old, old).double()
        wanted = resampled_by_loops(values, old, new)
        got = resampled[0, prefix:, channel].view(new, new).double()
        assert torch.allclose(got, wanted, atol=1e-4)


def test_a_grid_of_the_same_size_is_not_resampled():
    grid = torch.randn(1, 197, 3)
    assert resample_released(grid, 14, 14) is grid


@pytest.mark.parametrize("position", ["released", "antialiased"])
def test_a_crop_size_resamples_the_grid_the_way_that_was_asked_for(position):
    encoder = build_encoder("vit/64x1", 224, position=position)
    stored = encoder.body.pos_embed.detach().clone()
    encoder.set_crop_size(512)
    got = encoder.body.pos_embed.detach()
    released = resample_released(stored, 14, 32)
    assert got.shape == released.shape == (1, 1 + 32 * 32, 64)
    assert torch.equal(got, released) == (position == "released")
    assert (got - released).abs().max() < 0.1  # the other way is another value of the same thing


@pytest.mark.parametrize("side", [64, 192])
def test_a_sam_encoder_of_another_size_equals_timm_s_own_in_every_forward(side):
    torch.manual_seed(0)
    body = VisionTransformerSAM(
        img_size=128, embed_dim=32, depth=2, num_heads=2, num_classes=0, use_rel_pos=True,
        window_size=3, global_attn_indexes=(1,), neck_chans=16,
    ).eval()  # fmt: skip
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # its tables start at zero
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        in_forward = body.forward_features(image)
        resize(body, side, "antialiased", None)
        resized = body.forward_features(image)
    cells = side // 16
    assert body.pos_embed.shape == (1, cells, cells, 32)
    assert body.blocks[1].attn.rel_pos_h.shape == (2 * cells - 1, 16)
    assert body.blocks[0].attn.rel_pos_h.shape == (5, 16)  # windows keep theirs
    assert torch.allclose(in_forward, resized, atol=1e-5)


def test_a_swin_keeps_its_windows_and_their_tables():
    body = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, depths=(1, 2, 1, 1))
    windows = windows_of(body)
    assert windows == (7, 7)
    key = "layers.1.blocks.1.attn.relative_position_bias_table"
    table = body.state_dict()[key].clone()
    resize(body, 448, "antialiased", windows)
    assert body.layers[1].blocks[1].window_size == (7, 7)
    assert torch.equal(body.state_dict()[key], table)


def test_a_swin_with_windows_of_two_sizes_keeps_both():
    body = timm.create_model("swin_s3_tiny_224", num_classes=0, depths=(1, 1, 1, 1))
    assert windows_of(body) == [(7, 7), (7, 7), (14, 14), (7, 7)]
