"""Conditional random field loss (Sec. 3.3, Eqs. 3-5): mean field refines, dice trains.

The mean field runs in log-odds form. With z = logit(x) the two-class update of the released code
(mal_spec 6) is exactly

    z <- clamp(z + sum over the 8 neighbours of w * z_neighbour + log t, -ln 9, ln 9)

and the refined mask is z > 0: no exp or log inside the loop. The weights are symmetric, so four
maps serve eight neighbours. Maps are flattened, so that a neighbour is a shift of one long vector.
"""

import math

import torch
from torch import Tensor

from malcli.losses.dice import dice_loss, flat

LIMIT = math.log(9.0)  # logit(0.9): probabilities are clamped to [0.1, 0.9]
# Half of the 3x3 neighbourhood, (dy, dx); symmetry gives the other half.
HALF_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


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
        distance = (here - there).square().sum(dim=1)
        weight_Bhw = image_BChw.new_zeros(batch, height, width)
        weight_Bhw[:, : height - dy, left:right] = (distance * (-0.5 / zeta**2)).exp() * omega
        offset = dy * width + dx
        pairs.append((offset, weight_Bhw.flatten()[: batch * height * width - offset]))
    return pairs


@torch.no_grad()
def mean_field(
    image_BChw: Tensor,
    unary_Bhw: Tensor,
    box_Bhw: Tensor | None = None,
    *,
    zeta: float = 0.1,
    omega: float = 1.0,
    iterations: int = 100,
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

    Source: Eqs. 3-4, Alg. 1; arithmetic of mal_spec 6, in log-odds form.
    """
    start = unary_Bhw.float() if box_Bhw is None else unary_Bhw.float() * box_Bhw
    z = torch.logit(start.clamp(0.1, 0.9)).flatten()
    log_box = None if box_Bhw is None else box_Bhw.float().log().flatten()  # may be -inf
    pairs = pair_weights(image_BChw.float(), zeta, omega)
    update = torch.empty_like(z)
    for step in range(iterations):
        if log_box is None:
            update.copy_(z)
        else:
            torch.add(z, log_box, out=update)
        for offset, weight in pairs:
            update[:-offset].addcmul_(weight, z[offset:])
            update[offset:].addcmul_(weight, z[:-offset])
        update.clamp_(-LIMIT, LIMIT)
        z, update = update, z
        if z.device.type == "cpu" and step % 5 == 4 and torch.equal(z, update):
            break
    return (z > 0).float().view_as(unary_Bhw)


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
