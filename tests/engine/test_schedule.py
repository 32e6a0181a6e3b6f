"""The schedule against the formula of mal_spec 7, written out."""

import math

import pytest
import torch
from torch import nn

from malcli.engine.schedule import Schedule, parameter_groups, ramp

PEAK, LOW = 4.8e-5, 0.96e-5  # 1.5e-6 x 32 images, and 0.2 of it
# 10 epochs of 100 steps, the first of warm-up.
PAPER = Schedule(peak=PEAK, minimum=LOW, warmup=100, total=1000)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, 0.0),
        (1, PEAK / 100),
        (50, PEAK / 2),
        (99, PEAK * 0.99),
        (100, PEAK),  # the end of warm-up: cos 0
        (550, LOW + (PEAK - LOW) / 2),  # halfway: cos(pi / 2) = 0
        (325, LOW + (PEAK - LOW) / 2 * (1 + math.sqrt(0.5))),  # a quarter: cos(pi / 4)
        (999, LOW + (PEAK - LOW) / 2 * (1 + math.cos(math.pi * 899 / 900))),
        (1000, LOW),
        (5000, LOW),  # past the end, as a resumed run with fewer steps may ask
    ],
)
def test_rates_are_those_of_the_formula(step, wanted):
    assert PAPER.at(step) == pytest.approx(wanted, rel=1e-12, abs=1e-18)


def test_every_step_equals_the_formula_in_epochs():
    steps_an_epoch, epochs, warm = 7, 5, 1.5
    schedule = Schedule(1.0, 0.2, warm * steps_an_epoch, epochs * steps_an_epoch)
    for step in range(epochs * steps_an_epoch):
        e = step / steps_an_epoch
        if e < warm:
            wanted = 1.0 * e / warm
        else:
            wave = 1 + math.cos(math.pi * (e - warm) / (epochs - warm))
            wanted = 0.2 + (1.0 - 0.2) / 2 * wave
        assert schedule.at(step) == pytest.approx(wanted, abs=1e-12)


def test_without_warm_up_the_first_step_is_at_the_peak():
    schedule = Schedule(peak=1.0, minimum=0.1, warmup=0, total=10)
    assert schedule.at(0) == 1.0
    rates = [schedule.at(step) for step in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (10, 3), (0, 1), (0.5, 1)])
def test_runs_shorter_than_their_warm_up_stay_between_zero_and_the_peak(warmup, total):
    schedule = Schedule(peak=1.0, minimum=0.2, warmup=warmup, total=total)
    assert all(0 <= schedule.at(step) <= 1 for step in range(30))


@pytest.mark.parametrize(
    ("step", "epoch", "length", "share"),
    [
        (0, 0, 1000, 0.0),
        (250, 0, 1000, 0.25),
        (999, 0, 1000, 0.999),
        (1000, 0, 1000, 1.0),
        (4000, 0, 1000, 1.0),
        (0, 1, 1000, 1.0),  # later epochs count whole, even after a short first one
        (0, 0, 0, 1.0),
    ],
)
def test_ramp_rises_in_the_first_epoch_only(step, epoch, length, share):
    assert ramp(step, epoch, length) == share


def test_groups_hold_every_parameter_once_and_train_with_adamw():
    encoder, decoder = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), nn.Linear(3, 1)
    groups = parameter_groups(encoder, decoder, 10.0)
    assert [group["lr_scale"] for group in groups] == [1.0, 10.0]
    assert [len(group["params"]) for group in groups] == [4, 2]
    held = [id(p) for group in groups for p in group["params"]]
    assert held == [id(p) for p in (*encoder.parameters(), *decoder.parameters())]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 10.0]
