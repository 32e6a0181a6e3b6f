"""Training views on the device (Sec. 4.2): the teacher's is flipped, the student's also jittered.

Every random number is drawn per sample before it gets here (`draw_views`), and all arithmetic is
per sample and rounded to whole levels after each change, so that a view does not depend on the
batch around it or on the number of processes. No call here waits for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Columns of the parameters of a sample's student view.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA = range(9)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's, of ITU-R BT.601
MAX_SIGMA = 2.0  # pixels
BLUR_SIGMAS = 3.0  # the kernel ends here
MAX_RADIUS = round(BLUR_SIGMAS * MAX_SIGMA)
# Floats in [0, 255] become levels as torchvision's uint8 conversion makes them.
TO_LEVELS = 255.999 / 255


@dataclass(frozen=True)
class ViewOdds:
    """Probabilities of each change; strengths are those of the release (mal.md 1.10)."""

    flip: float = 0.5
    jitter: float = 0.5
    grey: float = 0.2
    blur: float = 0.5


def draw_views(rng: np.random.Generator, odds: ViewOdds) -> NDArray[np.float32]:
    """Draw the parameters of one sample's views, (9,).

    Source: mal.md 1.10: jitter brightness .4, contrast .4, saturation .2, hue .1; blur radius
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
            0.1 + (MAX_SIGMA - 0.1) * strength[4],
        ],
        dtype=np.float32,
    )


def flip_where(values: Tensor, views_BN: Tensor) -> Tensor:
    """Return (B, ..., W) values mirrored left to right for the samples whose view is flipped."""
    flipped = views_BN[:, FLIP].bool()
    return torch.where(flipped.view(-1, *[1] * (values.ndim - 1)), values.flip(-1), values)


def student_view(image_BCHW: Tensor, views_BN: Tensor) -> Tensor:
    """Return uint8 crops (B, 3, S, S) with colour jitter, grey-scale and blur applied.

    Args:
        image_BCHW: (B, 3, S, S) uint8 crops, already flipped, S > 6.
        views_BN: (B, 9) float32 parameters of `draw_views`, on the crops' device.

    Source: mal.md 1.10; each change as torchvision has it, to 1 level (hue: 2).
    """
    level_BCHW = image_BCHW.float()
    level_BCHW = _where(views_BN[:, JITTER], _jitter, level_BCHW, views_BN)
    level_BCHW = _where(views_BN[:, GREY], _grey, level_BCHW, views_BN)
    level_BCHW = _where(views_BN[:, BLUR], _blur, level_BCHW, views_BN)
    return level_BCHW.to(torch.uint8)


def _where(
    chosen_B: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    level_BCHW: Tensor,
    views_BN: Tensor,
) -> Tensor:
    """Return the levels with a change applied to the chosen samples.

    A CPU computes the chosen ones alone; a GPU all of them, so that nothing waits for the choice.
    """
    if level_BCHW.device.type != "cpu":
        changed_BCHW = change(level_BCHW, views_BN)
        return torch.where(chosen_B.bool().view(-1, 1, 1, 1), changed_BCHW, level_BCHW)
    level_BCHW = level_BCHW.clone()
    for index in chosen_B.nonzero().flatten().tolist():
        one = slice(index, index + 1)  # one at a time stays in the processor's cache
        level_BCHW[one] = change(level_BCHW[one], views_BN[one])
    return level_BCHW


def _factor(views_BN: Tensor, column: int) -> Tensor:
    """Return a parameter per sample, (B, 1, 1, 1)."""
    return views_BN[:, column].view(-1, 1, 1, 1)


def _jitter(level_BCHW: Tensor, views_BN: Tensor) -> Tensor:
    """Return levels with brightness, contrast, saturation and hue changed, in this order."""
    level_BCHW = _levels(level_BCHW * _factor(views_BN, BRIGHTNESS))
    # Whole levels add up exactly in int64, in whatever order.
    grey_B1HW = _grey_level(level_BCHW)
    cells = grey_B1HW.shape[-1] * grey_B1HW.shape[-2]
    mean_B = grey_B1HW.to(torch.int64).sum(dim=(1, 2, 3)).to(torch.float64) / cells
    level_BCHW = _blend(level_BCHW, mean_B.float().view(-1, 1, 1, 1), _factor(views_BN, CONTRAST))
    level_BCHW = _blend(level_BCHW, _grey_level(level_BCHW), _factor(views_BN, SATURATION))
    return _turn_hue(level_BCHW, _factor(views_BN, HUE))


def _levels(value: Tensor) -> Tensor:
    """Return float values as whole levels in [0, 255], rounded down, in place."""
    return value.clamp_(0, 255).floor_()


def _blend(level_BCHW: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share * levels + (1 - share) * other, as whole levels."""
    return _levels((level_BCHW * share).add_(other * (1 - share)))


def _grey_level(level_BCHW: Tensor) -> Tensor:
    """Return the luma of levels, (B, 1, H, W) whole levels."""
    red, green, blue = _channels(level_BCHW)
    return (red * LUMA[0]).add_(green * LUMA[1]).add_(blue * LUMA[2]).floor_()


def _channels(level_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return red, green and blue, (B, 1, H, W) each."""
    return level_BCHW[:, 0:1], level_BCHW[:, 1:2], level_BCHW[:, 2:3]


def _grey(level_BCHW: Tensor, views_BN: Tensor) -> Tensor:
    """Return levels with the luma in all three channels."""
    return _grey_level(level_BCHW).expand_as(level_BCHW)


def _turn_hue(level_BCHW: Tensor, turn: Tensor) -> Tensor:
    """Return levels with the hue turned by a share of the circle, value and chroma kept.

    Source: the HSV hexagon: a channel is value - chroma * clamp(min(k, 4 - k), 0, 1), with k the
    hue in sixths of the circle, counted from 5 (red), 3 (green) or 1 (blue).
    """
    red, green, blue = _channels(level_BCHW)
    value = level_BCHW.amax(dim=1, keepdim=True)
    chroma = value - level_BCHW.amin(dim=1, keepdim=True)
    part = chroma.clamp_min(1)  # grey has no hue: 0 / 1
    sixth = torch.where(
        value == red,
        (green - blue) / part,
        torch.where(value == green, (blue - red) / part + 2, (red - green) / part + 4),
    )
    sixth = sixth.add_(turn * 6)
    channels = []
    for start in (5, 3, 1):
        k = (sixth + start).remainder_(6)
        k = torch.minimum(k, 4 - k).clamp_(0, 1)
        channels.append(value - chroma * k)
    return _levels(torch.cat(channels, dim=1).mul_(TO_LEVELS))


def _blur(level_BCHW: Tensor, views_BN: Tensor) -> Tensor:
    """Return levels blurred by a Gaussian that ends at three sigma, borders mirrored.

    Taps are added one by one: a convolution's own order of sums may depend on the batch.
    """
    taps_BK = _blur_taps(views_BN[:, SIGMA])
    radius = MAX_RADIUS
    if level_BCHW.device.type == "cpu":  # taps beyond a sample's radius are 0
        radius = max(1, int(taps_BK[:, 1:].count_nonzero(dim=1).max()))
    height, width = level_BCHW.shape[-2:]
    padded = F.pad(level_BCHW, [radius] * 4, mode="reflect")
    for axis, side in ((-1, width), (-2, height)):
        blurred = padded.narrow(axis, radius, side) * taps_BK[:, 0].view(-1, 1, 1, 1)
        for step in range(1, radius + 1):
            pair = padded.narrow(axis, radius - step, side) + padded.narrow(
                axis, radius + step, side
            )
            blurred.add_(pair.mul_(taps_BK[:, step].view(-1, 1, 1, 1)))
        padded = blurred
    return padded.round_().clamp_(0, 255)


def _blur_taps(sigma_B: Tensor) -> Tensor:
    """Return half of each sample's kernel, from the centre outward, (B, MAX_RADIUS + 1)."""
    place = torch.arange(MAX_RADIUS + 1, device=sigma_B.device)
    radius_B1 = (BLUR_SIGMAS * sigma_B).round().clamp(1, MAX_RADIUS)[:, None]
    taps_BK = (-0.5 * (place / sigma_B.clamp_min(1e-3)[:, None]).square()).exp()
    taps_BK = torch.where(place <= radius_B1, taps_BK, 0)
    return taps_BK / (2 * taps_BK.sum(dim=1, keepdim=True) - taps_BK[:, :1])
