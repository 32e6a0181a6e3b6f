"""Records into columns: what a column can say leaves its record, the rest becomes `extra`.

The other way is `records.to_records`. Knows nothing of files, and judges nothing: a box without
area is as good a box as any here.
"""

import contextlib
import gc
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from malcli.records import BOX_TYPE, EXACT, Record, whole_of

TEXT = "_text"  # ends the name of a second column of ids: those that are text
MAX_DEPTH = 200  # of nested values: far from the depth at which Python's own stack ends
_ABSENT = object()
_NUMBER = re.compile(r"\s*-?[0-9]{1,15}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?\s*")

# ASCII, so that lone surrogates, which JSON can say and UTF-8 cannot, pass through.
encode_json = json.JSONEncoder(separators=(",", ":")).encode


def take_boxes(records: Sequence[Record], texts: Sequence[str] = ()) -> pa.RecordBatch:
    """Move annotations into columns of `box_schema` but `image` and `status`; empties the records.

    Ids are int64; ids of other kinds stay in `extra`.

    Args:
        records: Emptied.
        texts: Keys of ids that get a column for those that are text, too.

    Raises:
        RecursionError: A value is nested too deeply.
    """
    columns = {
        "id": take_whole(records, "id", pa.int64()),
        "image_id": take_whole(records, "image_id", pa.int64()),
        "category_id": take_whole(records, "category_id", pa.int64(), see_text=True),
        "bbox": take_xywh(records, "bbox"),
        "area": take_numbers(records, "area"),
        "iscrowd": take_whole(records, "iscrowd", pa.int8(), see_bool=True),
        "segmentation": take_json(records, "segmentation"),
    }
    columns |= {key + TEXT: take_texts(records, key) for key in texts}
    return pa.RecordBatch.from_pydict(columns | {"extra": take_rest(records)})


def take_images(records: Sequence[Record], texts: Sequence[str] = ()) -> pa.RecordBatch:
    """Move image records into columns of `image_schema`, as `take_boxes` does."""
    columns = {
        "id": take_whole(records, "id", pa.int64()),
        "file_name": take_texts(records, "file_name"),
        "height": take_whole(records, "height", pa.int32()),
        "width": take_whole(records, "width", pa.int32()),
    }
    columns |= {key + TEXT: take_texts(records, key) for key in texts}
    return pa.RecordBatch.from_pydict(columns | {"extra": take_rest(records)})


def take_whole(
    records: Sequence[Record],
    key: str,
    kind: pa.DataType,
    *,
    see_bool: bool = False,
    see_text: bool = False,
) -> pa.Array:
    """Move whole numbers into a column of integers; others stay in their records.

    Args:
        records: Changed in place.
        key: The key.
        kind: A signed integer type.
        see_bool: True and false enter the column as 1 and 0, and stay in the record, too.
        see_text: So does text that is a whole number, such as "12".
    """
    values: list[Any] = [record.pop(key, _ABSENT) for record in records]
    if set(map(type, values)) == {int}:
        try:
            return pa.array(values, type=kind)
        except (OverflowError, pa.ArrowInvalid):
            pass  # some are too large: one by one
    limit = 1 << (kind.bit_width - 1)
    column: list[int | None] = [None] * len(values)
    for row, value in enumerate(values):
        if type(value) is int or (type(value) is float and value.is_integer()):
            if -limit <= value < limit:
                column[row] = int(value)
                continue
        elif see_bool and isinstance(value, bool):
            column[row] = int(value)
        elif see_text and isinstance(value, str):
            column[row] = whole_of(value)
        if value is not _ABSENT:
            records[row][key] = value
    return pa.array(column, type=kind)


def take_ids(records: Sequence[Record], key: str, kind: pa.DataType) -> pa.Array:
    """Move ids into a column of int64 or strings; numbers enter a column of strings, and stay."""
    if not pa.types.is_string(kind):
        return take_whole(records, key, kind)
    column = [id_text(record.get(key)) for record in records]
    for record, text in zip(records, column, strict=True):
        if text is not None and isinstance(record[key], str):
            del record[key]
    return pa.array(column, type=kind)


def take_numbers(records: Sequence[Record], key: str) -> pa.Array:
    """Move finite numbers into a column of float64; others stay in their records."""
    values: list[Any] = [record.pop(key, _ABSENT) for record in records]
    if set(map(type, values)) == {float}:
        numbers = np.array(values)
        if np.isfinite(numbers).all():
            return pa.array(numbers)
    for row, value in enumerate(values):
        if _is_exact(value):
            values[row] = float(value)
            continue
        if value is not _ABSENT:
            records[row][key] = value
        values[row] = None
    return pa.array(values, type=pa.float64())


def take_texts(records: Sequence[Record], key: str) -> pa.Array:
    """Move text into a column of strings; other values, and lone surrogates, stay."""
    column: list[str | None] = [None] * len(records)
    for row, record in enumerate(records):
        value = record.get(key)
        if isinstance(value, str) and is_text(value):
            column[row] = record.pop(key)
    return pa.array(column, type=pa.string())


def take_xywh(records: Sequence[Record], key: str) -> pa.Array:
    """Move boxes, lists of four finite numbers, into a column; others stay in their records.

    Numbers as text, and a list of one box, enter the column, and stay, too.
    """
    values: list[Any] = [record.pop(key, _ABSENT) for record in records]
    if set(map(type, values)) == {list} and set(map(len, values)) == {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            try:
                numbers = np.array(flat, dtype=np.float64)
            except OverflowError:
                numbers = np.array([np.inf])
            if (np.abs(numbers) < EXACT).all():
                return pa.FixedSizeListArray.from_arrays(pa.array(numbers), 4)
    for row, value in enumerate(values):
        if type(value) is list and len(value) == 4 and all(map(_is_exact, value)):
            continue
        if value is not _ABSENT:
            records[row][key] = value
        values[row] = _box_within(value)
    return pa.array(values, type=BOX_TYPE)


def _box_within(value: object) -> list[float] | None:
    """Return the box of [[x, y, w, h]] or of numbers as text; None if it is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, list) or len(value) != 4:
        return None
    sides: list[float] = []
    for side in value:
        if isinstance(side, str) and _NUMBER.fullmatch(side):
            side = float(side)
        if not _is_exact(side):
            return None
        sides.append(float(side))
    return sides


def take_json(records: Sequence[Record], key: str) -> pa.Array:
    """Move any value but null into a column of JSON texts.

    Raises:
        RecursionError: A value is nested too deeply.
    """
    column: list[str | None] = [None] * len(records)
    for row, record in enumerate(records):
        if record.get(key) is not None:
            column[row] = bounded_json(record.pop(key))
    return pa.array(column, type=pa.string())


def take_rest(records: Sequence[Record]) -> pa.Array:
    """Return what is left in the records, as `extra`.

    Raises:
        RecursionError: A value is nested too deeply.
    """
    rest = [bounded_json(record) if record else None for record in records]
    return pa.array(rest, type=pa.string())


def bounded_json(value: object) -> str:
    """Return compact ASCII JSON.

    Raises:
        RecursionError: Nested deeper than MAX_DEPTH.
    """
    text = encode_json(value)
    # Counting brackets is quick, and few brackets cannot nest deeply.
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        raise RecursionError
    return text


def is_deep(value: object) -> bool:
    """Return whether a value is nested deeper than MAX_DEPTH."""
    return _depth(value) > MAX_DEPTH


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def join_members(members: Sequence[pa.Array], rows: int) -> pa.Array:
    """Return JSON objects of columns of `"key":value`; null where no column has one."""
    if not members:
        return pa.nulls(rows, pa.string())
    # Not `null_handling="skip"`, which in pyarrow 26 leaves out the rows that are all null.
    if not any(column.null_count for column in members):
        return pc.binary_join_element_wise("{", pc.binary_join_element_wise(*members, ","), "}", "")
    parts = [pc.fill_null(pc.binary_join_element_wise(",", each, ""), "") for each in members]
    joined = pc.binary_join_element_wise(*parts, "")
    whole = pc.binary_join_element_wise(pc.binary_replace_slice(joined, 0, 1, "{"), "}", "")
    return pc.if_else(pc.equal(joined, ""), pa.scalar(None, pa.string()), whole)


def id_text(value: object) -> str | None:
    """Return an id as text, or None if it cannot be one."""
    if isinstance(value, str):
        return value if is_text(value) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def is_text(value: str) -> bool:
    """Return whether UTF-8 can say it; a lone surrogate it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_exact(value: object) -> bool:
    """Return whether float64 says a JSON number exactly."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) <= EXACT


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for cycles of objects: records have none, and it costs a tenth of the time.

    Whoever makes many objects with cycles in the block loses their memory until its end.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
