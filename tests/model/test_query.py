"""The query decoder's transformer against loops over crops, heads and pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from malcli.model.query import (
    QueryLayer,
    QueryTransformer,
    blocked_pixels,
    head_count,
    position_code,
)

CHANNELS = 8
SIDES = (2, 4, 8)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def linear(state, name, vector):
    return state[f"{name}.weight"] @ vector + state[f"{name}.bias"]


def norm(state, name, vector):
    spread = ((vector - vector.mean()) ** 2).mean()
    scaled = (vector - vector.mean()) / (spread + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend_literally(state, query, pixels, codes, allowed):
    """Return what one query (C,) reads from the allowed ones of N pixels, head by head."""
    channels = len(query)
    heads = max(n for n in range(1, 9) if channels % n == 0)
    width = channels // heads
    asked = linear(state, "ask", query)
    read = torch.zeros(channels)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        total = 0.0
        for n in range(len(pixels)):
            if allowed[n]:
                key = state["key.weight"] @ (pixels[n] + codes[n])
                share = math.exp(float(asked[own] @ key[own]) / math.sqrt(width))
                read[own] += share * linear(state, "content", pixels[n])[own]
                total += share
        read[own] /= total
    return linear(state, "read", read)


def layer_literally(state, query, pixels, codes, allowed):
    query = norm(state, "norms.0", query + attend_literally(state, query, pixels, codes, allowed))
    query = norm(state, "norms.1", query + linear(state, "self_attention", query))
    hidden = linear(state, "feed_forward.0", query).clamp(min=0)
    return norm(state, "norms.2", query + linear(state, "feed_forward.2", hidden))


def code_literally(y, x, side, channels):
    """Sines then cosines of y, then of x, at wavelengths of 1 to 10,000 crops."""
    count = math.ceil(channels / 4)
    waves = [2 * math.pi * 10_000 ** -(k / count) for k in range(count)]
    code = []
    for place in ((y + 0.5) / side, (x + 0.5) / side):
        code += [math.sin(place * wave) for wave in waves]
        code += [math.cos(place * wave) for wave in waves]
    return torch.tensor(code[:channels])


def mask_literally(state, query, pixel):
    hidden = norm(state, "norm", query)
    for index in (0, 2):
        hidden = linear(state, f"head.{index}", hidden).clamp(min=0)
    key = linear(state, "head.4", hidden)
    return sum(key[c] * pixel[c] for c in range(len(key)))


def transform_literally(model, memories, pixel):
    """Return the mask (h, w) of one crop: memories (C, s, s), pixel (C, h, w)."""
    state = model.state_dict()
    query = state["query_C"]
    mask = mask_literally(state, query, pixel)
    for index in range(len(model.layers)):
        memory = memories[index % len(memories)]
        side = memory.shape[-1]
        small = F.interpolate(mask[None, None], (side, side), mode="bilinear")[0, 0]
        pixels, codes, allowed = [], [], []
        for y in range(side):
            for x in range(side):
                pixels.append(memory[:, y, x] + state["scale_SC"][index % len(memories)])
                codes.append(code_literally(y, x, side, len(query)))
                allowed.append(1 / (1 + math.exp(-float(small[y, x]))) >= 0.5)
        if not any(allowed):
            allowed = [True] * len(allowed)
        prefix = f"layers.{index}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        query = layer_literally(own, query, pixels, codes, allowed)
        mask = mask_literally(state, query, pixel)
    return mask


@pytest.mark.parametrize("channels", [8, 12])
def test_the_transformer_equals_loops_over_crops_heads_and_pixels(channels):
    model = QueryTransformer(channels, len(SIDES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # zero biases would hide a lost one
    memories = [torch.randn(3, channels, side, side) for side in SIDES]
    pixel = torch.randn(3, channels, 16, 16)
    with torch.no_grad():
        logits = model(memories, pixel)
        for i in range(3):
            wanted = transform_literally(model, [m[i] for m in memories], pixel[i])
            assert torch.allclose(logits[i], wanted, atol=1e-3, rtol=1e-3)


def test_layers_go_coarse_to_fine_and_round_again():
    model = QueryTransformer(CHANNELS, len(SIDES))
    read = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, __: read.append(inputs[1].shape[1]))
    model([torch.randn(1, CHANNELS, s, s) for s in SIDES], torch.randn(1, CHANNELS, 8, 8))
    assert read == [4, 16, 64, 4, 16, 64]


def test_blocked_pixels_are_those_below_a_half_after_resizing():
    logits = torch.tensor([[[4.0, -1.0], [-4.0, 0.0]], [[-1.0, -1.0], [-1.0, -2.0]]])
    blocked = blocked_pixels(logits, (2, 2))
    assert blocked.shape == (2, 1, 4)
    assert blocked[0, 0].tolist() == [False, True, True, False]  # a half itself is in the mask
    assert blocked[1, 0].tolist() == [False] * 4  # an empty mask: look everywhere
    assert blocked_pixels(logits[:1], (1, 1)).tolist() == [[[False]]]
    mean = torch.tensor([[[4.0, 4.0, -9.0, 0.0], [4.0, 4.0, 0.0, 0.0]]])
    assert blocked_pixels(mean, (1, 2)).tolist() == [[[False, True]]]  # of logits, not of masks


@given(st.integers(0, 2**15 - 1))
def test_a_query_never_reads_a_blocked_pixel(pattern):
    torch.manual_seed(0)
    layer = QueryLayer(CHANNELS)
    blocked = torch.tensor([pattern >> n & 1 for n in range(16)]).bool()[None, None]
    query, code = torch.randn(1, 1, CHANNELS), torch.randn(16, CHANNELS)
    memory = torch.randn(1, 16, CHANNELS)
    other = memory + blocked[:, 0, :, None] * torch.randn(1, 16, CHANNELS)
    with torch.no_grad():
        before, after = (layer(query, values, code, blocked) for values in (memory, other))
        assert before.isfinite().all()
        assert torch.equal(before, after)
        if blocked.any():
            unmasked = layer(query, other, code, torch.zeros_like(blocked))
            assert not torch.equal(unmasked, after)


def test_the_position_code_equals_its_formula_and_is_the_crops_own():
    like = torch.zeros(1, CHANNELS)
    for side in (1, 3, 8):
        code = position_code((side, side), like).view(side, side, CHANNELS)
        for y in range(side):
            for x in range(side):
                wanted = code_literally(y, x, side, CHANNELS)
                assert torch.allclose(code[y, x], wanted, atol=1e-6)
    coarse = position_code((3, 3), like).view(3, 3, CHANNELS)
    fine = position_code((9, 9), like).view(9, 9, CHANNELS)
    assert torch.allclose(coarse, fine[1::3, 1::3], atol=1e-6)  # the same places of the crop


def test_places_have_different_codes():
    code = position_code((32, 32), torch.zeros(1, CHANNELS))
    distance = torch.cdist(code, code) + torch.eye(32 * 32)
    assert distance.min() > 0.01


@pytest.mark.parametrize("channels", [1, 2, 5, 8, 10, 64, 256])
def test_a_position_code_has_all_channels_in_the_type_asked_for(channels):
    code = position_code((2, 3), torch.zeros(1, channels, dtype=torch.bfloat16))
    assert code.shape == (6, channels)
    assert code.dtype == torch.bfloat16


def test_heads_divide_the_channels():
    wanted = {1: 1, 8: 8, 9: 3, 10: 5, 12: 6, 13: 1, 64: 8, 256: 8}
    assert {channels: head_count(channels) for channels in wanted} == wanted


@pytest.mark.parametrize("channels", [1, 5, 8])
def test_few_channels_are_enough(channels):
    model = QueryTransformer(channels, 2, rounds=1)
    memories = [torch.randn(2, channels, s, s) for s in (2, 4)]
    logits = model(memories, torch.randn(2, channels, 4, 4))
    assert logits.shape == (2, 4, 4)
    assert logits.isfinite().all()
