"""What moves between layers: tables of boxes and images, and run-length masks.

Boxes are columns (Arrow), never millions of Python objects. A table knows nothing of the file
format that it came from, and nothing of pixels.

The one rule of fidelity: a record is its non-null columns, overridden by its `extra` (a JSON object
of every key that the columns cannot say exactly: unknown keys, explicit nulls, malformed values).
`data.columns` turns records into columns, `to_records` turns them back.
"""

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# What becomes of a box, its `malcli_status`: one of these two, or `skipped:<reason>`.
STATUS_OK = "ok"
STATUS_EMPTY = "empty"
# Why a box is skipped, by precedence: its image cannot be used, or it cannot; what is skipped by
# design comes after, so that `crowd` says that the box is fine otherwise; memory shows at run time.
IMAGE_REASONS = ("no-image", "bad-image")
UNUSABLE_REASONS = (*IMAGE_REASONS, "bad-box")
DESIGN_REASONS = ("crowd", "group", "inside")  # `group`, `inside`: of Open Images
NO_MEMORY = "memory"
SKIP_REASONS = (*UNUSABLE_REASONS, *DESIGN_REASONS, NO_MEMORY)

# What a training crop shows: its object as it was, behind a pasted one, or the pasted one itself.
NOTHING_PASTED, BEHIND, PASTED = range(3)

Record = dict[str, Any]  # an annotation or image as JSON says it

BOX_TYPE = pa.list_(pa.float64(), 4)
NOT_IN_RECORD = ("image", "status", "extra")  # columns that are no keys of a record
BATCHES_KEPT = 16  # in memory, of those on disk that were read
_WHOLE = re.compile(r"-?[0-9]{1,18}")
EXACT = 2.0**53  # whole numbers up to here are exact as float64


def skipped(reason: str) -> str:
    """Return the status of a box that is skipped for one of SKIP_REASONS."""
    return f"skipped:{reason}"


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths: column-major, zeros first."""

    size: list[int]  # [height, width], pixels
    counts: str


def box_schema(id_type: pa.DataType, image_id_type: pa.DataType) -> pa.Schema:
    """Return the columns of boxes; ids are int64, or string where any id is not an integer."""
    return pa.schema(
        [
            ("id", id_type),
            ("image_id", image_id_type),
            ("image", pa.int32()),  # row of the image table, -1 if the image_id is unknown
            ("category_id", pa.int64()),
            ("bbox", BOX_TYPE),  # xywh, pixels; null if missing or malformed
            ("area", pa.float64()),  # as given; masks may have made it, so fit never reads it
            ("iscrowd", pa.int8()),
            ("segmentation", pa.string()),  # JSON of the value as given
            ("status", pa.string()),  # `ok` or `skipped:<reason>`, from the record alone
            ("extra", pa.string()),  # JSON object, or null
        ]
    )


def image_schema(id_type: pa.DataType) -> pa.Schema:
    """Return the columns of images."""
    return pa.schema(
        [
            ("id", id_type),
            ("file_name", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("extra", pa.string()),
        ]
    )


@dataclass
class Problems:
    """Records that cannot be used: a total and the first ten examples of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count a problem; `example` is one line that names the record."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        shown = self.examples.setdefault(kind, [])
        if len(shown) < 10:
            shown.append(example)


class ImageBoxes(NamedTuple):
    """One image and the rows of its boxes."""

    image: int  # row of `BoxTable.images`
    rows: NDArray[np.int64]  # rows of `BoxTable.boxes`, in file order


@dataclass(frozen=True)
class BoxTable:
    """All boxes of a data set, grouped by image.

    Attributes:
        path: The file or folder that it was read from.
        format: Its format's name.
        header: Every top-level value that is neither images nor annotations
            (`info`, `licenses`, `categories`).
        images: Columns of `image_schema`, in file order.
        boxes: Columns of `box_schema`, in file order.
        order: Rows of `boxes` sorted by image, in file order inside an image; rows without a known
            image come last.
        starts: Image i owns `order[starts[i]:starts[i + 1]]`.
        problems: What reading found.
        mapped: The files on disk that `boxes` lies in, if any.
    """

    path: Path
    format: str
    header: dict[str, Any]
    images: pa.Table
    boxes: pa.Table
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    problems: Problems
    mapped: tuple[mmap.mmap, ...] = field(default=(), repr=False, compare=False)
    # Where the batches of each column begin, once they were asked for.
    _begins: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets: columns that it owns."""
        return self.__dict__ | {"mapped": ()}

    def release(self) -> None:
        """Give back the memory of the columns read so far; they are still there, on disk.

        Reading them maps them into memory again. A pass over millions of boxes calls it now and
        then, to stay small.
        """
        for file in self.mapped:
            release(file)

    def xywh(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return all boxes, or those of some rows, as `xywh_of` does."""
        column = self.boxes["bbox"] if rows is None else self.take(rows, "bbox")["bbox"]
        return xywh_of(column)

    def take(self, rows: NDArray[np.int64], *names: str) -> pa.Table:
        """Return some columns (none named: all) of some rows, in the order of `rows`.

        Reads the batches on disk that the rows lie in; `pa.Table.take` would copy whole columns.
        """
        table = self.boxes.select(names) if names else self.boxes
        columns = [self._taken(name, rows) for name in table.schema.names]
        return pa.Table.from_arrays(columns, schema=table.schema)

    def _taken(self, name: str, rows: NDArray[np.int64]) -> pa.Array:
        column = self.boxes[name]
        if name not in self._begins:
            lengths = [len(chunk) for chunk in column.chunks]
            self._begins[name] = np.cumsum([0, *lengths])[:-1]
        order = np.argsort(rows, kind="stable")
        ordered = np.asarray(rows)[order]
        chunk = np.searchsorted(self._begins[name], ordered, side="right") - 1
        parts = [pa.array([], column.type)]
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(chunk)) + 1):
            if part.size:
                number = int(chunk[part[0]])
                place = ordered[part] - self._begins[name][number]
                parts.append(column.chunk(number).take(pa.array(place)))
        return pa.concat_arrays(parts).take(pa.array(np.argsort(order)))

    def batches(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Yield some columns (none named: all) of all boxes, in bounded memory."""
        table = self.boxes.select(names) if names else self.boxes
        for number, batch in enumerate(table.to_batches()):
            yield batch
            if number % BATCHES_KEPT == 0:
                self.release()
        self.release()

    def by_image(self) -> Iterator[ImageBoxes]:
        """Yield every image that has boxes, in file order, with the rows of its boxes."""
        for image in range(self.images.num_rows):
            begin, end = self.starts[image], self.starts[image + 1]
            if end > begin:
                yield ImageBoxes(image, self.order[begin:end])

    def orphans(self) -> NDArray[np.int64]:
        """Return the rows of boxes whose image_id is unknown, in file order."""
        return self.order[self.starts[-1] :]


def release(file: mmap.mmap) -> None:
    """Give back the memory of a mapped file, which stays readable."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        file.madvise(mmap.MADV_DONTNEED)


def xywh_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a `bbox` column as (N, 4) float64 xywh in pixels; NaN where the box is malformed."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat = column.fill_null([np.nan] * 4).flatten() if column.null_count else column.flatten()
    return np.asarray(flat, dtype=np.float64).reshape(-1, 4)


def records_of(table: BoxTable, rows: NDArray[np.int64] | None = None) -> list[Record]:
    """Return annotations as they were read, all or those of some rows, in the order of `rows`."""
    return to_records(table.boxes if rows is None else table.take(rows))


def to_records(columns: pa.Table | pa.RecordBatch) -> list[Record]:
    """Return records from columns of `box_schema` or `image_schema`, by the rule of fidelity."""
    names = [name for name in columns.schema.names if name not in NOT_IN_RECORD]
    values = zip(*(_plain(name, columns[name]) for name in names), strict=True)
    records: list[Record] = []
    for row, extra in zip(values, columns["extra"].to_pylist(), strict=True):
        record = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        if extra is not None:
            record.update(json.loads(extra))
        records.append(record)
    return records


def _plain(name: str, column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's values as JSON says them; None where null."""
    if name == "bbox":
        boxes = xywh_of(column).tolist()
        if column.null_count:
            boxes = [box if box[0] == box[0] else None for box in boxes]  # NaN differs from itself
        return cast(list[Any], boxes)
    values: list[Any] = column.to_pylist()
    if name == "segmentation":
        return [None if text is None else json.loads(text) for text in values]
    if name == "area":
        return [int(x) if x is not None and abs(x) < EXACT and x == int(x) else x for x in values]
    return values


def category_records(header: dict[str, Any]) -> list[Record]:
    """Return the categories of a header that are objects; none if it has no list of them."""
    categories = header.get("categories")
    found = categories if isinstance(categories, list) else []
    return [category for category in found if isinstance(category, dict)]


def whole_of(value: object) -> int | None:
    """Return a whole number of at most 64 bits, also one that is text such as "12"; else None."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def category_names(header: dict[str, Any]) -> dict[int, str]:
    """Return the name of each category id of a header; what is no category is left out."""
    names: dict[int, str] = {}
    for category in category_records(header):
        number = category.get("id")
        if type(number) is int and abs(number) < 2**63:
            name = category.get("name")
            names[number] = name if isinstance(name, str) else str(number)
    return names
