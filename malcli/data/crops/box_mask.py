"""The mask of a box on its crop: the share of each cell, or the released code's whole pixels."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from malcli.geometry.released import box_pixels


def box_profiles(
    xyxy: NDArray[np.float64],
    roi: NDArray[np.int64],
    image_hw: tuple[int, int],
    size: int,
    *,
    wrap: bool,
) -> NDArray[np.uint8]:
    """Return the rows and columns of a crop that its box takes by the released rule, (2, size).

    The released mask is a rectangle of whole pixels, both ends included, cropped and resized as
    the image is. Pillow's resize goes one axis at a time and rounds after each, and the values
    between are 0 and 1 again, so its result is the outer product of these two vectors of 0 and 1.

    Args:
        xyxy: (4,) box inside the image, pixels.
        roi: (4,) the crop's RoI, x0 y0 x1 y1, pixels.
        image_hw: (height, width) of the image.
        size: Side of the crop, pixels.
        wrap: The crop goes on at the opposite side of the image, and the box with it; otherwise
            the box ends with the image.

    Source: mal.md 1.7, 1.8.
    """
    pixels = box_pixels(xyxy, image_hw)
    profiles = []
    for axis in (1, 0):
        length = image_hw[1 - axis]
        place = np.arange(roi[axis], roi[axis + 2])
        place = place % length if wrap else place
        taken = ((place >= pixels[axis]) & (place < pixels[axis + 2])).astype(np.uint8)
        line = Image.fromarray(taken[None, :])
        profiles.append(np.asarray(line.resize((size, 1), Image.Resampling.BICUBIC))[0])
    return np.stack(profiles)


def rectangle_mask(rectangle_B4: Tensor, side: int) -> Tensor:
    """Return the share of each grid cell that a rectangle covers, (B, side, side) in [0, 1].

    Args:
        rectangle_B4: (B, 4) x0 y0 x1 y1 in the unit square.
        side: Cells along each axis.
    """
    cell = torch.arange(side, dtype=torch.float32, device=rectangle_B4.device)
    scaled = rectangle_B4.float() * side

    def along(low_B: Tensor, high_B: Tensor) -> Tensor:
        high = torch.minimum(high_B[:, None], cell + 1)
        return (high - torch.maximum(low_B[:, None], cell)).clamp(0, 1)

    columns, rows = along(scaled[:, 0], scaled[:, 2]), along(scaled[:, 1], scaled[:, 3])
    return rows[:, :, None] * columns[:, None, :]


def profile_mask(profile_B2S: Tensor, side: int) -> Tensor:
    """Return the mask of `box_profiles` resized bilinearly, (B, side, side) in [0, 1].

    Args:
        profile_B2S: (B, 2, S) rows and columns, 0 or 1.
        side: Cells along each axis.

    Source: mal.md 5; both the mask and bilinear resizing are products of rows and columns.
    """
    lines_B2s = F.interpolate(profile_B2S.float(), side, mode="linear", align_corners=False)
    return lines_B2s[:, 0, :, None] * lines_B2s[:, 1, None, :]
