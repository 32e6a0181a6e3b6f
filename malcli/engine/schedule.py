"""Learning rate and parameter groups of AdamW (mal_spec 7)."""

import math
from dataclasses import dataclass

from torch import nn


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
        (mal_spec 7, with the wave number 1).
        """
        if step < self.warmup:
            return self.peak * step / self.warmup
        done = (step - self.warmup) / max(1.0, self.total - self.warmup)
        wave = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return self.minimum + (self.peak - self.minimum) * wave


def ramp(step_in_epoch: int, epoch: int, length: int) -> float:
    """Return the share of a loss weight that counts: min(1, step / length) in the first epoch.

    Source: mal_spec 5.4.
    """
    if epoch > 0 or length == 0:
        return 1.0
    return min(1.0, step_in_epoch / length)


def parameter_groups(
    encoder: nn.Module, decoder: nn.Module, decoder_lr_scale: float
) -> list[dict[str, object]]:
    """Return AdamW's groups; `lr_scale` multiplies the scheduled rate.

    Everything decays, biases and norms too, as in the release (mal_spec 0).
    """
    return [
        {"params": list(encoder.parameters()), "lr_scale": 1.0},
        {"params": list(decoder.parameters()), "lr_scale": decoder_lr_scale},
    ]
