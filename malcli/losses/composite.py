"""What composites say for certain: which pixels were pasted, and so belong to one object alone."""

import torch
from torch import Tensor

from malcli.records import BEHIND, PASTED

SMALLEST = 1e-6  # probabilities are not taken below this in logarithms


def composite_loss(
    prob_Bhw: Tensor,
    pasted_Bhw: Tensor,
    kind_B: Tensor,
    box_Bhw: Tensor,
    inside_Bhw: Tensor | None = None,
) -> Tensor:
    """Return the loss of pasted pixels per sample, (B,); 0 where nothing was pasted.

    Of an object behind a pasted one, the pasted pixels in its box are background: -log(1 - p) over
    them. A pasted object is known whole: binary cross-entropy over the crop. Both are sums over
    cells, divided by the cells of the box.

    Args:
        prob_Bhw: (B, h, w) student probabilities in [0, 1].
        pasted_Bhw: (B, h, w) share of each cell that was pasted, in [0, 1].
        kind_B: (B,) `NOTHING_PASTED`, `BEHIND` or `PASTED`.
        box_Bhw: (B, h, w) share of each cell that the box covers, in [0, 1].
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others are ignored.

    Source: malcli.
    """
    if inside_Bhw is None:
        inside_Bhw = torch.ones_like(prob_Bhw)
    box_Bhw = box_Bhw * inside_Bhw
    object_Bhw = -prob_Bhw.clamp_min(SMALLEST).log()
    ground_Bhw = -(1 - prob_Bhw).clamp_min(SMALLEST).log()
    behind_B = (ground_Bhw * pasted_Bhw * box_Bhw).sum(dim=(1, 2)) * (kind_B == BEHIND)
    entropy_Bhw = object_Bhw * pasted_Bhw + ground_Bhw * (1 - pasted_Bhw)
    pasted_B = (entropy_Bhw * inside_Bhw).sum(dim=(1, 2)) * (kind_B == PASTED)
    return (behind_B + pasted_B) / box_Bhw.sum(dim=(1, 2)).clamp_min(1.0)
