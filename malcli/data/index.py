"""Columns on disk, and what makes a BoxTable of them: ids typed and checked, images joined.

Every reader ends here. Knows no file format.
"""

import json
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.checks import OK, STATUSES, Judge, note, short
from malcli.data.columns import encode_json, id_text
from malcli.errors import DataFormatError, RunError
from malcli.records import (
    BoxTable,
    Problems,
    box_schema,
    category_names,
    group_by_image,
    image_schema,
    release,
    to_records,
    xywh_of,
)

ROWS = 16_384  # of a batch
BATCHES_KEPT = 16  # in memory, of those on disk that were read
JUDGED = ("id", "image_id", "image", "status", "extra")  # columns that reading alone cannot say


class Spooled(NamedTuple):
    """Columns in a temporary file, memory-mapped."""

    table: pa.Table
    mapped: mmap.mmap

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches that are not empty, in bounded memory."""
        for number, batch in enumerate(self.table.to_batches()):
            if batch.num_rows:
                yield batch
            if number % BATCHES_KEPT == 0:
                release(self.mapped)


def spool(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Spooled:
    """Write batches to a temporary file and return them memory-mapped.

    The file has no name, and its space is free again when the table is gone.

    Raises:
        RunError: The disk of temporary files is full.
    """
    try:
        with tempfile.TemporaryFile(prefix="malcli-") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RunError(
            f"{tempfile.gettempdir()}: cannot hold the columns of the annotations "
            f"({error.strerror or error}); set TMPDIR to a folder with more space"
        ) from error
    return Spooled(pa.ipc.open_file(pa.py_buffer(mapped)).read_all(), mapped)


class ImageRows:
    """Finds the row of an image by its id; of equal ids the first.

    Args:
        ids: int64 or string; null is no id.
    """

    def __init__(self, ids: pa.ChunkedArray) -> None:
        """Sort the ids, or hash those that are text."""
        self._is_text = pa.types.is_string(ids.type)
        if self._is_text:
            texts = ids.to_pylist()
            self._by_text = {texts[row]: row for row in reversed(range(len(texts)))}
            self._by_text.pop(None, None)
        else:
            valid = np.flatnonzero(pc.is_valid(ids).to_numpy())
            self._ids, first = np.unique(pc.drop_null(ids).to_numpy(), return_index=True)
            self._first = valid[first].astype(np.int32)

    def find(self, ids: pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the image row of each id, (N,); -1 if unknown or null."""
        if self._is_text:
            coded = ids.combine_chunks().dictionary_encode()  # neighbours share their image
            rows = [self._by_text.get(text, -1) for text in coded.dictionary.to_pylist()]
            place = pc.fill_null(coded.indices, len(rows)).to_numpy()
            by_code: NDArray[np.int32] = np.array([*rows, -1], dtype=np.int32)
            return np.asarray(by_code[place])
        found = np.full(len(ids), -1, dtype=np.int32)
        if self._ids.size:
            wanted = pc.fill_null(ids, 0).to_numpy()
            place = np.minimum(np.searchsorted(self._ids, wanted), self._ids.size - 1)
            match = (self._ids[place] == wanted) & pc.is_valid(ids).to_numpy()
            found[match] = self._first[place[match]]
        return found


def build_table(
    path: Path, format: str, header: dict[str, Any], images: pa.Table, boxes: Spooled
) -> BoxTable:
    """Return the table of all boxes, each with its image and its status.

    Args:
        path: For messages.
        format: Its name.
        header: Every top-level value but images and annotations.
        images: Columns of `image_schema`.
        boxes: Columns of `box_schema`; `image` is not needed, and a `status` only where the reader
            skips a box by design.

    Raises:
        DataFormatError: An annotation without id, two with the same, or two different images with
            the same id.
    """
    problems = Problems()
    id_type = _type_of_ids(boxes.table, path)
    image_id_type = _type_of_ids(images)
    if pa.types.is_string(boxes.table.schema.field("image_id").type):
        image_id_type = pa.string()
    images = _typed(images, "id", image_id_type).select(image_schema(image_id_type).names)
    rows = ImageRows(images["id"])
    _check_images(path, images, rows, problems)
    judge = Judge(images, sorted(category_names(header)), problems)
    image = np.empty(boxes.table.num_rows, dtype=np.int32)
    hashes = np.empty(boxes.table.num_rows, dtype=np.uint64)

    def judged() -> Iterator[pa.RecordBatch]:
        begin = 0
        for batch in boxes.batches():
            part = slice(begin, begin + batch.num_rows)
            begin = part.stop
            table = _typed(pa.Table.from_batches([batch]), "id", id_type)
            table = _typed(table, "image_id", image_id_type)
            image[part] = rows.find(table["image_id"])
            status = judge.status(table, image[part])
            hashes[part] = _hash(image[part], xywh_of(table["bbox"]), status == OK)
            yield _judged_batch(table, image[part], status)

    schema = box_schema(id_type, image_id_type)
    kept = pa.schema([schema.field(name) for name in JUDGED])
    made = spool(kept, judged())
    ids = made.table["id"]
    _check_unique(path, ids)
    _report_equal(ids, hashes, problems)
    hashes.resize(0, refcheck=False)  # 240 MB of 30 million boxes
    columns = [(made if name in JUDGED else boxes).table[name] for name in schema.names]
    order, starts = group_by_image(image, images.num_rows)
    result = BoxTable(
        path=path,
        format=format,
        header=header,
        images=images,
        boxes=pa.Table.from_arrays(columns, schema=schema),
        order=order,
        starts=starts,
        problems=problems,
        mapped=(boxes.mapped, made.mapped),
    )
    result.release()
    return result


def _judged_batch(
    table: pa.Table, image: NDArray[np.int32], status: NDArray[np.int8]
) -> pa.RecordBatch:
    named = pa.DictionaryArray.from_arrays(pa.array(status), pa.array(STATUSES))
    values = {
        "id": table["id"],
        "image_id": table["image_id"],
        "image": image,
        "status": named.dictionary_decode(),
        "extra": table["extra"],
    }
    (batch,) = pa.table(values).combine_chunks().to_batches()
    return batch


def _type_of_ids(table: pa.Table, path: Path | None = None) -> pa.DataType:
    """Return int64, or string where an id is text or too large for int64.

    Raises:
        DataFormatError: With a path: an id is missing, or is neither a number nor text.
    """
    kind = table.schema.field("id").type
    row = 0
    for batch in table.select(["id", "extra"]).to_batches():
        if batch["id"].null_count:
            for odd in np.flatnonzero(batch["id"].is_null().to_numpy(zero_copy_only=False)):
                extra = json.loads(batch["extra"][int(odd)].as_py() or "{}")
                text = id_text(extra.get("id"))
                if text is not None:
                    kind = pa.string()
                elif path:
                    what = short(extra["id"]) + " is no id" if "id" in extra else "no id"
                    raise DataFormatError(
                        path,
                        f"{what}; every annotation needs an integer or a string of its own",
                        f"annotations[{row + int(odd)}]",
                        "id",
                    )
        row += batch.num_rows
    return kind


def _typed(table: pa.Table, key: str, kind: pa.DataType) -> pa.Table:
    """Return the table with a column of ids as text, if `kind` is; numbers go to `extra`, too."""
    place = table.schema.get_field_index(key)
    if table.schema.field(place).type == kind:
        return table
    texts: list[str | None] = []
    extras: list[str | None] = []
    for number, text in zip(table[key].to_pylist(), table["extra"].to_pylist(), strict=True):
        extra = json.loads(text) if text is not None else {}
        value = number if number is not None else extra.get(key)
        texts.append(id_text(value))
        if isinstance(value, str) and texts[-1] is not None:
            del extra[key]
        elif number is not None:
            extra[key] = number
        extras.append(encode_json(extra) if extra else None)
    table = table.set_column(place, key, pa.array(texts, type=pa.string()))
    place = table.schema.get_field_index("extra")
    return table.set_column(place, "extra", pa.array(extras, type=pa.string()))


def _check_images(path: Path, images: pa.Table, rows: ImageRows, problems: Problems) -> None:
    """Count images without id and repeated ones; refuse different images with one id."""
    first = rows.find(images["id"])
    lost = first < 0
    note(problems, "image-without-id", lost, lambda row: f"images[{row}]: no usable id")
    again = np.flatnonzero(~lost & (first != np.arange(len(first))))
    for begin in range(0, again.size, ROWS):
        part = again[begin : begin + ROWS]
        here, there = (to_records(images.take(pa.array(each))) for each in (part, first[part]))
        for row, one, other in zip(part, here, there, strict=True):
            if one != other:
                raise DataFormatError(
                    path,
                    f"another image has the id {short(one['id'])}, too; give each image its own",
                    f"images[{row}]",
                )
    repeated = np.zeros(len(first), dtype=bool)
    repeated[again] = True
    note(problems, "repeated-image", repeated, lambda row: f"images[{row}]: the same as before")


def _check_unique(path: Path, ids: pa.ChunkedArray) -> None:
    """Refuse annotations with equal ids."""
    value: object
    if pa.types.is_string(ids.type):
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        counts = pc.value_counts(ids)
        value = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
    else:
        numbers = np.concatenate([part.to_numpy() for part in ids.chunks] or [np.zeros(0)])
        numbers.sort()
        equal = np.flatnonzero(numbers[1:] == numbers[:-1])
        if not equal.size:
            return
        value = int(numbers[equal[0]])
    raise DataFormatError(
        path, "two annotations have this id; give each its own", f"id {short(value)}"
    )


def _hash(
    image: NDArray[np.int32], xywh: NDArray[np.float64], fine: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """Return a number that equal boxes of one image share, others only by a rare chance.

    Of 30 million boxes one false pair is expected in 40,000 files. 0: not `fine`.
    """
    mixed = image.astype(np.uint64)
    for side in xywh.T:
        # The steps of splitmix64; + 0.0 makes -0.0 and 0.0 one.
        bits = np.ascontiguousarray(side + 0.0).view(np.uint64)
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
    mixed[~fine] = 0
    return mixed


def _report_equal(ids: pa.ChunkedArray, hashes: NDArray[np.uint64], problems: Problems) -> None:
    """Count boxes that equal an earlier one of their image."""
    ordered = np.sort(hashes)
    shared = np.unique(ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)])
    if shared.size:
        rows = np.flatnonzero(np.isin(hashes, shared))
        later = np.ones(rows.size, dtype=bool)
        later[np.unique(hashes[rows], return_index=True)[1]] = False
        rows = rows[later]
        every = np.ones(rows.size, dtype=bool)
        note(
            problems,
            "equal-box",
            every,
            lambda row: (
                f"annotation {short(ids[int(rows[row])].as_py())}: "
                "the same box as an earlier annotation of its image"
            ),
        )
