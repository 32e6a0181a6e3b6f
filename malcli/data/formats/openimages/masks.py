"""Masks of Open Images: a CSV that names PNG files, joined to the rows of the CSV of boxes.

    FILE-masks.csv, FILE-masks/                   as malcli writes them beside FILE.csv
    SPLIT-annotations-object-segmentation.csv     as Open Images does; the PNGs in folders beside it

The CSV of boxes has no BoxID, so a mask belongs to the box with its image, label and four sides,
rounded to a millionth of the image; of equal boxes the first has the first mask. Only an index of
keys is in memory. Knows nothing of other columns of boxes.
"""

import json
import mmap
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from malcli.data.boxtable.checks import SHOWN, note, short
from malcli.data.boxtable.columns import encode_json, join_members
from malcli.data.boxtable.spill import new_file
from malcli.data.formats.openimages.csv_rows import members_of, numbers_of, opened_csv
from malcli.data.images.decode import MAX_PIXELS, decode_image, read_size
from malcli.data.images.find import image_path
from malcli.errors import BadImage
from malcli.geometry.rle import empty_rle, encode_crop
from malcli.records import EXACT, Problems, Rle, release

OFFICIAL = "-annotations-object-segmentation.csv"
SPLITS = ("train", "validation", "test")
BOX = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax")
NEEDED = ("MaskPath", *BOX[:2], *(f"Box{side}" for side in BOX[2:]))
STEPS = 1e6  # of a side, across the image
FIRST_NAMES = 32  # looked for in every place
LONGEST = 1 << 22  # characters of a mask; a picture of noise may have a hundred times as many
ROWS = 512  # boxes whose masks are in memory
THREADS = 4
KINDS = (pa.string(), pa.float64(), pa.string())  # of the columns below
_DIGIT = re.compile(r"(?:.*[-_])?([0-9a-f])")  # a folder of the masks whose names begin with it


class MaskColumns(NamedTuple):
    """What masks say of a batch of boxes; null where there is no mask."""

    segmentation: pa.Array  # JSON of RLE
    area: pa.Array  # pixels
    members: pa.Array  # `"key":value,...` of the other columns of the CSV of masks


def masks_csv_of(path: Path) -> Path | None:
    """Return the CSV of masks beside a CSV of boxes: malcli's, or Open Images' of that split."""
    own = path.with_name(f"{path.stem}-masks.csv")
    if own.is_file():
        return own
    found = sorted(path.absolute().parent.glob(f"*{OFFICIAL}"))
    same = [file for file in found if split_of(file) == split_of(path)]
    return same[0] if same else found[0] if len(found) == 1 and not split_of(path) else None


def files_of_masks(path: Path) -> list[Path]:
    """Return the CSV and the folders of masks that a CSV of boxes may have."""
    masks_csv = masks_csv_of(path)
    return [masks_csv, *mask_folders(masks_csv)] if masks_csv else []


def mask_folders(masks_csv: Path) -> list[Path]:
    """Return the folders that the PNG files of a CSV of masks may lie in, of those that are there.

    Not the folders beside it that hold much else.
    """
    beside = (masks_csv.absolute().parent, masks_csv.absolute().parent.parent)
    return [folder for folder, _ in _folders(masks_csv) if folder not in beside]


def _folders(masks_csv: Path) -> list[tuple[Path, str]]:
    """Return the folders that the PNG files of a CSV of masks may lie in, of those that are there.

    With each comes the hex digit that its files begin with; empty: any.
    """
    folder = masks_csv.absolute().parent
    if not masks_csv.name.endswith(OFFICIAL):
        places = [folder / masks_csv.stem]
    else:
        split = split_of(masks_csv) or "masks"
        names = (f"{split}-masks", f"{split}_masks", f"masks/{split}", f"{split}/masks", "masks")
        places = [base / name for base in (folder, folder.parent) for name in (*names, "")]
    there = [place for place in places if place.is_dir()]
    subs = [sub for place in there for sub in _listed(place) if _digit(sub)]
    return [(place, "") for place in there] + [(sub, _digit(sub)) for sub in subs]


def split_of(path: Path) -> str | None:
    """Return the part of the data set that a file's name says, if any."""
    return next((split for split in SPLITS if split in path.name.lower()), None)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not for us to list
        return []


def _digit(folder: Path) -> str:
    found = _DIGIT.fullmatch(folder.name)
    return found[1] if found and folder.is_dir() else ""


def no_masks(rows: int) -> MaskColumns:
    """Return the columns of boxes without masks."""
    return MaskColumns(*(pa.nulls(rows, kind) for kind in KINDS))


def open_masks(path: Path, problems: Problems) -> "Masks | None":
    """Return the masks beside a CSV of boxes; None if there are none.

    Args:
        path: The CSV of boxes.
        problems: Takes what is wrong; also that no PNG file is there.

    Raises:
        DataFormatError: The CSV of masks cannot be understood.
        RunError: The disk of temporary files is full.
    """
    masks_csv = masks_csv_of(path)
    if masks_csv is None:
        return None
    masks = Masks(masks_csv, problems)
    return masks if masks.are_there() else None


class Masks:
    """The masks of a CSV, read from their PNG files when their boxes come.

    Args:
        path: The CSV of masks.
        problems: Takes what is wrong.
    """

    def __init__(self, path: Path, problems: Problems) -> None:
        """Index the CSV; its rows go to a temporary file."""
        self._path = path
        self._problems = problems
        self._folders = _folders(path)
        keys, self._ends, self._mapped = _read_rows(path)
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]
        self._taken = np.zeros(keys.size, dtype=np.int32)  # of equal keys, at the first
        self._used = np.zeros(keys.size, dtype=bool)

    def are_there(self) -> bool:
        """Return whether one of the first masks has its file; count it as a problem if not."""
        first = [self._row(row)[0] for row in range(min(FIRST_NAMES, self._keys.size))]
        if not first or any(not isinstance(self._find(name), BadImage) for name in first):
            return True
        places = ", ".join(str(place) for place, _ in self._folders) or "a folder beside it"
        what = f"{self._path}: none of its masks, such as {short(first[0])}, is found in {places}"
        self._problems.add("no-mask-files", f"{what}; boxes have no masks")
        return False

    def columns(self, batch: pa.RecordBatch, begin: int, hw: NDArray[np.float64]) -> MaskColumns:
        """Return the masks of a batch of boxes, each used once.

        Args:
            batch: Rows of the CSV of boxes.
            begin: Id of the first.
            hw: (N, 2) sizes of their images, pixels; 0 if unknown.
        """
        found = self._match(batch)
        lone = found < 0
        note(self._problems, "box-without-mask", lone, lambda row: f"annotation {begin + row}")
        texts: list[str | None] = [None] * batch.num_rows
        areas: list[int | None] = [None] * batch.num_rows
        members: list[str | None] = [None] * batch.num_rows
        rows = np.flatnonzero(~lone).tolist()
        read = [(*self._row(int(found[row])), (int(hw[row, 0]), int(hw[row, 1]))) for row in rows]
        with ThreadPoolExecutor(THREADS, "malcli") as pool:
            made = pool.map(lambda each: self._mask(each[0], each[2]), read)
            for row, (_, more, _), mask in zip(rows, read, made, strict=True):
                if isinstance(mask, BadImage):
                    self._problems.add("bad-mask", f"annotation {begin + row}: {mask}")
                else:
                    texts[row], areas[row] = mask
                    members[row] = more or None
        release(self._mapped)
        columns = zip((texts, areas, members), KINDS, strict=True)
        return MaskColumns(*(pa.array(values, kind) for values, kind in columns))

    def finish(self) -> None:
        """Count the masks that no box has; call it after the last batch."""
        lone = np.flatnonzero(~self._used)
        for row in np.sort(self._rows[lone])[:SHOWN].tolist():
            name = self._row(row)[0]
            self._problems.add("mask-without-box", f"{self._path}: {short(name)}")
        if lone.size > SHOWN:
            self._problems.add("mask-without-box", "", int(lone.size) - SHOWN)

    def _match(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Return the row of the mask of each box, (N,); -1 if there is none."""
        keys = _keys(batch, BOX)
        first = np.searchsorted(self._keys, keys)
        found = np.full(batch.num_rows, -1, dtype=np.int64)
        inside = first < self._keys.size
        inside[inside] = self._keys[first[inside]] == keys[inside]
        for row in np.flatnonzero(inside & (keys != 0)).tolist():
            place = first[row] + self._taken[first[row]]  # equal boxes take equal keys in turn
            if place < self._keys.size and self._keys[place] == keys[row]:
                self._taken[first[row]] += 1
                self._used[place] = True
                found[row] = self._rows[place]
        return found

    def _row(self, row: int) -> tuple[str, str]:
        """Return the path of a mask, and its other columns as members of a JSON object."""
        begin, end = self._ends[row : row + 2].tolist()
        path, _, members = self._mapped[begin:end].decode("ascii").partition("\n")
        return json.loads(path), members

    def _mask(self, name: str, image_hw: tuple[int, int]) -> tuple[str, int] | BadImage:
        """Return a mask as JSON of its RLE and its pixels, or why there is none."""
        path = self._find(name)
        if isinstance(path, BadImage):
            return path
        try:
            mask = read_mask(path, image_hw)
        except BadImage as error:
            return error
        text = encode_json(_encode(mask))
        if len(text) > LONGEST:
            return BadImage("bad-image", f"{path}: its outline takes more than {LONGEST} bytes")
        return text, int(np.count_nonzero(mask))

    def _find(self, name: str) -> Path | BadImage:
        """Return the file of a mask; it never leaves the folders."""
        try:
            for place, digit in self._folders:
                path = image_path(place, name)
                if digit in ("", PurePosixPath(name).name[:1]) and path.is_file():
                    return path
        except BadImage as error:
            return error
        except OSError as error:
            return BadImage("no-image", f"{short(name)}: cannot be opened ({error.strerror})")
        return BadImage("no-image", f"{short(name)}: no such file beside {self._path}")


def read_mask(path: Path, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask, (H, W) of its image's size; what is not black is foreground.

    Args:
        path: A picture of any size, which is resized to the nearest pixels.
        image_hw: (height, width) of its image, pixels.

    Raises:
        BadImage: It cannot be decoded, or it or its image is too large, or the image is not there.
    """
    height, width = image_hw
    if height * width == 0:
        raise BadImage("no-image", f"{path}: the size of its image is not known")
    if height * width > MAX_PIXELS:
        raise BadImage("bad-image", f"{path}: its image has more than {MAX_PIXELS} pixels")
    rgb = decode_image(path, read_size(path))
    mask = (rgb[..., 0] | rgb[..., 1] | rgb[..., 2]) != 0
    if mask.shape == image_hw:
        return np.asarray(mask)
    rows, columns = (
        ((np.arange(wanted) + 0.5) * there / wanted).astype(np.int64)
        for wanted, there in zip(image_hw, mask.shape, strict=True)
    )
    return np.asarray(mask[rows[:, None], columns])


def _encode(mask: NDArray[np.bool_]) -> Rle:
    """Return the RLE of a mask (H, W); only the part with foreground is encoded."""
    height, width = mask.shape
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return empty_rle((height, width))
    (y0, x0), (y1, x1) = (rows[0], columns[0]), (rows[-1] + 1, columns[-1] + 1)
    return encode_crop(mask[y0:y1, x0:x1], int(x0), int(y0), (height, width))


def _read_rows(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.int64], mmap.mmap]:
    """Return the keys of N rows, the N + 1 edges of their texts in a file, and that file, mapped.

    Raises:
        DataFormatError: Not a CSV of masks.
        RunError: The disk of temporary files is full.
    """
    keys: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    lengths: list[NDArray[np.int64]] = [np.ones(1, dtype=np.int64)]
    with opened_csv(path, NEEDED, "masks") as reader, new_file(None, "masks") as file:
        file.write(b" ")  # no file of no bytes can be mapped
        for batch in reader:
            texts = _texts(batch)
            file.write("".join(texts).encode("ascii"))
            lengths.append(np.array(list(map(len, texts)), dtype=np.int64))
            keys.append(_keys(batch, NEEDED[1:]))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.concatenate(keys), np.cumsum(np.concatenate(lengths)), mapped


def _texts(batch: pa.RecordBatch) -> list[str]:
    """Return the path of each row as JSON and, on a second line, its other columns."""
    names = [name for name in batch.schema.names if name not in NEEDED]
    objects = join_members([members_of(name, batch[name]) for name in names], batch.num_rows)
    paths = batch["MaskPath"].to_pylist()
    return [
        f"{encode_json(path)}\n{more[1:-1] if more else ''}"
        for path, more in zip(paths, objects.to_pylist(), strict=True)
    ]


def _keys(batch: pa.RecordBatch, names: Sequence[str]) -> NDArray[np.uint64]:
    """Return a number that equal boxes share, others only by a rare chance, (N,); 0: none.

    Args:
        batch: Of either CSV.
        names: Its columns of the image, the label and the four sides.
    """
    mixed = np.zeros(batch.num_rows, dtype=np.uint64)
    bad = np.zeros(batch.num_rows, dtype=bool)
    for number, name in enumerate(names):
        if number < 2:
            coded = batch[name].dictionary_encode()
            hashes = np.array([*map(hash, coded.dictionary.to_pylist())], dtype=np.int64)
            whole = hashes[coded.indices.to_numpy()]
        else:
            with np.errstate(over="ignore"):
                steps = np.rint(numbers_of(batch[name]) * STEPS)
            far = ~(np.abs(steps) < EXACT)
            bad |= far
            whole = np.where(far, 0, steps).astype(np.int64)
        # The steps of splitmix64.
        mixed = (mixed ^ whole.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
    mixed[bad] = 0
    return mixed
