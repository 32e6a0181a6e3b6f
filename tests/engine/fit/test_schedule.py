"""The schedule against the formula of mal.md 7, written out."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from malcli.config.fit import FitConfig
from malcli.engine.fit.schedule import (
    Schedule,
    build_optimizer,
    build_schedule,
    parameter_groups,
    ramp,
)

PEAK, LOW = 1.5e-6 * 32, 1.5e-6 * 32 * 0.2  # 32 images, and the final share
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


def test_a_fit_s_schedule_counts_images_and_optimiser_steps():
    config = FitConfig(data=Path("x"))  # the paper's: 1.5e-6 an image, 10 epochs, 1 of warm-up
    assert build_schedule(config, global_batch=32, steps_per_epoch=100) == PAPER


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


def test_the_released_order_takes_the_first_step_at_the_peak_and_the_second_at_zero():
    # mal.md 7: the rate of step k is written after it; literally, step by step.
    rate, used = PAPER.peak, []
    for step in range(300):
        used.append(rate)
        rate = PAPER.at(step)
    assert [PAPER.used(step, "after") for step in range(300)] == used
    assert used[:3] == [PEAK, 0.0, PEAK / 100]
    assert [PAPER.used(step, "before") for step in range(300)] == [
        PAPER.at(step) for step in range(300)
    ]


class Tower(nn.Module):
    """Stem, three layers and a norm, with what an encoder says of its depths."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.norm = nn.LayerNorm(3)

    def depths(self):
        above = {"stem": 3, "layers.0": 2, "layers.1": 1, "layers.2": 0, "norm": 0}
        return {name: above[name.rpartition(".")[0]] for name, _ in self.named_parameters()}


def test_without_layer_decay_groups_are_encoder_and_decoder_in_their_own_order():
    # The number of a parameter in the optimiser is how a saved state finds it.
    encoder, decoder = Tower(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    groups = parameter_groups(encoder, decoder, 10.0, 1.0, {})
    assert [group["lr_scale"] for group in groups] == [1.0, 10.0]
    held = [id(p) for group in groups for p in group["params"]]
    assert held == [id(p) for p in (*encoder.parameters(), *decoder.parameters())]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 10.0]


def test_a_decoder_s_heads_are_numbered_by_name_in_whatever_order_they_were_built():
    decoder = nn.ModuleDict({"value": nn.Linear(3, 3), "key": nn.Linear(3, 2)})
    held = parameter_groups(Tower(), decoder, 1.0, 1.0, {})[1]["params"]
    wanted = [*decoder["key"].parameters(), *decoder["value"].parameters()]
    assert [id(p) for p in held] == [id(p) for p in wanted]


def test_layer_decay_gives_one_group_for_each_depth_and_each_parameter_its_scale():
    encoder, decoder = Tower(), nn.Linear(3, 1)
    groups = parameter_groups(encoder, decoder, 2.0, 0.5, encoder.depths())
    assert [group["lr_scale"] for group in groups] == [1.0, 0.5, 0.25, 0.125, 2.0]
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scale)
    for name, parameter in encoder.named_parameters():
        assert scale[id(parameter)] == 0.5 ** encoder.depths()[name]
    assert {scale[id(parameter)] for parameter in decoder.parameters()} == {2.0}


def test_a_step_with_layer_decay_moves_each_layer_by_its_own_rate():
    encoder, decoder = Tower(), nn.Linear(3, 1)
    config = FitConfig(data=Path("x"), layer_decay=0.5, decoder_lr_scale=3.0, weight_decay=0.0)
    optimizer = build_optimizer(config, encoder, decoder)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # AdamW's first step is the rate times the gradient's sign
    for name, parameter in encoder.named_parameters():
        moved = (before[name] - parameter.detach()).flatten().tolist()
        assert moved == pytest.approx([0.01 * 0.5 ** encoder.depths()[name]] * len(moved), rel=1e-4)


def test_adamw_has_the_settings_of_the_fit():
    config = FitConfig(data=Path("x"), beta1=0.8, beta2=0.95, weight_decay=0.03)
    optimizer = build_optimizer(config, Tower(), nn.Linear(3, 1))
    for group in optimizer.param_groups:
        assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.03)
