"""Pictures of a fixed set of crops as training goes on: crop, mask, refined mask."""

import numpy as np
import torch
from numpy.typing import NDArray

from malcli.config.fit import FitConfig
from malcli.data.crops.training_crops import TrainingCrops, collate
from malcli.engine.fit.objective import box_mask, loss_side, probabilities, refine
from malcli.model.labeler import MaskLabeler
from malcli.report.plots import crop_sheet

SHOWN_CROPS = 8


def draw_crops(
    config: FitConfig, student: MaskLabeler, crops: TrainingCrops, rows: NDArray[np.int64]
) -> bytes:
    """Return a PNG of crops spread evenly over the boxes, in the student's eyes.

    Args:
        config: The fit's settings.
        student: The task network; left in training mode.
        crops: Samples by (epoch, row); those of the first epoch are drawn.
        rows: Rows of the boxes to train on.
    """
    chosen = np.unique(rows[np.linspace(0, len(rows) - 1, SHOWN_CROPS).astype(int)])
    batch = collate([crops[(0, int(row))] for row in chosen])
    batch = batch.to(next(student.parameters()).device)
    side = loss_side(config, student)
    student.eval()
    with torch.no_grad():
        image_BCHW = student.normalise(batch.crop_BCHW)
        prob_Bhw = probabilities(student(image_BCHW, batch.size_B), side)
    student.train()
    refined_Bhw = refine(config, image_BCHW, prob_Bhw, box_mask(batch, side))
    return crop_sheet(
        batch.crop_BCHW.permute(0, 2, 3, 1).cpu().numpy(),
        prob_Bhw.cpu().numpy(),
        refined_Bhw.cpu().numpy(),
    )
