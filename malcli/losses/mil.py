"""Multiple-instance loss (Sec. 3.3, Eq. 2): every row and every column of the crop is a bag.

A bag is positive if it meets the box. Pixels outside the image can be left out of all bags.
`outside_loss` says densely what the negative bags say through their maxima alone.
"""

import torch
from torch import Tensor

from malcli.losses.dice import EPSILON, dice_loss

SMALLEST = 1e-4  # probabilities of background are not taken below this in logarithms


def mil_loss(
    prob_Bhw: Tensor, box_Bhw: Tensor, form: str = "rows+columns", inside_Bhw: Tensor | None = None
) -> Tensor:
    """Return the MIL loss per sample, (B,).

    Args:
        prob_Bhw: (B, h, w) student probabilities in [0, 1].
        box_Bhw: (B, h, w) share of each grid cell that the box covers, in [0, 1].
        form: `rows+columns`: two dice terms, added, range [0, 2] (mal.md 5.2);
            `joint`: Eq. 2's single term with the squared maximum in the numerator, range [0, 1].
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others belong to no bag.

    Source: Sec. 3.3, Eq. 2; mal.md 5.2.
    """
    if inside_Bhw is not None:
        prob_Bhw = prob_Bhw * inside_Bhw
        box_Bhw = box_Bhw * inside_Bhw
    prob_columns, box_columns = prob_Bhw.amax(dim=1), box_Bhw.amax(dim=1)
    prob_rows, box_rows = prob_Bhw.amax(dim=2), box_Bhw.amax(dim=2)
    if form == "rows+columns":
        return dice_loss(prob_columns, box_columns) + dice_loss(prob_rows, box_rows)
    bags = torch.cat([prob_columns, prob_rows], dim=1)
    labels = torch.cat([box_columns, box_rows], dim=1)
    product = (labels * bags.square()).sum(dim=1)
    squares = bags.square().sum(dim=1) + labels.square().sum(dim=1)
    return 1 - 2 * product / (squares + 2 * EPSILON)


def outside_loss(prob_Bhw: Tensor, box_Bhw: Tensor, inside_Bhw: Tensor | None = None) -> Tensor:
    """Return the mean of -log(1 - p) over the cells that the box does not touch, (B,).

    Every such cell lies in a negative bag, so it is background for certain; the maximum of Eq. 2
    teaches one cell of a bag at a time, this one teaches all of them.

    Args:
        prob_Bhw: (B, h, w) student probabilities in [0, 1].
        box_Bhw: (B, h, w) share of each cell that the box covers.
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others are ignored.

    Source: malcli; 0 if the crop has no such cell.
    """
    outside_Bhw = (box_Bhw <= 0).to(prob_Bhw.dtype)
    if inside_Bhw is not None:
        outside_Bhw = outside_Bhw * inside_Bhw
    surprise_Bhw = -(1 - prob_Bhw).clamp_min(SMALLEST).log()
    total_B = (surprise_Bhw * outside_Bhw).sum(dim=(1, 2))
    return total_B / outside_Bhw.sum(dim=(1, 2)).clamp_min(1.0)
