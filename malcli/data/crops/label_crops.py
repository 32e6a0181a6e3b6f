"""Boxes to label -> crops: one decode serves all boxes of an image, and a batch mixes images.

Knows nothing of networks; draws nothing at random (training's crops are in `training.py`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from malcli.geometry.boxes import (
    clip_xyxy,
    expand_box,
    largest_overlaps,
    round_outward,
    size_class,
    xywh_to_xyxy,
)
from malcli.geometry.crops import crop_roi
from malcli.geometry.released import box_pixels, image_part, nearby_roi, released_area


class Roi(NamedTuple):
    """A box to label.

    Attributes:
        row: Its row in the table.
        image: (H, W, 3) uint8 RGB, shared by all boxes of the image; once its crop is made, an
            array of that shape that takes no memory.
        roi: (4,) int64 x0 y0 x1 y1 of its crop, pixels; may leave the image.
        window: (4,) int64 x0 y0 x1 y1 of the pixels that its mask may take, inside the image and
            the RoI: the box rounded outward, or all of the RoI under `released`.
        size: Size class of the box as given, for its threshold: 0 small, 1 medium, 2 large.
        network_size: The class that the network is told, which may be `NO_SIZE`; None: `size`.
        pixels: (4,) int64 x0 y0 x1 y1 of the box's whole pixels; None: the window.
        overlap: Largest IoU of the box with another one of the image.
        crop: (S, S, 3) uint8, where it was made ahead of its batch.
    """

    row: int
    image: NDArray[np.uint8]
    roi: NDArray[np.int64]
    window: NDArray[np.int64]
    size: int
    network_size: int | None = None
    pixels: NDArray[np.int64] | None = None
    overlap: float = 0.0
    crop: NDArray[np.uint8] | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Size of the image, pixels."""
        return self.image.shape[0], self.image.shape[1]


def image_rois(
    image: NDArray[np.uint8],
    rows: NDArray[np.int64],
    xywh: NDArray[np.float64],
    margin: float,
    geometry: str = "exact",
    size_classes: str = "half-open",
) -> list[Roi]:
    """Return the RoIs of an image's boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        rows: (N,) rows of the boxes in their table.
        xywh: (N, 4) boxes, pixels, each with a part inside the image.
        margin: Context, in halves of the box, both sides together.
        geometry: `exact`, or `released`: RoIs, windows and thresholds as the released code has.
        size_classes: The network's law of size classes, `half-open` or `strict`.

    Source: mal.md 1.3, from the box clipped to the image (mal.md 12); mal.md 8 for
    `released`.
    """
    xyxy, image_hw = xywh_to_xyxy(xywh), (image.shape[0], image.shape[1])
    area32 = released_area(xyxy)
    with np.errstate(over="ignore"):
        size = size_class(xywh[:, 2] * xywh[:, 3])
    network_size = size_class(area32, "strict") if size_classes == "strict" else size
    if geometry == "released":
        roi, size = nearby_roi(xyxy, margin, image_hw), size_class(area32, "closed")
        window, pixels = image_part(roi, image_hw), box_pixels(xyxy, image_hw)
    else:
        roi, window = _exact_roi(xyxy, margin, image_hw)
        pixels = window
    overlap = largest_overlaps(clip_xyxy(xyxy, image_hw))
    columns = zip(rows, roi, window, size, network_size, pixels, overlap, strict=True)
    return [
        Roi(int(row), image, one, place, int(kind), int(told), whole, float(shared))
        for row, one, place, kind, told, whole, shared in columns
    ]


def _exact_roi(
    xyxy: NDArray[np.float64], margin: float, image_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return RoIs (N, 4), and the boxes rounded outward, from boxes clipped to the image."""
    box = clip_xyxy(xyxy, image_hw)
    window = round_outward(box)
    # A side too thin for float64, such as [5, 5 + 1e-20], still gets the pixel that it lies in.
    window[:, 2:] = np.maximum(window[:, 2:], window[:, :2] + 1)
    roi = expand_box(box, np.full_like(box, margin / 2))
    roi[:, :2] = np.minimum(roi[:, :2], window[:, :2])
    roi[:, 2:] = np.maximum(roi[:, 2:], window[:, 2:])
    return roi, window


def crop_batch(
    rois: Sequence[Roi],
    crop_size: int,
    border: str = "reflect",
    memory: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the crops of RoIs, (B, S, S, 3) uint8 RGB.

    Args:
        rois: The boxes.
        crop_size: Side of the crops, pixels.
        border: As in `crop_roi`.
        memory: Crops that are done with, whose memory is used again where it is large enough: a
            page that the process has already is much cheaper than a new one.
    """
    shape = (len(rois), crop_size, crop_size, 3)
    count = math.prod(shape)
    if memory is None or memory.size < count:
        memory = np.empty(count, dtype=np.uint8)
    crops_BSS3 = memory.reshape(-1)[:count].reshape(shape)
    for crop, roi in zip(crops_BSS3, rois, strict=True):
        if roi.crop is None:
            crop_roi(roi.image, roi.roi, crop_size, border, out=crop)
        else:
            crop[:] = roi.crop
    return crops_BSS3


def cropped(roi: Roi, crop_size: int, border: str = "reflect") -> Roi:
    """Return a RoI with its crop and without its image, which may be a hundred times as large."""
    crop = np.array(crop_roi(roi.image, roi.roi, crop_size, border))
    return without_image(roi)._replace(crop=crop)


def without_image(roi: Roi) -> Roi:
    """Return a RoI that holds no pixels; it still knows the image's size."""
    return roi._replace(image=np.broadcast_to(np.uint8(0), roi.image.shape), crop=None)
