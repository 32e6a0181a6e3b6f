"""Images with the instances that a student learns: one decode a sample, flipped at random or not.

Everything random comes from (seed, epoch, image), so students that differ in their masks alone see
the same pixels and boxes in the same order. Knows nothing of networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from malcli.data.images.find import ImageFolder
from malcli.data.images.read import read_image
from malcli.errors import BadImage
from malcli.geometry.rle import decode_rle
from malcli.records import Rle


class Sample(NamedTuple):
    """One image, with its instances if it is for training.

    Attributes:
        image: Row of the image.
        pixels_CHW: (3, H, W) uint8 RGB.
        xyxy_N4: (N, 4) float32 boxes, pixels.
        label_N: (N,) int64, from 1.
        mask_NHW: (N, H, W) uint8 0/1.
        readable: Whether the file could be decoded; if not, the image is black, N is 0.
    """

    image: int
    pixels_CHW: NDArray[np.uint8]
    xyxy_N4: NDArray[np.float32]
    label_N: NDArray[np.int64]
    mask_NHW: NDArray[np.uint8]
    readable: bool


@dataclass(frozen=True)
class Targets:
    """Instances to learn, N rows, sorted by image.

    Attributes:
        image: (N,) rows of the images, ascending.
        xyxy: (N, 4) boxes inside their images, pixels.
        label: (N,) from 1.
        rles: N checked masks of their image's size.
    """

    image: NDArray[np.int64]
    xyxy: NDArray[np.float64]
    label: NDArray[np.int64]
    rles: list[Rle]

    def of(self, image: int) -> slice:
        """Return the rows of an image."""
        begin, end = np.searchsorted(self.image, [image, image + 1])
        return slice(int(begin), int(end))


class StudentImages:
    """Maps (epoch, row of the image) to a sample; a data set for torch's DataLoader.

    Args:
        folder: Where the images are.
        images: Columns `file_name`, `height`, `width`.
        targets: What to learn; None: images alone, never flipped.
        max_pixels: Larger images count as unreadable.
        seed: Of the flips.
    """

    def __init__(
        self,
        folder: ImageFolder,
        images: pa.Table,
        targets: Targets | None,
        max_pixels: int,
        seed: int,
    ) -> None:
        """Keep plain columns, which worker processes share without copying."""
        self.folder = folder
        self.names = images["file_name"].to_pylist()
        sides = (images[side].to_pylist() for side in ("height", "width"))
        self.sizes_hw = [(height or 0, width or 0) for height, width in zip(*sides, strict=True)]
        self.targets = targets
        self.max_pixels = max_pixels
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return one sample; an unreadable image is black and has no instances."""
        epoch, row = key
        hw = self.sizes_hw[row]
        try:
            pixels = read_image(self.folder, self.names[row] or "", hw, self.max_pixels)
            pixels = pixels.transpose(2, 0, 1)
        except BadImage:
            return _sample(row, np.zeros((3, *_some(hw)), np.uint8), readable=False)
        if self.targets is None:
            return _sample(row, pixels, readable=True)
        rows = self.targets.of(row)
        masks = [decode_rle(rle) for rle in self.targets.rles[rows]]
        sample = Sample(
            image=row,
            pixels_CHW=pixels,
            xyxy_N4=self.targets.xyxy[rows].astype(np.float32),
            label_N=self.targets.label[rows],
            mask_NHW=np.stack(masks).astype(np.uint8) if masks else _no_masks(hw),
            readable=True,
        )
        rng = np.random.default_rng((self.seed, epoch, row))
        return flipped(sample) if rng.random() < 0.5 else sample


def flipped(sample: Sample) -> Sample:
    """Return a sample mirrored left to right: pixels, boxes and masks."""
    width = sample.pixels_CHW.shape[2]
    x0, y0, x1, y1 = sample.xyxy_N4.T
    return sample._replace(
        pixels_CHW=sample.pixels_CHW[:, :, ::-1],
        xyxy_N4=np.stack([width - x1, y0, width - x0, y1], axis=1),
        mask_NHW=sample.mask_NHW[:, :, ::-1],
    )


def same_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return a batch as it is: images of unlike sizes cannot be stacked."""
    return list(samples)


def _sample(row: int, pixels: NDArray[np.uint8], *, readable: bool) -> Sample:
    """Return a sample without instances."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return Sample(row, pixels, *nothing, _no_masks((pixels.shape[1], pixels.shape[2])), readable)


def _no_masks(hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.zeros((0, *hw), np.uint8)


def _some(hw: tuple[int, int]) -> tuple[int, int]:
    """Return a size that a network can take: a record may lie, as for images that are no files."""
    return min(max(hw[0], 32), 4096), min(max(hw[1], 32), 4096)
