"""How a student of phase 2 is stepped: its optimiser, and the learning rate by step.

Knows nothing of data.

Source: Sec. 4.2, phase 2; the rates of Mask R-CNN are Detectron's, as in the paper's codebase,
those of Mask2Former and RF-DETR are of their papers' kind (AdamW, 1e-4 at 16 images a step).
"""

from dataclasses import dataclass

import torch
from torch import nn

from malcli.model.transformers_student import TransformersStudent

WARMUP_STEPS = 500  # at most a tenth of all
DROPS = (2 / 3, 11 / 12)  # of all epochs, after which the rate is a tenth
NO_DECAY_DIMS = 1  # biases and norms
BACKBONES = (".pixel_level_module.encoder.", ".backbone.backbone.")  # Mask2Former's, RF-DETR's


@dataclass(frozen=True)
class Solver:
    """How a kind of student is stepped.

    Attributes:
        lr: Peak rate per image of the global batch.
        weight_decay: Of what has more than one dimension, with AdamW; of all, with SGD.
        momentum: Of SGD; None: AdamW.
        backbone: Factor on the rate of the backbone.
        clip: Largest norm of the gradient; None: any.
    """

    lr: float
    weight_decay: float
    momentum: float | None = None
    backbone: float = 1.0
    clip: float | None = None


SGD = Solver(lr=0.00125, weight_decay=1e-4, momentum=0.9)
ADAMW = Solver(lr=1e-4 / 16, weight_decay=0.05, backbone=0.1, clip=0.1)


def solver_of(student: nn.Module) -> Solver:
    """Return how a student is stepped."""
    return ADAMW if isinstance(student, TransformersStudent) else SGD


def make_optimizer(student: nn.Module, solver: Solver) -> torch.optim.Optimizer:
    """Return the optimiser of what a student learns; groups carry `scale`, a factor on the rate."""
    learnt = {name: one for name, one in student.named_parameters() if one.requires_grad}
    if solver.momentum is not None:
        group = {"params": [*learnt.values()], "scale": 1.0}
        return torch.optim.SGD(
            [group], lr=solver.lr, momentum=solver.momentum, weight_decay=solver.weight_decay
        )
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, one in learnt.items():
        groups.setdefault((_is_backbone(name), one.ndim > NO_DECAY_DIMS), []).append(one)
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "scale": solver.backbone if backbone else 1.0,
                "weight_decay": solver.weight_decay if decays else 0.0,
            }
            for (backbone, decays), values in groups.items()
        ],
        lr=solver.lr,
    )


def _is_backbone(name: str) -> bool:
    """Return whether a parameter is of the pretrained encoder of images."""
    return any(part in name for part in BACKBONES)


@dataclass(frozen=True)
class StepRates:
    """The learning rate by step: linear warm-up, then a tenth after each of two epochs.

    Attributes:
        peak: Rate per image times images of a step.
        steps_per_epoch: Optimiser steps.
        epochs: In all.
    """

    peak: float
    steps_per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs

    def at(self, step: int) -> float:
        """Return the rate of a 0-based step; the first one is above 0."""
        warmup = min(WARMUP_STEPS, self.total // 10)
        rise = min(1.0, (step + 1) / (warmup + 1))
        drops = sum(step >= round(share * self.epochs) * self.steps_per_epoch for share in DROPS)
        return float(self.peak * rise * 0.1**drops)
