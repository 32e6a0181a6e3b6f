"""Composites: an object, cut out by its mask, pasted over the image of a box (`fit --paste`).

Where the object was pasted is known for certain, so its pixels inside another object's box are
background for that one: what boxes alone cannot say. Source: copy-paste augmentation (Ghiasi et
al., "Simple Copy-Paste is a Strong Data Augmentation Method", 2021), with masks that a labeler
trained on boxes made itself. Knows nothing of networks.
"""

import contextlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.images.find import ImageFolder
from malcli.data.images.read import read_image
from malcli.errors import BadImage, DataFormatError
from malcli.geometry.boxes import round_outward
from malcli.geometry.rle import RleError, decode_rle, from_segmentation, rle_box
from malcli.records import BEHIND, PASTED, STATUS_OK, BoxTable, Rle, to_records

BEHIND_SHARE = 0.5  # of composites
DONOR_SIDE = 30.0  # pixels; smaller objects are too coarse to be shown elsewhere
DONOR_QUANTILE = 0.5  # masks with a lower score than this share of all are not cut out
RELATIVE_SIDES = (0.25, 1.0)  # of a pasted object, in sides of the box that it is pasted at
SCALES = (0.2, 1.6)  # that an object is resized by: larger ones look blurred
BEYOND = 0.15  # of the box's sides that the centre of an object may lie outside it
BLUR = (0.4, 1.4)  # pixels, sigma of the soft border
LEAST_PIXELS = 60  # of an object, pasted or what is left of it
LEAST_COVER = 0.04  # share of the box that a pasted object covers
LEAST_LEFT = 0.35  # share of an object that is left to see
LEAST_SIDE = 6  # pixels, of a pasted object and of the box of what is left
SAME_END = 1.5  # pixels; an object that lost less at a side keeps the box's own side
TRIES = 4
READ_AT_ONCE = 4096  # records


class Composite(NamedTuple):
    """An image with an object pasted over it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        box: (4,) float64 x0 y0 x1 y1 of the object to find, pixels.
        pasted: (H, W) uint8, 255 times the share of each pixel that was pasted.
        kind: `BEHIND` or `PASTED`.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float64]
    pasted: NDArray[np.uint8]
    kind: int


class Composites:
    """Makes composites from masks of the training boxes.

    Args:
        table: The boxes to train on.
        masks: The same boxes with masks, matched by id; a `malcli_score` says which are good.
        folder: The images of `masks`.
        share: Of samples that are composites, in [0, 1].
        max_pixels: As in `read_image`.

    Raises:
        DataFormatError: No mask, or none of a box of the table.
    """

    def __init__(
        self, table: BoxTable, masks: BoxTable, folder: ImageFolder, share: float, max_pixels: int
    ) -> None:
        """Keep the masks as run lengths."""
        self.share = share
        self.folder = folder
        self.max_pixels = max_pixels
        self.image = np.asarray(masks.boxes["image"])
        self.names = masks.images["file_name"].to_pylist()
        self.hw = [
            (int(height or 0), int(width or 0))
            for height, width in zip(
                masks.images["height"].to_pylist(), masks.images["width"].to_pylist(), strict=True
            )
        ]
        self.masks, score = self._read(masks)
        # Ids are text where any of their file is no whole number.
        own, ids = (each.boxes["id"].combine_chunks().cast(pa.string()) for each in (table, masks))
        self.mask_of = np.asarray(pc.fill_null(pc.index_in(own, ids), -1))
        known = [place for place, rle in enumerate(self.masks) if rle]
        if not known:
            raise DataFormatError(masks.path, "has no mask to paste; give a file that label wrote")
        if not np.isin(self.mask_of, known).any():
            raise DataFormatError(
                masks.path, f"none of its masks has the id of a box in {table.path}"
            )
        self.donors = self._donors(np.array(known), score)
        if not len(self.donors):
            raise DataFormatError(
                masks.path, f"has no mask with sides of {DONOR_SIDE:g} pixels or more to paste"
            )

    def _read(self, masks: BoxTable) -> tuple[list[Rle | None], NDArray[np.float64]]:
        """Return the mask of each record, None where there is none that can be used, and scores."""
        rles: list[Rle | None] = []
        scores: list[float] = []
        for batch in masks.boxes.to_batches(READ_AT_ONCE):
            image, status = batch["image"].to_pylist(), batch["status"].to_pylist()
            for place, record in enumerate(to_records(batch)):
                score = record.get("malcli_score")
                scores.append(float(score) if isinstance(score, int | float) else 1.0)
                rles.append(None)
                if status[place] == STATUS_OK:
                    with contextlib.suppress(RleError):
                        rle = from_segmentation(record.get("segmentation"), self.hw[image[place]])
                        rles[-1] = rle if min(rle_box(rle)[2:]) > 0 else None
        return rles, np.array(scores)

    def _donors(self, known: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the rows of masks that may be cut out: large ones, the surer half of them."""
        sides = np.array([np.sqrt(np.prod(rle_box(self._mask(row))[2:])) for row in known])
        large: NDArray[np.int64] = known[sides >= DONOR_SIDE]
        if not len(large):
            return large
        sure: NDArray[np.int64] = large[score[large] >= np.quantile(score[large], DONOR_QUANTILE)]
        return sure

    def _mask(self, row: int) -> Rle:
        """Return the mask of a record that has one."""
        rle = self.masks[row]
        assert rle is not None
        return rle

    def draw(
        self,
        rng: np.random.Generator,
        row: int,
        image: NDArray[np.uint8],
        box: NDArray[np.float64],
    ) -> Composite | None:
        """Return a composite for a box, or None: by chance, or because no object fits.

        Args:
            rng: What decides.
            row: The box's row in the table.
            image: (H, W, 3) uint8 RGB; left as it is.
            box: (4,) x0 y0 x1 y1 inside the image, pixels.
        """
        if rng.random() >= self.share:
            return None
        for _ in range(TRIES):
            made = self._paste(rng, row, image, box)
            if made:
                return made
        return None

    def _paste(
        self,
        rng: np.random.Generator,
        row: int,
        image: NDArray[np.uint8],
        box: NDArray[np.float64],
    ) -> Composite | None:
        """Return a composite with a random object at a random place, or None if it does not fit."""
        donor = int(rng.choice(self.donors))
        own = int(self.mask_of[row])
        if donor == own:
            return None
        cut = self._cut(donor, rng, float(np.sqrt(np.prod(box[2:] - box[:2]))))
        if cut is None:
            return None
        made, share = _laid(image, *cut, _corner_near(rng, box, cut[1].shape))
        seen = share > 0.5
        x0, y0, x1, y1 = round_outward(box)
        least = LEAST_COVER * max(1, (x1 - x0) * (y1 - y0))
        if seen.sum() < LEAST_PIXELS or seen[y0:y1, x0:x1].sum() < least:
            return None
        pasted = np.round(255 * share).astype(np.uint8)
        if rng.random() >= BEHIND_SHARE:
            return Composite(made, _ends(seen).astype(np.float64), pasted, PASTED)
        left = self._left_of(own, seen, box)
        return None if left is None else Composite(made, left, pasted, BEHIND)

    def _cut(
        self, donor: int, rng: np.random.Generator, side: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Return an object's pixels (h, w, 3) and share of each (h, w), at a random size.

        Args:
            donor: Its row.
            rng: What decides.
            side: Mean side of the box that it is for, pixels.
        """
        rle = self._mask(donor)
        number = int(self.image[donor])
        try:
            name = self.names[number] or ""
            image = read_image(self.folder, name, self.hw[number], self.max_pixels)
        except BadImage:
            return None
        x, y, w, h = rle_box(rle)
        mask = decode_rle(rle)[y : y + h, x : x + w].astype(np.float32)
        relative = np.exp(rng.uniform(*np.log(RELATIVE_SIDES)))
        scale = float(np.clip(relative * side / np.sqrt(w * h), *SCALES))
        size = max(LEAST_SIDE, round(w * scale)), max(LEAST_SIDE, round(h * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        pixels = cv2.resize(image[y : y + h, x : x + w], size, interpolation=how)
        share = cv2.resize(mask, size, interpolation=how)
        if rng.random() < 0.5:
            pixels, share = pixels[:, ::-1], np.ascontiguousarray(share[:, ::-1])
        share = cv2.GaussianBlur(share, (0, 0), rng.uniform(*BLUR))
        return pixels, share

    def _left_of(
        self, own: int, seen: NDArray[np.bool_], box: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return the box of what is left to see of an object, None if that is too little."""
        rle = self.masks[own] if own >= 0 else None
        if rle is None or tuple(rle["size"]) != seen.shape:
            return None
        mask = decode_rle(rle)
        left = mask & ~seen
        if np.count_nonzero(left) < max(LEAST_LEFT * np.count_nonzero(mask), LEAST_PIXELS):
            return None
        before, after = _ends(mask), _ends(left)
        shown = np.where(np.abs(before - after) < SAME_END, box, after).astype(np.float64)
        return shown if min(shown[2:] - shown[:2]) >= LEAST_SIDE else None


def _corner_near(
    rng: np.random.Generator, box: NDArray[np.float64], hw: tuple[int, ...]
) -> tuple[int, int]:
    """Return where (x, y) an object's corner goes so that its centre lies in or near a box."""
    beyond = BEYOND * (box[2:] - box[:2])
    x, y = rng.uniform(box[:2] - beyond, box[2:] + beyond)
    return int(x - hw[1] / 2), int(y - hw[0] / 2)


def _laid(
    image: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    share: NDArray[np.float32],
    corner: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the image with pixels laid over it, and the share of each pixel that they take."""
    height, width = image.shape[:2]
    whole = np.zeros((height, width), np.float32)
    x, y = corner
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + share.shape[1], width), min(y + share.shape[0], height)
    if right <= left or bottom <= top:
        return image, whole
    part = np.s_[top - y : bottom - y, left - x : right - x]
    weight = share[part][..., None]
    made = image.copy()
    mixed = image[top:bottom, left:right] * (1 - weight) + pixels[part] * weight
    made[top:bottom, left:right] = np.round(mixed).astype(np.uint8)
    whole[top:bottom, left:right] = share[part]
    return made, whole


def _ends(mask: NDArray[Any]) -> NDArray[np.int64]:
    """Return the box (4,) x0 y0 x1 y1 of a mask's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
