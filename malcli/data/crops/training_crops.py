"""Training samples: boxes -> randomly expanded crops (Sec. 3.1), in an order that can be resumed.

Everything random about a sample comes from (seed, epoch, box), so a sample does not depend on
workers, batches or processes. Knows nothing of networks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from malcli.data.crops.augment import ViewOdds, draw_views
from malcli.data.crops.composites import Composites
from malcli.data.images.decode import BadImage, ImageFolder, decode_image, resolve
from malcli.geometry.boxes import (
    clip_xyxy,
    expand_box,
    random_margins,
    roi_frame,
    size_class,
    xywh_to_xyxy,
)
from malcli.geometry.crops import crop_roi
from malcli.geometry.released import box_pixels, released_area
from malcli.records import NOTHING_PASTED, BoxTable


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

    The `area` key is never read: in COCO files masks made it (mal_spec 12).
    """
    xywh = table.xywh()
    wanted = ["ok", "skipped:crowd"] if keep_crowd else ["ok"]
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
            image = decode_image(
                resolve(self.folder.root, self.names[number] or ""), hw, rule.max_pixels
            )
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

    Source: mal_spec 1.7, 1.8.
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


def collate(samples: Sequence[dict[str, NDArray[Any]]]) -> RoiBatch:
    """Return samples stacked into a RoiBatch."""
    names = samples[0]
    return RoiBatch(
        **{name: torch.from_numpy(np.stack([one[name] for one in samples])) for name in names}
    )


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Batches of one process for one epoch: (epoch, row) keys of a seeded permutation.

    Global batch g takes places [g * B * W, (g + 1) * B * W) of the permutation and process r the
    r-th B of them, so W processes see the crops that one process with batch B * W sees. The last
    optimiser step's batches are filled from the permutation's start.

    Args:
        rows: Rows of the boxes to train on.
        batch_size: Crops per process and batch.
        rank: This process.
        world: Number of processes.
        seed: Seed of the permutation.
        group: Batches per optimiser step; an epoch has a multiple of them.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        group: int = 1,
    ) -> None:
        """Start at the first batch of epoch 0."""
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.seed = seed
        self.group = group
        self.epoch = 0
        self.first = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self.rows) // (self.batch_size * self.world * self.group)) * self.group

    def start(self, epoch: int, first: int) -> None:
        """Take batches from `first` on, of an epoch, at the next iteration."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        """Return the number of batches left in the epoch."""
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the keys of each batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        share = self.batch_size * self.world
        order = np.resize(order, self.batches * share)
        for batch in range(self.first, self.batches):
            begin = batch * share + self.rank * self.batch_size
            yield [(self.epoch, int(row)) for row in order[begin : begin + self.batch_size]]


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

    Source: mal_spec 5; both the mask and bilinear resizing are products of rows and columns.
    """
    lines_B2s = F.interpolate(profile_B2S.float(), side, mode="linear", align_corners=False)
    return lines_B2s[:, 0, :, None] * lines_B2s[:, 1, None, :]
