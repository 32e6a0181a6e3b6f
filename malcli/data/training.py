"""Training samples: boxes -> randomly expanded crops (Sec. 3.1), in an order that can be resumed.

Everything random about a sample comes from (seed, epoch, box), so a sample does not depend on
workers, batches or processes. Knows nothing of networks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from malcli.data.augment import ViewOdds, draw_views
from malcli.data.images import BadImage, ImageFolder, decode_image, resolve
from malcli.geometry.boxes import (
    clip_xyxy,
    expand_box,
    random_margins,
    roi_frame,
    size_class,
    xywh_to_xyxy,
)
from malcli.geometry.crops import crop_roi
from malcli.records import BoxTable


@dataclass(frozen=True)
class CropRule:
    """How a box becomes a crop; see the settings of the same names."""

    crop_size: int
    theta: float
    expansion: str
    border: str
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
        size_B: (B,) int64 size class of the box.
        views_BN: (B, 9) float32 parameters of `draw_views`.
        valid_B: (B,) float32 1, or 0 where the image could not be read.
        row_B: (B,) int64 row of the box in its table.
    """

    crop_BCHW: Tensor
    box_B4: Tensor
    image_B4: Tensor
    size_B: Tensor
    views_BN: Tensor
    valid_B: Tensor
    row_B: Tensor

    def pin_memory(self) -> "RoiBatch":
        """Return the batch in page-locked memory, for the DataLoader."""
        return RoiBatch(*(getattr(self, item.name).pin_memory() for item in fields(self)))

    def to(self, device: torch.device) -> "RoiBatch":
        """Return the batch on a device; the views' parameters stay on the CPU."""
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=True)
            for item in fields(self)
            if item.name != "views_BN"
        }
        return RoiBatch(views_BN=self.views_BN, **moved)


def training_rows(table: BoxTable, min_box_area: float, keep_crowd: bool) -> NDArray[np.int64]:
    """Return the rows of boxes to train on: usable, w > 2, h > 2, area w*h above the minimum.

    The `area` key is never read: in COCO files masks made it (mal_spec 12).
    """
    xywh = table.xywh()
    status = np.asarray(table.boxes["status"].to_pylist(), dtype=object)
    usable = status == "ok"
    if keep_crowd:
        usable |= status == "skipped:crowd"
    sides = np.nan_to_num(xywh[:, 2:], nan=0.0)
    large = (sides > 2).all(axis=1) & (sides.prod(axis=1) > min_box_area)
    return np.flatnonzero(usable & large)


class TrainingCrops(Dataset[dict[str, NDArray[Any]]]):
    """Maps (epoch, row of the box) to the arrays of one sample.

    Args:
        table: All boxes.
        folder: Where the images are.
        rule: How a box becomes a crop.
    """

    def __init__(self, table: BoxTable, folder: ImageFolder, rule: CropRule) -> None:
        """Keep plain arrays, which worker processes share without copying."""
        self.rule = rule
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
        box = clip_xyxy(self.xyxy[row], hw)
        roi = expand_box(box, margins)
        try:
            image = decode_image(
                resolve(self.folder.root, self.names[number] or ""), hw, rule.max_pixels
            )
            crop, valid = crop_roi(image, roi, rule.crop_size, rule.border), 1.0
        except BadImage:
            crop, valid = np.zeros((rule.crop_size, rule.crop_size, 3), np.uint8), 0.0
        whole = np.array([0.0, 0.0, hw[1], hw[0]])
        area = np.asarray(np.prod(self.xyxy[row, 2:] - self.xyxy[row, :2]))
        return {
            "crop_BCHW": crop.transpose(2, 0, 1),
            "box_B4": roi_frame(box, roi).astype(np.float32),
            "image_B4": roi_frame(whole, roi).astype(np.float32),
            "size_B": size_class(area),
            "views_BN": views,
            "valid_B": np.asarray(valid, np.float32),
            "row_B": np.asarray(row, np.int64),
        }


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
    batch is filled from the permutation's start.

    Args:
        rows: Rows of the boxes to train on.
        batch_size: Crops per process and batch.
        rank: This process.
        world: Number of processes.
        seed: Seed of the permutation.
    """

    def __init__(
        self, rows: NDArray[np.int64], batch_size: int, rank: int, world: int, seed: int
    ) -> None:
        """Start at the first batch of epoch 0."""
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.seed = seed
        self.epoch = 0
        self.first = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self.rows) // (self.batch_size * self.world))

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
