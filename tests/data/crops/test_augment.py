"""Training views against torchvision's functions for one crop, and plain loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from malcli.data.crops import augment
from malcli.data.crops.augment import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    FLIP,
    GREY,
    HUE,
    JITTER,
    SATURATION,
    SIGMA,
    ViewOdds,
    draw_views,
    flip_where,
    student_view,
)

PLAIN = (0, 0, 1, 1, 1, 0, 0, 0, 1)


def draw_many(odds, count=4000, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([draw_views(rng, odds) for _ in range(count)])


def draw_crops(count=3, side=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def views_of(**changes):
    values = list(PLAIN)
    for name, value in changes.items():
        values[globals()[name]] = value
    return torch.tensor([values], dtype=torch.float32)


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [
        (BRIGHTNESS, 0.6, 1.4),
        (CONTRAST, 0.6, 1.4),
        (SATURATION, 0.8, 1.2),
        (HUE, -0.1, 0.1),
        (SIGMA, 0.1, 2.0),
    ],
)
def test_strengths_are_uniform_in_the_ranges_of_the_release(column, low, high):
    values = draw_many(ViewOdds())[:, column]
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high
    for share in (0.25, 0.5, 0.75):
        assert np.quantile(values, share) == pytest.approx(
            low + share * (high - low), abs=0.03 * (high - low)
        )


def test_changes_happen_as_often_as_asked_and_independently():
    views = draw_many(ViewOdds(flip=0.5, jitter=0.3, grey=0.2, blur=0.7))
    chances = views[:, [FLIP, JITTER, GREY, BLUR]]
    assert set(np.unique(chances)) == {0.0, 1.0}
    assert chances.mean(axis=0) == pytest.approx([0.5, 0.3, 0.2, 0.7], abs=0.03)
    correlation = np.corrcoef(views.T) - np.eye(9)
    assert np.abs(correlation).max() < 0.07


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_zero_and_one_are_certain(probability):
    views = draw_many(ViewOdds(*[probability] * 4), count=200)
    assert (views[:, [FLIP, JITTER, GREY, BLUR]] == probability).all()


def test_defaults_are_those_of_the_release():
    assert ViewOdds() == ViewOdds(flip=0.5, jitter=0.5, grey=0.2, blur=0.5)


def test_views_repeat_with_the_seed_and_spend_equally_many_numbers():
    views = draw_many(ViewOdds(), count=20, seed=5)
    assert views.dtype == np.float32
    assert np.array_equal(views, draw_many(ViewOdds(), count=20, seed=5))
    assert not np.array_equal(views, draw_many(ViewOdds(), count=20, seed=6))
    # Without grey-scale the other columns stay as they are: no draw depends on an outcome.
    others = [column for column in range(9) if column != GREY]
    without = draw_many(ViewOdds(grey=0.0), count=20, seed=5)
    assert np.array_equal(views[:, others], without[:, others])


@pytest.mark.parametrize("shape", [(3, 3, 5, 6), (3, 5, 6), (3, 7)])
def test_flip_mirrors_columns_of_the_flipped_samples_only(shape):
    values = torch.arange(math.prod(shape)).reshape(shape)
    views = torch.zeros(3, 9)
    views[1, FLIP] = 1
    flipped = flip_where(values, views)
    assert torch.equal(flipped[[0, 2]], values[[0, 2]])
    assert torch.equal(flipped[1], torch.from_numpy(values[1].numpy()[..., ::-1].copy()))
    assert torch.equal(flip_where(flipped, views), values)


def test_a_plain_view_is_the_crop():
    crops = draw_crops()
    assert torch.equal(student_view(crops, torch.tensor([PLAIN] * 3)), crops)
    flipped = torch.tensor([PLAIN] * 3).index_fill(1, torch.tensor(FLIP), 1)
    assert torch.equal(student_view(crops, flipped), crops)  # flips come before, for both views


def draw_photo(seed, side=64):
    """A smooth picture with noise: levels like a photograph's, of one crop."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator) * 300 - 20
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth + torch.randn(1, 3, side, side, generator=generator)).clamp(0, 255).byte()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("draw", [draw_photo, lambda seed: draw_crops(1, 64, seed)])
def test_jitter_is_torchvision_s_in_the_stated_order(seed, draw):
    crops = draw(seed)
    views = torch.from_numpy(draw_many(ViewOdds(jitter=1, grey=0, blur=0), count=1, seed=seed))
    wanted = crops[0]
    wanted = reference.adjust_brightness(wanted, views[0, BRIGHTNESS].item())
    wanted = reference.adjust_contrast(wanted, views[0, CONTRAST].item())
    wanted = reference.adjust_saturation(wanted, views[0, SATURATION].item())
    wanted = reference.adjust_hue(wanted, views[0, HUE].item())
    jittered = student_view(crops, views)[0]
    error = (jittered.int() - wanted.int()).abs().float()
    assert error.max() <= 2  # hue amplifies a rounding
    assert (error > 1).float().mean() < 1e-3
    assert error.mean() < 0.01
    assert (jittered.int() - crops[0].int()).abs().max() > 20


@pytest.mark.parametrize("column", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.17, 1.4])
def test_each_change_alone_is_torchvision_s_within_a_level(column, factor):
    adjust = {
        BRIGHTNESS: reference.adjust_brightness,
        CONTRAST: reference.adjust_contrast,
        SATURATION: reference.adjust_saturation,
    }[column]
    crops = draw_crops(1, 48, seed=2)
    views = views_of(JITTER=1)
    views[0, column] = factor
    error = student_view(crops, views)[0].int() - adjust(crops[0], factor).int()
    assert error.abs().max() <= 1


def test_grey_pixels_have_no_hue_to_turn():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(student_view(grey, views_of(JITTER=1, HUE=0.1)), grey)


def test_hue_turns_pure_colours_round_the_hexagon():
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 240
    turned = student_view(red, views_of(JITTER=1, HUE=1 / 12))[0, :, 0, 0]
    assert (turned.int() - torch.tensor([240, 120, 0])).abs().max() <= 1  # orange
    turned = student_view(red, views_of(JITTER=1, HUE=-1 / 12))[0, :, 0, 0]
    assert (turned.int() - torch.tensor([240, 0, 120])).abs().max() <= 1  # rose


def test_brightness_scales_every_value():
    crops = draw_crops(1, seed=2)
    bright = student_view(crops, views_of(JITTER=1, BRIGHTNESS=1.25))
    wanted = (crops.double() * 1.25).clamp(max=255)
    assert (bright.double() - wanted).abs().max() <= 1


def test_strengths_without_the_coin_do_nothing():
    crops = draw_crops(1, seed=3)
    views = views_of(BRIGHTNESS=1.4, CONTRAST=0.6, SATURATION=1.2, HUE=0.1, SIGMA=2.0)
    assert torch.equal(student_view(crops, views), crops)


def test_grey_scale_is_luma_in_three_channels():
    crops = draw_crops(1, seed=4)
    grey = student_view(crops, views_of(GREY=1))[0].double()
    red, green, blue = crops[0].double()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    assert (grey[0] - luma).abs().max() <= 1.1  # torchvision cuts off and has 0.2989, 0.114


def blur_literally(channel, sigma):
    """Gaussian of radius round(3 sigma), at least 1, along rows then columns, mirrored borders."""
    radius = max(1, round(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for _ in range(2):
        padded = np.pad(channel, ((0, 0), (radius, radius)), mode="reflect")
        channel = np.stack([np.convolve(row, taps, mode="valid") for row in padded]).T
    return channel


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_of_three_sigma(sigma):
    crops = draw_crops(1, seed=5)
    blurred = student_view(crops, views_of(BLUR=1, SIGMA=sigma))[0]
    for channel in range(3):
        wanted = blur_literally(crops[0, channel].double().numpy(), sigma)
        assert np.abs(blurred[channel].double().numpy() - wanted).max() <= 1


def test_a_sample_s_view_does_not_depend_on_its_batch():
    crops = draw_crops(6, seed=6)
    views = torch.from_numpy(draw_many(ViewOdds(0.5, 0.7, 0.5, 0.7), count=6, seed=7))
    together = student_view(crops, views)
    backwards = student_view(crops.flip(0), views.flip(0)).flip(0)
    assert together.dtype == torch.uint8
    assert torch.equal(together, backwards)
    for i in range(6):
        assert torch.equal(student_view(crops[i : i + 1], views[i : i + 1])[0], together[i])


def test_a_whole_batch_at_once_as_on_a_gpu_gives_each_sample_s_view_bit_for_bit():
    crops = draw_crops(5, 40, seed=9)
    views = torch.from_numpy(draw_many(ViewOdds(jitter=1, grey=1, blur=1), count=5, seed=10))
    for change in (augment._jitter, augment._grey, augment._blur):
        together = change(crops.float(), views)
        for i in range(5):
            alone = change(crops[i : i + 1].float(), views[i : i + 1])
            assert torch.equal(together[i], alone[0]), change.__name__


def test_blur_s_taps_sum_to_one_and_end_at_three_sigma():
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.33, 2.0])
    taps = augment._blur_taps(sigma)
    assert (2 * taps.sum(1) - taps[:, 0]).tolist() == pytest.approx([1.0] * 5)
    radius = [int(row.nonzero().max()) for row in taps]
    assert radius == [1, 2, 3, 4, 6]  # round(3 sigma), at least 1; torch rounds 1.5 to 2


def test_the_crops_are_left_alone():
    crops = draw_crops(2, seed=8)
    kept = crops.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student_view(crops, torch.from_numpy(draw_many(ViewOdds(1, 1, 1, 1), count=2)))
    assert torch.equal(crops, kept)
