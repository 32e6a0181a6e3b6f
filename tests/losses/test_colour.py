"""The colours' evidence against kernel densities written as plain loops; what it does to masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from malcli.losses import colour
from malcli.losses.colour import colour_evidence, with_colour


def evidence_literally(image, prob, inside, bandwidth):
    """Return the evidence of one sample, (h, w) float64: every cell is its own sample."""
    channels, height, width = image.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    total_on = sum(prob[c] * inside[c] for c in cells)
    total_off = sum((1 - prob[c]) * inside[c] for c in cells)
    found = np.zeros((height, width))
    for here in cells:
        on = off = 0.0
        for there in cells:
            distance = sum((image[k][here] - image[k][there]) ** 2 for k in range(channels))
            kernel = math.exp(-distance / (2 * bandwidth**2)) * inside[there]
            on += kernel * prob[there]
            off += kernel * (1 - prob[there])
        found[here] = math.log((on / total_on + 1e-4) / (off / total_off + 1e-4))
    return found


def draw_case(seed, side=7):
    rng = np.random.default_rng(seed)
    inside = np.ones((side, side))
    inside[:, -1] = 0
    return rng.normal(size=(3, side, side)), rng.uniform(0.05, 0.95, (side, side)), inside


def as_batch(*arrays):
    return [torch.tensor(array, dtype=torch.float32)[None] for array in arrays]


@given(st.integers(0, 10_000), st.floats(0.2, 2.0))
def test_evidence_is_the_log_ratio_of_two_kernel_densities(seed, bandwidth):
    image, prob, inside = draw_case(seed)
    found = colour_evidence(*as_batch(image, prob, inside), bandwidth=bandwidth)[0]
    wanted = evidence_literally(image, prob, inside, bandwidth)
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)


def test_a_crop_does_not_see_the_crops_beside_it(monkeypatch):
    cases = [as_batch(*draw_case(seed)) for seed in (1, 2, 3)]
    together = [torch.cat(parts) for parts in zip(*cases, strict=True)]
    alone = torch.cat([colour_evidence(*case) for case in cases])
    torch.testing.assert_close(colour_evidence(*together), alone)
    monkeypatch.setattr(colour, "PAIRS_AT_ONCE", 1)
    torch.testing.assert_close(colour_evidence(*together), alone)


@pytest.mark.parametrize("side", [12, 48, 130])
def test_a_red_disc_on_green_is_found_from_a_rough_mask(side):
    line = torch.linspace(-1, 1, side)
    disc = (line[:, None] ** 2 + line[None, :] ** 2) < 0.6**2
    image = torch.stack([disc.float(), 1 - disc.float(), torch.zeros(side, side)])[None] * 3
    box = torch.zeros(1, side, side)
    reach = round(side * 0.2)
    box[:, reach:-reach, reach:-reach] = 1
    rough = 0.55 * box  # the filled box: all corners are wrong
    found = with_colour(rough, image, box) > 0.5
    assert ((found[0] & (box[0] > 0)) == (disc & (box[0] > 0))).float().mean() > 0.97


def test_a_crop_of_one_colour_tells_nothing():
    flat = torch.ones(1, 3, 9, 9)
    box = torch.zeros(1, 9, 9)
    box[:, 2:7, 2:7] = 1
    assert colour_evidence(flat, 0.6 * box).abs().max() < 1e-4


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_an_empty_or_full_mask_gives_finite_evidence(fill):
    image, _, _ = draw_case(0)
    found = colour_evidence(*as_batch(image), torch.full((1, 7, 7), fill))
    assert torch.isfinite(found).all()
    assert found.abs().max() <= math.log(1 / 1e-4 + 1) + 1e-3


def test_weight_zero_changes_nothing_and_weight_scales_the_log_odds():
    image, prob, inside = as_batch(*draw_case(5))
    box = torch.ones_like(prob)
    assert with_colour(prob, image, box, inside, weight=0.0) is prob
    evidence = colour_evidence(image, prob, inside)
    found = with_colour(prob, image, box, inside, weight=0.5)
    torch.testing.assert_close(found, (prob.logit() + 0.5 * evidence).sigmoid())
