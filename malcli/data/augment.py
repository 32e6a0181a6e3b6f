"""Training views on the device (Sec. 4.2): the teacher's is flipped, the student's also jittered.

Every random number is drawn per sample before it gets here (`draw_views`), so that the views do
not depend on the batch, the device or the number of processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

# Columns of the parameters of a sample's student view.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA = range(9)


@dataclass(frozen=True)
class ViewOdds:
    """Probabilities of each change; strengths are those of the release (mal_spec 1.10)."""

    flip: float = 0.5
    jitter: float = 0.5
    grey: float = 0.2
    blur: float = 0.5


def draw_views(rng: np.random.Generator, odds: ViewOdds) -> NDArray[np.float32]:
    """Draw the parameters of one sample's views, (9,).

    Source: mal_spec 1.10: jitter brightness .4, contrast .4, saturation .2, hue .1; blur radius
    uniform in [0.1, 2.0].
    """
    chance = rng.random(4)
    strength = rng.random(5)
    return np.array(
        [
            chance[0] < odds.flip,
            chance[1] < odds.jitter,
            0.6 + 0.8 * strength[0],
            0.6 + 0.8 * strength[1],
            0.8 + 0.4 * strength[2],
            -0.1 + 0.2 * strength[3],
            chance[2] < odds.grey,
            chance[3] < odds.blur,
            0.1 + 1.9 * strength[4],
        ],
        dtype=np.float32,
    )


def flip_where(values: Tensor, views_BN: Tensor) -> Tensor:
    """Return (B, ..., W) values mirrored left to right for the samples whose view is flipped."""
    flipped = views_BN[:, FLIP].bool().to(values.device)
    return torch.where(flipped.view(-1, *[1] * (values.ndim - 1)), values.flip(-1), values)


def student_view(image_BCHW: Tensor, views_BN: Tensor) -> Tensor:
    """Return uint8 crops (B, 3, S, S) with colour jitter, grey-scale and blur applied.

    Args:
        image_BCHW: (B, 3, S, S) uint8 crops, already flipped.
        views_BN: (B, 9) float32 parameters of `draw_views`, on the CPU.
    """
    crops = [
        _jitter(image_CHW, views)
        for image_CHW, views in zip(image_BCHW, views_BN.tolist(), strict=True)
    ]
    return torch.stack(crops)


def _jitter(image_CHW: Tensor, views: list[float]) -> Tensor:
    """Return one crop's student view."""
    if views[JITTER]:
        image_CHW = TF.adjust_brightness(image_CHW, views[BRIGHTNESS])
        image_CHW = TF.adjust_contrast(image_CHW, views[CONTRAST])
        image_CHW = TF.adjust_saturation(image_CHW, views[SATURATION])
        image_CHW = TF.adjust_hue(image_CHW, views[HUE])
    if views[GREY]:
        image_CHW = TF.rgb_to_grayscale(image_CHW, num_output_channels=3)
    if views[BLUR]:
        sigma = views[SIGMA]
        side = 2 * max(1, round(3 * sigma)) + 1
        image_CHW = TF.gaussian_blur(image_CHW, [side, side], [sigma, sigma])
    return image_CHW
