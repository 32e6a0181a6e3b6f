"""The attention decoder against a literal one: plain convolutions, one crop at a time."""

import pytest
import torch
import torch.nn.functional as F

from malcli.model.decoders import DECODERS, AttentionDecoder

FEATURES, CHANNELS, SIDE = 6, 5, 8
SCALES = {0: 0.5, 1: 1, 2: 2}  # mal_spec 3.3: 16, 32, 64 of 32


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def decode_literally(decoder, feature, size, *, pool, upsample_before, scaled):
    """Return the logits (4 side, 4 side) of one feature map (C, side, side): mal_spec 3."""
    side = feature.shape[-1]
    state = decoder.state_dict()
    flat = feature.flatten(1)
    key = flat.mean(dim=1) if pool == "mean" else flat.max(dim=1).values
    key = state["key.0.weight"] @ key + state["key.0.bias"]
    if "key.2.weight" in state:
        key = state["key.2.weight"] @ key.clamp(min=0) + state["key.2.bias"]
    value = feature[None]
    if scaled and size != 1:
        wanted = int(side * SCALES[size])
        value = F.interpolate(value, (wanted, wanted), mode="bilinear", align_corners=False)
    for index in range(4):
        if index + 1 == upsample_before:
            value = F.interpolate(value, scale_factor=2, mode="bilinear", align_corners=False)
        weight, bias = state[f"value.{index}.weight"], state[f"value.{index}.bias"]
        value = F.conv2d(value, weight, bias, padding=1).relu()
    scores = torch.zeros(value.shape[-2:])
    for channel in range(len(key)):
        scores += key[channel] * value[0, channel]
    grid = (4 * side, 4 * side)
    return F.interpolate(scores[None, None], grid, mode="bilinear", align_corners=False)[0, 0]


CASES = [
    ("mean", 2, 4, True),  # the released decoder
    ("max", 1, 3, True),  # the paper's
    ("mean", 2, 4, False),
    ("mean", 1, 1, True),
    ("max", 2, 2, False),
]


@pytest.mark.parametrize(("pool", "layers", "upsample_before", "scaled"), CASES)
def test_logits_equal_the_literal_decoder(pool, layers, upsample_before, scaled):
    decoder = AttentionDecoder(FEATURES, CHANNELS, pool, layers, upsample_before, scaled)
    for convolution in decoder.value:
        torch.nn.init.normal_(convolution.bias)  # zero at the start: would hide a lost bias
    feature = torch.randn(6, FEATURES, SIDE, SIDE)
    size = torch.tensor([2, 0, 1, 1, 0, 2])
    with torch.no_grad():
        logits = decoder(feature, size)
        wanted = [
            decode_literally(
                decoder, one, int(k), pool=pool, upsample_before=upsample_before, scaled=scaled
            )
            for one, k in zip(feature, size, strict=True)
        ]
    assert logits.shape == (6, 4 * SIDE, 4 * SIDE)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scaled", [True, False])
def test_mixed_size_classes_equal_one_crop_at_a_time(scaled):
    decoder = AttentionDecoder(FEATURES, CHANNELS, size_scaling=scaled)
    feature = torch.randn(5, FEATURES, SIDE, SIDE)
    size = torch.tensor([1, 2, 0, 2, 1])
    with torch.no_grad():
        together = decoder(feature, size)
        for i in range(5):
            alone = decoder(feature[i : i + 1], size[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-6)


def test_the_size_class_matters_only_with_scaling():
    feature = torch.randn(1, FEATURES, SIDE, SIDE)
    for scaled in (True, False):
        decoder = AttentionDecoder(FEATURES, CHANNELS, size_scaling=scaled)
        small, medium, large = (decoder(feature, torch.tensor([k])) for k in range(3))
        assert torch.equal(small, medium) != scaled
        assert torch.equal(medium, large) != scaled


@pytest.mark.parametrize("side", [1, 2, 5, 32])
def test_the_grid_is_four_times_the_feature_map(side):
    decoder = AttentionDecoder(FEATURES, CHANNELS)
    logits = decoder(torch.randn(3, FEATURES, side, side), torch.tensor([0, 1, 2]))
    assert logits.shape == (3, 4 * side, 4 * side)
    assert logits.isfinite().all()


def test_value_maps_are_a_sixteenth_an_eighth_and_a_quarter_of_the_input():
    decoder = AttentionDecoder(FEATURES, CHANNELS)
    sides = [decoder.pixel_value(torch.zeros(1, FEATURES, s, s)).shape[-1] for s in (16, 32, 64)]
    assert sides == [32, 64, 128]  # of 512, from 1/32, 1/16, 1/8 (mal_spec 3.4)


def test_every_crop_and_every_parameter_gets_a_gradient():
    decoder = AttentionDecoder(FEATURES, CHANNELS)
    feature = torch.randn(4, FEATURES, SIDE, SIDE, requires_grad=True)
    decoder(feature, torch.tensor([0, 1, 2, 1])).square().sum().backward()
    assert feature.grad is not None
    assert (feature.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_convolutions_start_he_normal_by_fan_out_without_bias():
    decoder = AttentionDecoder(48, 64)
    for convolution in decoder.value:
        assert (convolution.bias == 0).all()
        wanted = (2 / (9 * 64)) ** 0.5  # gain of ReLU over kernel area times output channels
        assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.05)


def test_the_released_shape_has_the_released_parameters():
    # mal_spec 10.1: mlp1 [256, D], mlp2 [256, 256], convs 0 [256, D, 3, 3], 1-3 [256, 256, 3, 3].
    shapes = {k: tuple(v.shape) for k, v in DECODERS["attention"](768).state_dict().items()}
    assert shapes == {
        "key.0.weight": (256, 768),
        "key.0.bias": (256,),
        "key.2.weight": (256, 256),
        "key.2.bias": (256,),
        "value.0.weight": (256, 768, 3, 3),
        "value.0.bias": (256,),
        **{f"value.{i}.weight": (256, 256, 3, 3) for i in (1, 2, 3)},
        **{f"value.{i}.bias": (256,) for i in (1, 2, 3)},
    }
