"""The dice form that Eqs. 2 and 5 share."""

import torch
from torch import Tensor

# Added to each squared sum, so that empty inputs give 1 and not NaN (mal.md 5.1).
EPSILON = 0.001


def dice_loss(a_BN: Tensor, b_BN: Tensor) -> Tensor:
    """Return 1 - 2 sum(ab) / (sum a^2 + sum b^2 + 0.002) per sample, (B,) in [0, 1].

    Args:
        a_BN: (B, N) values in [0, 1].
        b_BN: (B, N) values in [0, 1].

    Source: Eqs. 2 and 5; smoothing from mal.md 5.1.
    """
    product = (a_BN * b_BN).sum(dim=1)
    squares = a_BN.square().sum(dim=1) + b_BN.square().sum(dim=1)
    return 1 - 2 * product / (squares + 2 * EPSILON)


def flat(values_Bhw: Tensor) -> Tensor:
    """Return (B, h, w) as (B, h * w) float32: sums over a mask exceed fp16's range."""
    return values_Bhw.flatten(1).to(torch.float32)
