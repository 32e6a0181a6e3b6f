"""Training samples: boxes -> randomly expanded crops (Sec. 3.1), in an order that can be resumed.

Everything random about a sample comes from (seed, epoch, box), so a sample does not depend on
workers, batches or processes. Knows nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from malcli.data.crops.augment import ViewOdds, draw_views
from malcli.data.crops.box_mask import box_profiles
from malcli.data.crops.composites import Composites
from malcli.data.images.find import ImageFolder
from malcli.data.images.read import read_image
from malcli.errors import BadImage
from malcli.geometry.boxes import (
    clip_xyxy,
    expand_box,
    random_margins,
    roi_frame,
    size_class,
    xywh_to_xyxy,
)
from malcli.geometry.crops import crop_roi
from malcli.geometry.released import released_area
from malcli.records import NOTHING_PASTED, STATUS_OK, BoxTable, skipped


@dataclass(frozen=True)
class CropRule:
    """How a box becomes a crop; see the settings of the same names."""

    crop_size: int
    theta: float
    expansion: str
    border: str
    box_mask: str
    size_classes: str
    max_pixels: int
    seed: int
    odds: ViewOdds


@dataclass(frozen=True)
class RoiBatch:
    """Crops of one step.

    Attributes:
        crop_BCHW: (B, 3, S, S) uint8 RGB.
        box_B4: (B, 4) float32 box x0 y0 x1 y1 in the unit square of its crop.
        image_B4: (B, 4) float32 the image's rectangle in the same frame.
        profile_B2S: (B, 2, S) uint8 0/1: rows, then columns of the crop that the box takes under
            `--box-mask inclusive`; (B, 2, 0) under `exact`.
        size_B: (B,) int64 size class of the box.
        views_BN: (B, 9) float32 parameters of `draw_views`.
        valid_B: (B,) float32 1, or 0 where the image could not be read.
        row_B: (B,) int64 row of the box in its table.
        pasted_BSS: (B, S, S) uint8, 255 times the share of each pixel that was pasted; (B, 0, 0)
            where no composites are made.
        kind_B: (B,) int64 `NOTHING_PASTED`, `BEHIND` or `PASTED`.
    """

    crop_BCHW: Tensor
    box_B4: Tensor
    image_B4: Tensor
    profile_B2S: Tensor
    size_B: Tensor
    views_BN: Tensor
    valid_B: Tensor
    row_B: Tensor
    pasted_BSS: Tensor
    kind_B: Tensor

    def pin_memory(self) -> "RoiBatch":
        """Return the batch in page-locked memory, for the DataLoader."""
        return RoiBatch(*(getattr(self, item.name).pin_memory() for item in fields(self)))

    def to(self, device: torch.device) -> "RoiBatch":
        """Return the batch on a device, without waiting for the copies.

        The size classes stay where they are: the decoder asks for them by value.
        """
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=True)
            for item in fields(self)
            if item.name != "size_B"
        }
        return RoiBatch(size_B=self.size_B, **moved)


def training_rows(table: BoxTable, min_box_area: float, keep_crowd: bool) -> NDArray[np.int64]:
    """Return the rows of boxes to train on: usable, w > 2, h > 2, area w*h above the minimum.

    The `area` key is never read: in COCO files masks made it (mal.md 12).
    """
    xywh = table.xywh()
    wanted = [STATUS_OK, skipped("crowd")] if keep_crowd else [STATUS_OK]
    usable = np.asarray(pc.is_in(table.boxes["status"], pa.array(wanted)))
    sides = np.nan_to_num(xywh[:, 2:], nan=0.0)
    large = (sides > 2).all(axis=1) & (sides.prod(axis=1) > min_box_area)
    return np.flatnonzero(usable & large)


class TrainingCrops(Dataset[dict[str, NDArray[Any]]]):
    """Maps (epoch, row of the box) to the arrays of one sample.

    Args:
        table: All boxes.
        folder: Where the images are.
        rule: How a box becomes a crop.
        composites: What pastes objects over images, if anything does.
    """

    def __init__(
        self,
        table: BoxTable,
        folder: ImageFolder,
        rule: CropRule,
        composites: Composites | None = None,
    ) -> None:
        """Keep plain arrays, which worker processes share without copying."""
        self.rule = rule
        self.composites = composites
        self.folder = folder
        self.xyxy = xywh_to_xyxy(table.xywh())
        self.image = np.asarray(table.boxes["image"])
        self.names = table.images["file_name"].to_pylist()
        self.hw = np.stack(
            [np.asarray(table.images["height"]), np.asarray(table.images["width"])], axis=1
        )

    def __getitem__(self, key: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return one sample; an unreadable image gives a black crop with `valid` 0."""
        epoch, row = key
        rule = self.rule
        rng = np.random.default_rng((rule.seed, epoch, row))
        margins = random_margins(rng, 1, rule.theta, rule.expansion)[0]
        views = draw_views(rng, rule.odds)
        number = int(self.image[row])
        hw = (int(self.hw[number, 0]), int(self.hw[number, 1]))
        given, box = self.xyxy[row], clip_xyxy(self.xyxy[row], hw)
        made = None
        try:
            image = read_image(self.folder, self.names[number] or "", hw, rule.max_pixels)
            valid = 1.0
            if self.composites:
                made = self.composites.draw(rng, row, image, box)
            if made:
                image, given, box = made.image, made.box, made.box
        except BadImage:
            image, valid = np.zeros((1, 1, 3), np.uint8), 0.0
        roi = expand_box(box, margins, "released" if rule.expansion == "released" else "exact")
        crop = crop_roi(image, roi, rule.crop_size, rule.border)
        pasted = np.zeros((rule.crop_size if self.composites else 0,) * 2, np.uint8)
        if made:
            pasted = crop_roi(made.pasted, roi, rule.crop_size, rule.border)
        whole = np.array([0.0, 0.0, hw[1], hw[0]])
        if rule.box_mask == "inclusive":
            profile = box_profiles(box, roi, hw, rule.crop_size, wrap=rule.border == "wrap")
        else:
            profile = np.zeros((2, 0), np.uint8)
        return {
            "crop_BCHW": crop.transpose(2, 0, 1),
            "box_B4": roi_frame(box, roi).astype(np.float32),
            "image_B4": roi_frame(whole, roi).astype(np.float32),
            "profile_B2S": profile,
            "size_B": box_size(given, rule.size_classes),
            "views_BN": views,
            "valid_B": np.asarray(valid, np.float32),
            "row_B": np.asarray(row, np.int64),
            "pasted_BSS": pasted,
            "kind_B": np.asarray(made.kind if made else NOTHING_PASTED, np.int64),
        }


def box_size(xyxy: NDArray[np.float64], law: str) -> NDArray[np.int64]:
    """Return the size class of a box (4,) as given, not clipped; `strict` takes float32 areas."""
    if law == "strict":
        return size_class(released_area(xyxy), law)
    return size_class(np.asarray(np.prod(xyxy[2:] - xyxy[:2])), law)


def collate(samples: Sequence[dict[str, NDArray[Any]]]) -> RoiBatch:
    """Return samples stacked into a RoiBatch."""
    names = samples[0]
    return RoiBatch(
        **{name: torch.from_numpy(np.stack([one[name] for one in samples])) for name in names}
    )
