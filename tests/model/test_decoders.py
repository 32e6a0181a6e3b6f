"""The decoders against literal ones: one crop at a time, every resize by its formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from malcli.errors import ConfigError
from malcli.geometry.boxes import NO_SIZE
from malcli.model.decoders import (
    DECODERS,
    AttentionDecoder,
    FullyConnectedDecoder,
    FullyConvolutionalDecoder,
    PixelHead,
    QueryDecoder,
    build_decoder,
)

FEATURES, CHANNELS, SIDE = 6, 8, 8
SCALES = {0: 0.5, 1: 1, 2: 2}  # mal.md 3.3: 16, 32, 64 of 32
NAMES = list(DECODERS)
SCALED = ("attention", "fully_convolutional", "query")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(name, features=FEATURES, upsample=1, **changes):
    settings = {
        "channels": CHANNELS,
        "key_pool": "mean",
        "key_layers": 2,
        "upsample_before": 4,
        "size_scaling": True,
    }
    return build_decoder(name, features, upsample, **(settings | changes))


def bilinear_weights(side, wanted):
    """Return (wanted, side): how much each old pixel counts for each new one, along one axis."""
    weights = torch.zeros(wanted, side)
    for new in range(wanted):
        place = max(0.0, (new + 0.5) * side / wanted - 0.5)  # of the pixel's centre
        low = math.floor(place)
        weights[new, low] += 1 - (place - low)
        weights[new, min(low + 1, side - 1)] += place - low
    return weights


def resize_literally(values, wanted):
    """Resize the last two axes to wanted x wanted; mal.md: half-pixel centres, no antialias."""
    weights = bilinear_weights(values.shape[-1], wanted)
    return weights @ values @ weights.T


def value_literally(state, feature, size, upsample, upsample_before, scaled, finer=1.0):
    """Return V of one map (C, side, side): mal.md 3.3 and 3.4, on a map `finer` times as fine."""
    scale = upsample * (SCALES[size] if scaled else 1) * finer
    value = resize_literally(feature, int(feature.shape[-1] * scale))
    for index in range(4):
        if index + 1 == upsample_before:
            value = resize_literally(value, 2 * value.shape[-1])
        weight, bias = state[f"value.{index}.weight"], state[f"value.{index}.bias"]
        value = F.conv2d(value[None], weight, bias, padding=1)[0].relu()
    return value


def decode_literally(decoder, feature, size, *, pool, upsample_before, scaled, upsample, finer=1.0):
    """Return the logits (G, G) of one feature map (C, side, side): mal.md 3."""
    state = decoder.state_dict()
    flat = feature.flatten(1)
    key = flat.mean(dim=1) if pool == "mean" else flat.max(dim=1).values
    key = state["key.0.weight"] @ key + state["key.0.bias"]
    if "key.2.weight" in state:
        key = state["key.2.weight"] @ key.clamp(min=0) + state["key.2.bias"]
    value = value_literally(state, feature, size, upsample, upsample_before, scaled, finer)
    scores = torch.zeros(value.shape[-2:])
    for channel in range(len(key)):
        scores += key[channel] * value[channel]
    return resize_literally(scores, 4 * upsample * feature.shape[-1])


def with_biases(decoder):
    """Return the decoder with biases that are not 0, as at the start: a lost one would not show."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return decoder


def test_the_literal_resize_of_two_pixels_is_the_one_done_by_hand():
    row = torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    assert resize_literally(row, 4).tolist() == [[0, 1, 3, 4]] * 4
    assert resize_literally(row, 1).tolist() == [[2]]


CASES = [
    ("mean", 2, 4, True, 1),  # the released decoder
    ("max", 1, 3, True, 1),  # the paper's
    ("mean", 2, 4, True, 2),
    ("mean", 2, 4, False, 1),
    ("max", 1, 3, False, 2),
    ("mean", 1, 1, True, 1),
    ("max", 2, 2, False, 1),
]


@pytest.mark.parametrize(("pool", "layers", "upsample_before", "scaled", "upsample"), CASES)
def test_attention_equals_the_literal_decoder(pool, layers, upsample_before, scaled, upsample):
    decoder = with_biases(
        AttentionDecoder(FEATURES, CHANNELS, pool, layers, upsample_before, scaled, upsample)
    )
    feature = torch.randn(6, FEATURES, SIDE, SIDE)
    size = torch.tensor([2, 0, 1, 1, 0, 2])
    settings = {"upsample_before": upsample_before, "scaled": scaled, "upsample": upsample}
    with torch.no_grad():
        logits = decoder(feature, size)
        wanted = [
            decode_literally(decoder, one, int(k), pool=pool, **settings)
            for one, k in zip(feature, size, strict=True)
        ]
    assert torch.allclose(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("finer", [0.5, 2.0])
def test_attention_at_another_feature_scale_equals_the_literal_decoder(scaled, finer):
    decoder = with_biases(
        build("attention", size_scaling=scaled, feature_scale=finer, upsample_before=4)
    )
    feature, size = torch.randn(3, FEATURES, SIDE, SIDE), torch.tensor([2, 0, 1])
    settings = {"pool": "mean", "upsample_before": 4, "scaled": scaled, "upsample": 1}
    with torch.no_grad():
        logits = decoder(feature, size)
        wanted = [
            decode_literally(decoder, one, int(k), finer=finer, **settings)
            for one, k in zip(feature, size, strict=True)
        ]
    assert torch.allclose(logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("scaled", "upsample"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_fully_convolutional_is_v_and_a_weighted_sum_of_its_channels(scaled, upsample):
    decoder = with_biases(
        FullyConvolutionalDecoder(FEATURES, CHANNELS, 3, scaled, upsample=upsample)
    )
    feature = torch.randn(3, FEATURES, SIDE, SIDE)
    state = decoder.state_dict()
    with torch.no_grad():
        logits = decoder(feature, torch.tensor([0, 1, 2]))
    for size in range(3):
        value = value_literally(state, feature[size], size, upsample, 3, scaled)
        score = state["score.bias"].expand(value.shape[-2:]).clone()
        for channel in range(CHANNELS):
            score += state["score.weight"][0, channel, 0, 0] * value[channel]
        wanted = resize_literally(score, 4 * upsample * SIDE)
        assert torch.allclose(logits[size], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("side", "upsample"), [(8, 1), (4, 2), (14, 1), (5, 1)])
def test_fully_connected_is_two_matrix_products_of_the_averaged_map(side, upsample):
    decoder = with_biases(FullyConnectedDecoder(FEATURES, upsample, hidden=10, pooled=7, side=12))
    feature = torch.randn(2, FEATURES, side, side)
    state = decoder.state_dict()
    with torch.no_grad():
        logits = decoder(feature, torch.tensor([0, 2]))
    edges = [(i * side // 7, -(-(i + 1) * side // 7)) for i in range(7)]
    for index in range(2):
        pooled = torch.zeros(FEATURES, 7, 7)
        for y, (top, bottom) in enumerate(edges):
            for x, (left, right) in enumerate(edges):
                pooled[:, y, x] = feature[index, :, top:bottom, left:right].mean(dim=(1, 2))
        hidden = state["hidden.weight"] @ pooled.flatten() + state["hidden.bias"]
        pixels = state["pixels.weight"] @ hidden.clamp(min=0) + state["pixels.bias"]
        wanted = resize_literally(pixels.view(12, 12), 4 * upsample * side)
        assert torch.allclose(logits[index], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("upsample", [1, 2])
def test_query_reads_the_map_at_three_scales_and_scores_v(upsample):
    decoder = with_biases(QueryDecoder(FEATURES, CHANNELS, upsample=upsample))
    feature = torch.randn(3, FEATURES, 4, 4)
    state = decoder.state_dict()
    with torch.no_grad():
        logits = decoder(feature, torch.tensor([0, 1, 2]))
        for size in range(3):
            # A 1x1 convolution of the resized map: the order must not matter.
            weight, bias = state["memory.weight"][:, :, 0, 0], state["memory.bias"]
            memories = []
            for scale in (0.5, 1, 2):
                resized = resize_literally(feature[size], int(4 * upsample * scale))
                memory = torch.einsum("cf,fhw->chw", weight, resized) + bias[:, None, None]
                memories.append(memory[None])
            value = value_literally(state, feature[size], size, upsample, 4, True)
            mask = decoder.transformer(memories, value[None])[0]  # itself: tests/model/test_query
            wanted = resize_literally(mask, 4 * upsample * 4)
            assert torch.allclose(logits[size], wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [True, False])
def test_mixed_size_classes_equal_one_crop_at_a_time(name, scaled):
    decoder = build(name, size_scaling=scaled)
    feature = torch.randn(5, FEATURES, SIDE, SIDE)
    size = torch.tensor([1, 2, 0, 2, 1])
    with torch.no_grad():
        together = decoder(feature, size)
        for i in range(5):
            alone = decoder(feature[i : i + 1], size[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scaled", [True, False])
def test_the_size_class_matters_only_with_scaling(name, scaled):
    feature = torch.randn(1, FEATURES, SIDE, SIDE)
    decoder = build(name, size_scaling=scaled)
    small, medium, large = (decoder(feature, torch.tensor([k])) for k in range(3))
    assert torch.equal(small, medium) != scaled
    assert torch.equal(medium, large) != scaled


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("side", [1, 4, 7])
def test_the_grid_is_a_quarter_of_the_crop(name, upsample, side):
    decoder = build(name, upsample=upsample)
    logits = decoder(torch.randn(4, FEATURES, side, side), torch.tensor([0, 1, 2, NO_SIZE]))
    grid = 16 * upsample * side // 4  # stride 16 or 32 pixels a feature
    assert logits.shape == (4, grid, grid)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_value_maps_are_a_sixteenth_an_eighth_and_a_quarter_of_the_input():
    sides = []
    for stride, upsample in ((16, 1), (32, 2)):
        decoder = AttentionDecoder(FEATURES, CHANNELS, upsample=upsample)
        decoder.value.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
        decoder(torch.zeros(3, FEATURES, 512 // stride, 512 // stride), torch.tensor([0, 1, 2]))
    assert sides == [32, 64, 128] * 2  # of 512, from 1/32, 1/16, 1/8 (mal.md 3.4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 2])
def test_one_size_class_reaches_every_parameter_and_every_crop(name, size):
    # DDP without find_unused_parameters waits for ever for a gradient that does not come.
    decoder = with_biases(build(name))
    feature = torch.randn(3, FEATURES, SIDE, SIDE, requires_grad=True)
    decoder(feature, torch.full((3,), size)).square().sum().backward()
    assert feature.grad is not None
    assert (feature.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    without = [key for key, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("name", NAMES)
def test_boxes_of_no_size_still_hold_a_gradient(name):
    decoder = build(name)
    logits = decoder(torch.randn(2, FEATURES, SIDE, SIDE), torch.full((2,), NO_SIZE))
    (logits * 0).sum().backward()  # the labeler multiplies them by 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [True, False])
def test_an_empty_batch_gives_an_empty_batch(name, scaled):
    decoder = build(name, size_scaling=scaled)
    logits = decoder(torch.randn(0, FEATURES, SIDE, SIDE), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 4 * SIDE, 4 * SIDE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_gives_nearly_the_same_logits_in_float32(name, how):
    decoder = build(name)
    feature = torch.randn(4, FEATURES, SIDE, SIDE)
    size = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        exact = decoder(feature, size)
        if how == "weights":
            rough = decoder.bfloat16()(feature.bfloat16(), size)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = decoder(feature, size)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_training_and_evaluation_give_equal_bits_every_time(name):
    decoder = build(name)
    feature = torch.randn(3, FEATURES, SIDE, SIDE)
    size = torch.tensor([0, 1, 2])
    with torch.no_grad():
        first = decoder.train()(feature, size)
        assert torch.equal(decoder(feature, size), first)
        assert torch.equal(decoder.eval()(feature, size), first)


FITS = [("fully_connected", 1, 20)] + [(name, size, 80) for name in SCALED for size in (0, 2)]


@pytest.mark.parametrize(("name", "size", "steps"), FITS)
def test_every_decoder_can_fit_a_mask(name, size, steps):
    feature = torch.randn(1, 16, SIDE, SIDE)
    centre = (torch.arange(4 * SIDE) - 13) ** 2
    mask = (centre[:, None] + centre[None] < 81).float()[None]
    decoder = build(name, features=16, channels=16)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = decoder(feature, torch.tensor([size]))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, mask).backward()
        optimizer.step()
    found = logits > 0
    both, either = found & (mask > 0), found | (mask > 0)
    assert both.sum() / either.sum() > 0.9


def test_convolutions_start_he_normal_by_fan_out_without_bias():
    for convolution in PixelHead(48, 64):
        assert (convolution.bias == 0).all()
        wanted = (2 / (9 * 64)) ** 0.5  # gain of ReLU over kernel area times output channels
        assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.05)


def test_the_released_shape_has_the_released_parameters():
    # mal.md 10.1: mlp1 [256, D], mlp2 [256, 256], convs 0 [256, D, 3, 3], 1-3 [256, 256, 3, 3].
    decoder = build("attention", features=768, channels=256)
    assert {key: tuple(value.shape) for key, value in decoder.state_dict().items()} == {
        "key.0.weight": (256, 768),
        "key.0.bias": (256,),
        "key.2.weight": (256, 256),
        "key.2.bias": (256,),
        "value.0.weight": (256, 768, 3, 3),
        "value.0.bias": (256,),
        **{f"value.{i}.weight": (256, 256, 3, 3) for i in (1, 2, 3)},
        **{f"value.{i}.bias": (256,) for i in (1, 2, 3)},
    }


def test_parameters_of_a_vit_base_decoder():
    with torch.device("meta"):
        decoders = [build(name, features=768, channels=256) for name in NAMES]
    millions = [sum(p.numel() for p in decoder.parameters()) / 1e6 for decoder in decoders]
    assert millions == pytest.approx([3.80, 85.47, 3.54, 9.07], abs=0.005)


def test_settings_reach_the_decoder():
    decoder = build("attention", key_pool="max", key_layers=1, upsample_before=3, upsample=2)
    assert (decoder.key_pool, len(decoder.key), decoder.value.upsample_before) == ("max", 1, 3)
    assert decoder.upsample == 2
    for name in SCALED:
        assert build(name, channels=12, size_scaling=False).value[0].out_channels == 12
        assert not build(name, size_scaling=False).size_scaling


def test_an_unknown_decoder_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"--decoder nose: unknown \(one of attention, "):
        build("nose")
