"""Multiple-instance loss (Sec. 3.3, Eq. 2): every row and every column of the crop is a bag.

A bag is positive if it meets the box. Pixels outside the image can be left out of all bags.
"""

import torch
from torch import Tensor

from malcli.losses.dice import EPSILON, dice_loss


def mil_loss(
    prob_Bhw: Tensor, box_Bhw: Tensor, form: str = "rows+columns", inside_Bhw: Tensor | None = None
) -> Tensor:
    """Return the MIL loss per sample, (B,).

    Args:
        prob_Bhw: (B, h, w) student probabilities in [0, 1].
        box_Bhw: (B, h, w) share of each grid cell that the box covers, in [0, 1].
        form: `rows+columns`: two dice terms, added, range [0, 2] (mal_spec 5.2);
            `joint`: Eq. 2's single term with the squared maximum in the numerator, range [0, 1].
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others belong to no bag.

    Source: Sec. 3.3, Eq. 2; mal_spec 5.2.
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
