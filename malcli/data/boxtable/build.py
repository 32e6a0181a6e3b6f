"""What makes a BoxTable of columns on disk: ids typed and checked, images joined.

Every reader ends here. Knows no file format.
"""

import json
import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.checks import SHOWN, STATUSES, Judge, note, short
from malcli.data.boxtable.columns import TEXT, encode_json, id_text
from malcli.data.boxtable.image_order import (
    group_key,
    grouped,
    later_equals,
    repeated,
    rows_in_order,
)
from malcli.data.boxtable.image_rows import ImageRows
from malcli.data.boxtable.spill import Spooled, map_numbers, new_file
from malcli.data.boxtable.spill import spool as spool
from malcli.errors import DataFormatError
from malcli.records import BATCHES_KEPT as BATCHES_KEPT
from malcli.records import (
    STATUS_OK,
    BoxTable,
    Problems,
    box_schema,
    category_names,
    image_schema,
    to_records,
    xywh_of,
)

ROWS = 16_384  # of a batch


def build_table(
    path: Path,
    format: str,
    header: dict[str, Any],
    images: pa.Table,
    boxes: Spooled,
    folder: Path | None = None,
) -> BoxTable:
    """Return the table of all boxes, each with its image and its status.

    Args:
        path: For messages.
        format: Its name.
        header: Every top-level value but images and annotations.
        images: Columns of `image_schema`.
        boxes: Columns of `box_schema`; `image` is not needed, and a `status` only where the reader
            skips a box by design.
        folder: Where its files stay; None: with the temporary files, without names.

    Raises:
        DataFormatError: An annotation without id, two with the same, or two different images with
            the same id.
        RunError: The disk is full.
    """
    problems = Problems()
    id_type = _type_of_ids(boxes.table, path)
    image_id_type = _type_of_ids(images)
    if pa.types.is_string(boxes.table.schema.field("image_id").type):
        image_id_type = pa.string()
    images = _typed(images, "id", image_id_type).select(image_schema(image_id_type).names)
    rows = ImageRows(images)
    _check_images(path, images, rows, problems)
    schema = box_schema(id_type, image_id_type)
    judge = Judge(images, sorted(category_names(header)), problems)
    made = _judged(boxes, schema, rows, judge, problems, folder)
    judge.finish()
    parts = {name: made if name in made.table.schema.names else boxes for name in schema.names}
    _check_unique(path, parts["id"], folder)
    order, starts, mapped = _grouped(parts, images.num_rows, problems, folder)
    result = BoxTable(
        path=path,
        format=format,
        header=header,
        images=images,
        boxes=assemble(boxes.table, made.table),
        order=order,
        starts=starts,
        problems=problems,
        mapped=(boxes.mapped, made.mapped, *mapped),
    )
    result.release()
    return result


def assemble(read: pa.Table, judged: pa.Table) -> pa.Table:
    """Return the columns of boxes: those that were judged, and else those that were read."""
    names = box_schema(pa.int64(), pa.int64()).names
    table = read.select([name for name in names if name not in judged.schema.names])
    for place, name in enumerate(names):
        if name in judged.schema.names:
            # `Table.from_arrays` would touch each chunk, and page in 64 kB for it.
            table = table.add_column(place, judged.schema.field(name), judged[name])
    return table


def _judged(
    boxes: Spooled,
    schema: pa.Schema,
    rows: ImageRows,
    judge: Judge,
    problems: Problems,
    folder: Path | None,
) -> Spooled:
    """Return each box's image and status; also its ids, and `extra`, where ids become text."""
    names = ["image", "status"]
    keys = ("id", "image_id")
    read = boxes.table.schema
    if any(read.field(key).type != schema.field(key).type for key in keys) or any(
        key + TEXT in read.names for key in keys
    ):
        names += [*keys, "extra"]
    kept = pa.schema([schema.field(name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in boxes.batches():
            table = pa.Table.from_batches([batch])
            for key in keys:
                table = _typed(table, key, schema.field(key).type)
            image = rows.find(table["image_id"])
            rows.join_alike(table, image, problems)
            status = pa.array(judge.status(table, image))
            named = pa.DictionaryArray.from_arrays(status, pa.array(STATUSES)).dictionary_decode()
            values = {name: table[name] for name in names[2:]} | {"image": image, "status": named}
            yield from pa.table(values).select(names).combine_chunks().to_batches()

    return spool(kept, batches(), folder, "judged")


def _grouped(
    parts: dict[str, Spooled], images: int, problems: Problems, folder: Path | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[mmap.mmap, ...]]:
    """Return `order` and `starts` of a BoxTable, and the file of the first; report equal boxes."""
    counts = np.zeros(images + 1, dtype=np.int64)
    for batch in parts["image"].batches("image"):
        np.add.at(counts, batch["image"].to_numpy(), 1)  # -1 counts in the last
    starts = np.concatenate([[0], np.cumsum(counts[:-1])])
    equal, first = 0, np.zeros(0, dtype=np.int64)
    with new_file(folder, "order") as file:
        for part in grouped(_keys(parts, images), starts, folder):
            file.write(rows_in_order(part).tobytes())
            later = later_equals(part)
            equal += later.size
            first = np.sort(np.concatenate([first, later]))[:SHOWN]
        file.flush()
        order, mapped = map_numbers(file)
    ids = parts["id"].table["id"]
    for number, row in enumerate(first.tolist()):
        said = f"annotation {short(ids[row].as_py())}: the same box as an earlier annotation of its"
        problems.add("equal-box", f"{said} image", 1 if number < first.size - 1 else equal - number)
    return order, starts, mapped


def _keys(parts: dict[str, Spooled], images: int) -> Iterator[NDArray[np.uint64]]:
    """Yield what groups boxes, for each batch."""
    begin = 0
    judged = parts["image"].batches("image", "status")
    for boxes, batch in zip(parts["bbox"].batches("bbox"), judged, strict=True):
        image = batch["image"].to_numpy()
        fine = pc.equal(batch["status"], STATUS_OK).to_numpy(zero_copy_only=False)
        equal = _hash(image, xywh_of(boxes["bbox"]), fine)
        yield np.stack([group_key(image, images, begin), equal], axis=1)
        begin += batch.num_rows


def _type_of_ids(table: pa.Table, path: Path | None = None) -> pa.DataType:
    """Return int64, or string where an id is text or too large for int64.

    Raises:
        DataFormatError: With a path: an id is missing, or is neither a number nor text.
    """
    kind = table.schema.field("id").type
    row = 0
    for batch in table.to_batches():
        lost = batch["id"].is_null()
        if "id" + TEXT in table.schema.names:
            texts = batch["id" + TEXT]
            kind = pa.string() if texts.null_count < len(texts) else kind
            lost = pc.and_(lost, texts.is_null())
        for odd in np.flatnonzero(lost.to_numpy(zero_copy_only=False)):
            extra = json.loads(batch["extra"][int(odd)].as_py() or "{}")
            if id_text(extra.get("id")) is not None:
                kind = pa.string()
            elif path and "segments_info" in extra:
                raise DataFormatError(
                    path,
                    "holds panoptic segments (segments_info), not boxes; name instances_*.json",
                )
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
    """Return the table with one column of ids; those that it cannot say go to `extra`.

    In a column of text numbers are text, and in `extra`, too.
    """
    place = table.schema.get_field_index(key)
    is_text = pa.types.is_string(kind)
    given = table[key + TEXT] if key + TEXT in table.schema.names else None
    if given is None and table.schema.field(place).type == kind:
        return table
    if given is not None:
        table = table.drop_columns(key + TEXT)
        if is_text and not given.null_count:
            return table.set_column(place, key, given)
    texts = [None] * len(table) if given is None else given.to_pylist()
    ids: list[int | str | None] = []
    extras: list[str | None] = []
    rows = zip(table[key].to_pylist(), texts, table["extra"].to_pylist(), strict=True)
    for number, text, rest in rows:
        extra = json.loads(rest) if rest is not None else {}
        value = next((each for each in (number, text) if each is not None), extra.get(key))
        ids.append(id_text(value) if is_text else number)
        if isinstance(value, str) and ids[-1] is not None:
            extra.pop(key, None)
        elif value is not None and value != ids[-1]:
            extra[key] = value
        extras.append(encode_json(extra) if extra else None)
    table = table.set_column(place, key, pa.array(ids, type=kind))
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


def _check_unique(path: Path, boxes: Spooled, folder: Path | None) -> None:
    """Refuse annotations with equal ids."""
    ids = boxes.table["id"]
    if pa.types.is_string(ids.type):
        hashes = {int(key) for key in repeated(_hashes(boxes), len(ids), folder)}
        found: Counter[str] = Counter()
        for batch in boxes.batches("id") if hashes else ():
            found.update(text for text in batch["id"].to_pylist() if hash(text) in hashes)
        values: list[object] = [text for text, count in found.items() if count > 1]
    elif _increases(boxes):
        return
    else:
        numbers = (batch["id"].to_numpy() for batch in boxes.batches("id"))
        values = repeated(numbers, len(ids), folder)[:1].tolist()
    if values:
        raise DataFormatError(
            path, "two annotations have this id; give each its own", f"id {short(values[0])}"
        )


def _hashes(boxes: Spooled) -> Iterator[NDArray[np.int64]]:
    for batch in boxes.batches("id"):
        yield np.fromiter(map(hash, batch["id"].to_pylist()), np.int64, batch.num_rows)


def _increases(boxes: Spooled) -> bool:
    """Return whether each id is larger than the one before."""
    last: int | None = None
    for batch in boxes.batches("id"):
        ids = batch["id"].to_numpy()
        if (last is not None and ids[0] <= last) or not (ids[1:] > ids[:-1]).all():
            return False
        last = int(ids[-1])
    return True


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
