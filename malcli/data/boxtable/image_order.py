"""Rows sorted by image, and keys that come twice, in bounded memory: dealt to files, file by file.

Knows arrays of numbers only.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKET = 1 << 18  # rows that are sorted at once, in memory
MOST_FILES = 64  # beyond them buckets grow
ROW_BITS = np.uint64(36)  # of a key, below the image's
ROW_MASK = np.uint64((1 << 36) - 1)

Numbers = NDArray[np.uint64]


class Buckets:
    """Files without names, to which rows are dealt.

    Args:
        width: Numbers of a row.
        count: Number of buckets.
        folder: Where they lie; None: with the temporary files.
    """

    def __init__(self, width: int, count: int, folder: Path | None) -> None:
        """Open the files."""
        self._width = width
        with contextlib.ExitStack() as opened:
            self._files = [
                opened.enter_context(tempfile.TemporaryFile(prefix="malcli-", dir=folder))
                for _ in range(count)
            ]
            self._closing = opened.pop_all()

    def __enter__(self) -> "Buckets":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        self._closing.close()

    def deal(self, rows: Numbers, bucket: NDArray[Any]) -> None:
        """Append each row, (N, width), to its bucket, (N,), in order."""
        counts = np.bincount(bucket, minlength=len(self._files))
        if counts.max() < len(rows):
            rows = rows.take(np.argsort(bucket.astype(np.uint16), kind="stable"), axis=0)
        ends = np.cumsum(counts).tolist()
        for file, begin, end in zip(self._files, [0, *ends[:-1]], ends, strict=True):
            if end > begin:
                file.write(rows[begin:end].tobytes())

    def read(self, number: int, rows: int = 1 << 58) -> Iterator[Numbers]:
        """Yield the rows of a bucket, so many at a time."""
        file = self._files[number]
        left = file.tell() // (8 * self._width)
        file.seek(0)
        while left:
            data = file.read(min(rows, left) * 8 * self._width)
            part = np.frombuffer(data, np.uint64).reshape(-1, self._width)
            left -= len(part)
            yield part


def group_key(image: NDArray[np.int32], images: int, begin: int) -> Numbers:
    """Return numbers that sort by image and then by row.

    Args:
        image: (N,) row of each box's image; -1, if unknown, sorts last.
        images: Number of images.
        begin: The row of the first.
    """
    last = np.where(image < 0, images, image).astype(np.uint64)
    rows = np.arange(begin, begin + len(image), dtype=np.uint64)
    return np.asarray(last << ROW_BITS | rows)


def grouped(
    parts: Iterable[Numbers], starts: NDArray[np.int64], folder: Path | None = None
) -> Iterator[Numbers]:
    """Yield all rows in parts that hold whole images, in their order; inside a part unsorted.

    Args:
        parts: (N, 2) `group_key`, and a number that equal boxes of one image share, or 0.
        starts: (I + 1,) the number of boxes of earlier images, for each image.
        folder: For files.
    """
    edges = _edges(starts)
    with Buckets(2, len(edges), folder) as buckets:
        for part in parts:
            image = part[:, 0] >> ROW_BITS
            buckets.deal(part, np.searchsorted(edges[1:], image, side="right"))
        for number in range(len(edges) - 1):
            yield from buckets.read(number)
        yield from buckets.read(len(edges) - 1, BUCKET)  # without image, in their order


def rows_in_order(part: Numbers) -> NDArray[np.int64]:
    """Return the rows of boxes by image, in file order inside an image."""
    return (np.sort(part[:, 0]) & ROW_MASK).astype(np.int64)


def _edges(starts: NDArray[np.int64]) -> Numbers:
    """Return the first images of the buckets, and the number of images."""
    images = len(starts) - 1
    most = max(BUCKET, int(starts[-1]) * 2 // MOST_FILES)
    edges = [0]
    while edges[-1] < images:
        wanted = int(np.searchsorted(starts, starts[edges[-1]] + most, side="right")) - 1
        edges.append(min(max(wanted, edges[-1] + 1), images))
    return np.array(edges, dtype=np.uint64)


def later_equals(part: Numbers) -> NDArray[np.int64]:
    """Return the rows of boxes that equal an earlier one of their image, in file order."""
    shared = _repeated(part[:, 1])
    part = part[np.isin(part[:, 1], shared[shared != 0])]
    part = part[np.argsort(part[:, 0])]
    later = np.ones(len(part), dtype=bool)
    later[np.unique(part[:, 1], return_index=True)[1]] = False
    return np.sort(part[later, 0] & ROW_MASK).astype(np.int64)


def _repeated(numbers: NDArray[Any]) -> NDArray[Any]:
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def repeated(
    keys: Iterable[NDArray[np.int64]], total: int, folder: Path | None = None
) -> NDArray[np.int64]:
    """Return the keys that come more than once, sorted.

    Args:
        keys: Parts of all keys.
        total: Number of keys.
        folder: For files.
    """
    count = max(1, min(MOST_FILES, total // BUCKET))
    with Buckets(1, count, folder) as buckets:
        for part in keys:
            numbers = part.view(np.uint64)
            # The high bits of such a product are those of a good hash.
            mixed = (numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
            buckets.deal(numbers.reshape(-1, 1), (mixed % np.uint64(count)).astype(np.int64))
        parts = (part for number in range(count) for part in buckets.read(number))
        found = [_repeated(part.view(np.int64).ravel()) for part in parts]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
