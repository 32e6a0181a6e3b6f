"""Conditional random field loss (Sec. 3.3, Eqs. 3-5): mean field refines, dice trains.

The mean field runs in log-odds form: z = logit(x), and the refined mask is z > 0. The released
code (mal.md 6) divides by E0 + E1 + 1e-6; without that 1e-6 its two-class update is

    z <- clamp(z + sum over the 8 neighbours of w * z_neighbour + log t, -ln 9, ln 9)

with no exp or log inside the loop: malcli's default. With it the update has one more term, and is
the released one exactly (`epsilon`, the `released` preset; at zeta 0.5 it moves 0.3 % of the
pixels, at 0.1 hardly any):

    ... - log(1 + 1e-6 * exp(s + sum over the 8 neighbours of w * s_neighbour)),  s = -log(1 - x)

Without the pixel itself among its neighbours, the first z and s of the sums are missing. Two ways
of adding give equal masks: maps of one long vector, where a neighbour is a shift and symmetric
weights serve two neighbours (little memory), and all nine neighbours stacked (few operations, for
GPUs that wait for each one's start).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from malcli.losses.dice import dice_loss, flat

LIMIT = math.log(9.0)  # logit(0.9): probabilities are clamped to [0.1, 0.9]
# Half of the 3x3 neighbourhood, (dy, dx); symmetry gives the other half.
HALF_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Up to so many cells a GPU spends more time on starting operations than on doing them.
STACKED_CELLS = 2**21
FIXED_POINT_EVERY = 5  # iterations


def pair_weights(image_BChw: Tensor, zeta: float, omega: float = 1.0) -> list[tuple[int, Tensor]]:
    """Return the colour kernel between each pixel and half of its neighbours.

    Args:
        image_BChw: (B, C, h, w) float32 pixels, in the units of zeta.
        zeta: Bandwidth, > 0.
        omega: Weight, >= 0.

    Returns:
        For each neighbour, how many places after its pixel it lies in a flattened (B, h, w), and
        the weights (B * h * w - offset,) of all pairs so far apart: omega * exp(-|I_i - I_j|^2 /
        (2 zeta^2)), or 0 where they are no neighbours, but meet only across a border.

    Source: Eq. 4.
    """
    batch, _, height, width = image_BChw.shape
    pairs = []
    for dy, dx in HALF_NEIGHBOURS:
        if dy >= height or abs(dx) >= width:
            continue  # a map of one row or column has no such neighbours
        left, right = max(0, -dx), width - max(0, dx)
        here = image_BChw[..., : height - dy, left:right]
        there = image_BChw[..., dy:, left + dx : right + dx]
        weight_Bhw = image_BChw.new_zeros(batch, height, width)
        weight_Bhw[:, : height - dy, left:right] = _kernel(here, there, zeta, omega)
        offset = dy * width + dx
        pairs.append((offset, weight_Bhw.flatten()[: batch * height * width - offset]))
    return pairs


def _kernel(here_BChw: Tensor, there_BChw: Tensor, zeta: float, omega: float) -> Tensor:
    """Return the weights (B, h, w) between pixels and their neighbours (Eq. 4)."""
    distance = (here_BChw - there_BChw).square().sum(dim=1)
    return (distance * (-0.5 / zeta**2)).exp() * omega


@torch.no_grad()
def mean_field(
    image_BChw: Tensor,
    unary_Bhw: Tensor,
    box_Bhw: Tensor | None = None,
    *,
    zeta: float = 0.1,
    omega: float = 1.0,
    iterations: int = 100,
    include_self: bool = True,
    epsilon: float = 0.0,
) -> Tensor:
    """Return masks refined by mean field, (B, h, w) float32 of 0 and 1, without gradient.

    Args:
        image_BChw: (B, C, h, w) float32 pixels, in the units of zeta.
        unary_Bhw: (B, h, w) probabilities in [0, 1]; the start value, not added again.
        box_Bhw: (B, h, w) box in [0, 1]; multiplies the start and the foreground's evidence of
            every iteration, so nothing grows outside it.
        zeta: Bandwidth of the colour kernel.
        omega: Weight of the pairwise term.
        iterations: Updates; stops earlier at an exact fixed point (looked for on CPU only,
            where looking is cheap).
        include_self: A pixel is among its own neighbours, with weight 1, as in the released code;
            the paper's neighbourhood has the other 8 alone.
        epsilon: Added to the sum that the released code divides by, 1e-6 there; >= 0.

    Source: Eqs. 3-4, Alg. 1; arithmetic of mal.md 6, in log-odds form.
    """
    start = unary_Bhw.float() if box_Bhw is None else unary_Bhw.float() * box_Bhw
    z_Bhw = torch.logit(start.clamp(0.1, 0.9))
    log_box_Bhw = torch.zeros_like(z_Bhw) if box_Bhw is None else box_Bhw.float().log()
    image_BChw = image_BChw.float()
    if epsilon:
        pairs = pair_weights(image_BChw, zeta, omega)
        z_Bhw = _iterate_released(z_Bhw, log_box_Bhw, pairs, iterations, include_self, epsilon)
    elif z_Bhw.device.type == "cuda" and z_Bhw.numel() <= STACKED_CELLS:
        weights = stacked_weights(image_BChw, zeta, omega, include_self)
        z_Bhw = _iterate_stacked(z_Bhw, log_box_Bhw, weights, iterations)
    else:
        pairs = pair_weights(image_BChw, zeta, omega)
        z_Bhw = _iterate_pairs(z_Bhw, log_box_Bhw, pairs, iterations, include_self)
    return (z_Bhw > 0).float()


def _iterate_pairs(
    z_Bhw: Tensor,
    log_box_Bhw: Tensor,
    pairs: list[tuple[int, Tensor]],
    iterations: int,
    include_self: bool,
) -> Tensor:
    """Return z after the iterations, neighbour by neighbour."""
    z, log_box = z_Bhw.flatten(), log_box_Bhw.flatten()  # the latter may be -inf
    update = torch.empty_like(z)
    for step in range(iterations):
        if include_self:
            torch.add(z, log_box, out=update)
        else:
            update.copy_(log_box)
        _add_neighbours(update, z, pairs)
        update.clamp_(-LIMIT, LIMIT)
        z, update = update, z
        at_look = step % FIXED_POINT_EVERY == FIXED_POINT_EVERY - 1
        if z.device.type == "cpu" and at_look and torch.equal(z, update):
            break
    return z.view_as(z_Bhw)


def _add_neighbours(total: Tensor, values: Tensor, pairs: list[tuple[int, Tensor]]) -> None:
    """Add to each pixel of a flattened map its neighbours' weighted values, in place."""
    for offset, weight in pairs:
        total[:-offset].addcmul_(weight, values[offset:])
        total[offset:].addcmul_(weight, values[:-offset])


def _iterate_released(
    z_Bhw: Tensor,
    log_box_Bhw: Tensor,
    pairs: list[tuple[int, Tensor]],
    iterations: int,
    include_self: bool,
    epsilon: float,
) -> Tensor:
    """Return z after the iterations, each with the released code's epsilon."""
    z, log_box = z_Bhw.flatten(), log_box_Bhw.flatten()
    for _ in range(iterations):
        cost_off = F.softplus(z)  # -log(1 - x)
        total, total_off = (one.clone() if include_self else one * 0 for one in (z, cost_off))
        _add_neighbours(total, z, pairs)
        _add_neighbours(total_off, cost_off, pairs)
        shrink = F.softplus(total_off + math.log(epsilon))
        z = (total + log_box - shrink).clamp_(-LIMIT, LIMIT)
    return z.view_as(z_Bhw)


def stacked_weights(
    image_BChw: Tensor, zeta: float, omega: float, include_self: bool = True
) -> Tensor:
    """Return the weights of all nine places of the neighbourhood, (9, B, h, w), row by row.

    0 outside the image; the pixel itself, the fifth, has weight 1 or 0.
    """
    height, width = image_BChw.shape[-2:]
    padded = F.pad(image_BChw, (1, 1, 1, 1), value=torch.inf)  # exp(-inf) = 0 outside
    weights = [
        _kernel(image_BChw, padded[..., dy : dy + height, dx : dx + width], zeta, omega)
        for dy in range(3)
        for dx in range(3)
    ]
    weights[4] = torch.full_like(weights[4], float(include_self))
    return torch.stack(weights)


def _iterate_stacked(
    z_Bhw: Tensor, log_box_Bhw: Tensor, weights_9Bhw: Tensor, iterations: int
) -> Tensor:
    """Return z after the iterations: three operations each, and no look for a fixed point."""
    batch, height, width = z_Bhw.shape
    padded = F.pad(z_Bhw, (1, 1, 1, 1))
    inside = padded[:, 1:-1, 1:-1]
    rows, columns = padded.stride(1), padded.stride(2)
    neighbours = padded.as_strided(
        (3, 3, batch, height, width), (rows, columns, padded.stride(0), rows, columns)
    )
    weights = weights_9Bhw.view(3, 3, batch, height, width)
    terms = torch.empty(10, batch, height, width, dtype=z_Bhw.dtype, device=z_Bhw.device)
    terms[9] = log_box_Bhw  # may be -inf
    products = terms[:9].view(3, 3, batch, height, width)
    update = torch.empty_like(z_Bhw)
    for _ in range(iterations):
        torch.mul(weights, neighbours, out=products)
        torch.sum(terms, dim=0, out=update)
        torch.clamp(update, -LIMIT, LIMIT, out=inside)
    return inside


def crf_loss(prob_Bhw: Tensor, refined_Bhw: Tensor, inside_Bhw: Tensor | None = None) -> Tensor:
    """Return the dice loss between student probabilities and refined masks, (B,).

    Args:
        prob_Bhw: (B, h, w) student probabilities in [0, 1]; the gradient flows through them only.
        refined_Bhw: (B, h, w) masks of `mean_field`.
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others are ignored.

    Source: Eq. 5.
    """
    if inside_Bhw is not None:
        prob_Bhw = prob_Bhw * inside_Bhw
        refined_Bhw = refined_Bhw * inside_Bhw
    return dice_loss(flat(prob_Bhw), flat(refined_Bhw))
