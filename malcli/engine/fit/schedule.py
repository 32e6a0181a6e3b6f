"""Learning rate, and AdamW with its parameter groups (mal.md 0, 7)."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from malcli.config.fit import FitConfig
from malcli.model.encoders import ImageEncoder


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine to the minimum.

    Attributes:
        peak: Highest learning rate: lr per image times global batch.
        minimum: Final learning rate.
        warmup: Steps of warm-up.
        total: Steps in all.
    """

    peak: float
    minimum: float
    warmup: float
    total: int

    def at(self, step: int) -> float:
        """Return the learning rate of a 0-based optimiser step.

        Warm-up rises from 0; the release's first step is at 0 too when set before the step
        (mal.md 7, with the wave number 1).
        """
        if step < self.warmup:
            return self.peak * step / self.warmup
        done = (step - self.warmup) / max(1.0, self.total - self.warmup)
        wave = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return self.minimum + (self.peak - self.minimum) * wave

    def used(self, step: int, timing: str) -> float:
        """Return the learning rate that a step is taken with.

        Args:
            step: 0-based optimiser step.
            timing: `before`: the step's own rate; `after`: as in the released code, which writes a
                rate once its step is done, the rate of the step before, and the peak at first.

        Source: mal.md 7.
        """
        if timing == "before":
            return self.at(step)
        return self.at(step - 1) if step else self.peak


def build_schedule(config: FitConfig, global_batch: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a fit.

    Args:
        config: The fit's settings.
        global_batch: Crops of one optimiser step, all processes and micro-batches.
        steps_per_epoch: Optimiser steps.
    """
    peak = config.lr * global_batch
    return Schedule(
        peak=peak,
        minimum=peak * config.min_lr_ratio,
        warmup=config.warmup_epochs * steps_per_epoch,
        total=config.epochs * steps_per_epoch,
    )


def ramp(step_in_epoch: int, epoch: int, length: int) -> float:
    """Return the share of a loss weight that counts: min(1, step / length) in the first epoch.

    Source: mal.md 5.4.
    """
    if epoch > 0 or length == 0:
        return 1.0
    return min(1.0, step_in_epoch / length)


def build_optimizer(
    config: FitConfig, encoder: ImageEncoder, decoder: nn.Module
) -> torch.optim.AdamW:
    """Return AdamW over all parameters; the rates of its groups are set before each step."""
    depths = encoder.depths() if config.layer_decay < 1 else {}
    return torch.optim.AdamW(
        parameter_groups(encoder, decoder, config.decoder_lr_scale, config.layer_decay, depths),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )


def parameter_groups(
    encoder: nn.Module,
    decoder: nn.Module,
    decoder_lr_scale: float,
    layer_decay: float,
    depths: Mapping[str, int],
) -> list[dict[str, object]]:
    """Return AdamW's groups: the encoder's by depth, its last layers first, then the decoder's.

    Everything decays, biases and norms too, as in the release (mal.md 0).

    Args:
        encoder: Its rate falls with the number of layers above a parameter.
        decoder: One group.
        decoder_lr_scale: The decoder's rate over that of the encoder's last layers.
        layer_decay: Factor on the rate from each layer to the one below it, in (0, 1]; at 1 the
            encoder is one group, its parameters in their own order.
        depths: Layers above each parameter of the encoder, by name; not looked at if
            `layer_decay` is 1.

    Returns:
        Groups for AdamW; `lr_scale` multiplies the scheduled rate.
    """
    by_depth: dict[int, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in encoder.named_parameters():
        by_depth[depths[name] if layer_decay < 1 else 0].append(parameter)
    groups: list[dict[str, object]] = [
        {"params": by_depth[depth], "lr_scale": layer_decay**depth} for depth in sorted(by_depth)
    ]
    # A saved state finds a parameter by its number: the heads go by name, K before V, as in runs
    # of the first version, in whatever order a decoder builds them.
    heads = sorted(decoder.named_parameters(), key=lambda item: item[0].partition(".")[0])
    return [*groups, {"params": [value for _, value in heads], "lr_scale": decoder_lr_scale}]
