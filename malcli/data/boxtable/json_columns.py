"""JSON text of records that are alike into columns, without a Python object for each value.

The keys of the records read so far make a type; msgspec decodes into it, and what no column says
stays text. Whatever does not fit is left to `columns`, which gives the same columns, slowly.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.columns import (
    MAX_DEPTH,
    TEXT,
    encode_json,
    is_deep,
    join_members,
    uncollected,
)
from malcli.records import BOX_TYPE, EXACT, Record

MOST_KEYS = 64  # of one kind of record; files with more have values as keys
UNSET = msgspec.UNSET
XYWH = tuple[float, float, float, float]
_NOTHING = msgspec.Raw()  # the text of an absent value

# Column -> the type that its values have in most files.
BOXES: dict[str, Any] = {
    "id": int,
    "image_id": int,
    "category_id": int,
    "bbox": XYWH,
    "area": float,
    "iscrowd": int,
    "segmentation": msgspec.Raw,
}
# Column -> values of another type that some files have, and the type of both.
ODD: dict[str, tuple[type, Any]] = {
    "area": (type(None), float | None),
    "iscrowd": (bool, int | bool),
}
IDS = ("id", "image_id")  # are text in some files
IMAGES: dict[str, Any] = {"id": int, "file_name": str, "height": int, "width": int}


class RecordParser:
    """Makes the columns that `take_boxes` or `take_images` gives from the text of a JSON array.

    Args:
        types: BOXES or IMAGES.
        schema: Of the columns, in order; `extra` last.

    Attributes:
        texts: The keys whose ids have columns for text, too: those of the first record that are.
    """

    def __init__(self, types: dict[str, Any], schema: pa.Schema) -> None:
        """Start without any keys: nothing fits."""
        self._types = types
        self._schema = schema
        self.texts: tuple[str, ...] = ()
        self._begun = False
        self._optional: dict[str, bool] = {}  # each key that was seen -> whether some lack it
        self._odd: set[str] = set()  # keys of ODD with such values
        self._names: dict[str, str] = {}  # key -> attribute
        self._decode: Callable[[str], Sequence[Any]] | None = None

    def learn(self, records: Sequence[Record]) -> None:
        """Make records with the keys of these, and of those before, fit, if they are not many."""
        if records and not self._begun:
            self._begun = True
            self._see_texts(records[0])
        kinds = {tuple(record) for record in records}
        kinds |= {tuple(self._optional)} if self._optional else set()
        keys = dict.fromkeys(chain(self._optional, *sorted(kinds)))
        if len(keys) > MOST_KEYS:
            self._decode = None
            return
        optional = {
            key: self._optional.get(key, False) or any(key not in kind for kind in kinds)
            for key in keys
        }
        odd = self._odd | {
            key
            for key, (kind, _) in ODD.items()
            if key in self._types and any(type(record.get(key, 0)) is kind for record in records)
        }
        if (optional, odd) != (self._optional, self._odd):
            self._optional, self._odd = optional, odd
            self._make_type()

    def _see_texts(self, first: Record) -> None:
        """Add columns for the ids that are text in the first record."""
        self.texts = tuple(key for key in IDS if key in self._types and type(first.get(key)) is str)
        self._types = self._types | dict.fromkeys(self.texts, str)
        added = [pa.field(key + TEXT, pa.string()) for key in self.texts]
        self._schema = pa.schema([*self._schema][:-1] + added + [self._schema.field("extra")])

    def _make_type(self) -> None:
        self._names = {key: f"k{place}" for place, key in enumerate(self._optional)}
        fields: list[Any] = []
        for key, name in self._names.items():
            kind = ODD[key][1] if key in self._odd else self._types.get(key, msgspec.Raw)
            absent = _NOTHING if kind is msgspec.Raw else UNSET
            if not self._optional[key]:
                fields.append((name, kind))
            elif kind is msgspec.Raw:
                fields.append((name, kind, absent))
            else:
                fields.append((name, kind | msgspec.UnsetType, absent))
        try:
            record = msgspec.defstruct(
                "Record",
                fields,
                gc=False,
                forbid_unknown_fields=True,
                kw_only=True,
                rename={name: key for key, name in self._names.items()},
            )
            self._decode = msgspec.json.Decoder(list[record]).decode  # type: ignore[valid-type]
        except ValueError:  # a key with characters that msgspec does not take
            self._decode = None

    def __call__(self, text: str) -> pa.RecordBatch:
        """Return the columns.

        Args:
            text: A JSON array of whole records.

        Raises:
            ValueError: Some record does not fit: its keys, its types, or a number that its column
                cannot say.
            RecursionError: A value is nested too deeply.
        """
        if self._decode is None:
            raise ValueError("records of a kind not seen yet")
        with uncollected():  # 7 % of the time
            return self._columns(self._decode(text))

    def _columns(self, records: Sequence[Any]) -> pa.RecordBatch:
        members: list[pa.Array] = []
        columns: dict[str, pa.Array] = {}
        for key, name in self._names.items():
            values = map(attrgetter(name), records)
            kind = self._types.get(key, msgspec.Raw)
            column = key + TEXT if key in self.texts else key
            if kind is msgspec.Raw:
                texts = _texts(list(values))
                if key in self._types:
                    texts, null = _without_null(texts)
                    columns[key] = texts
                    members += [] if null is None else [_member(key, null)]
                else:
                    members.append(_member(key, texts))
            elif self._optional[key] or key in self._odd:
                some = list(values)
                columns[column] = _some(some, self._schema.field(column).type)
                members += _odd(key, some) if key in self._odd else []
            else:
                columns[column] = _all(values, len(records), self._schema.field(column).type)
        columns["extra"] = join_members(members, len(records))
        absent = (field for field in self._schema if field.name not in columns)
        columns |= {field.name: pa.nulls(len(records), field.type) for field in absent}
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in self._schema.names], schema=self._schema
        )


def _all(values: Iterable[Any], count: int, kind: pa.DataType) -> pa.Array:
    """Return a column of values that are all there."""
    if pa.types.is_string(kind):
        return pa.array(list(values), kind)
    if kind == BOX_TYPE:
        flat = np.fromiter(chain.from_iterable(values), np.float64, 4 * count)
        return pa.FixedSizeListArray.from_arrays(pa.array(_exact(flat)), 4)
    if pa.types.is_floating(kind):
        return pa.array(_exact(np.fromiter(values, np.float64, count)))
    try:
        numbers = np.fromiter(values, np.int64, count)
        return pa.array(numbers).cast(kind)
    except (OverflowError, pa.ArrowInvalid):
        raise ValueError("a number that is too large") from None


def _some(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return a column of values; those that are absent or null are null."""
    there = [value is not UNSET and value is not None for value in values]
    column = _all(compress(values, there), sum(there), kind)
    places = np.cumsum(there) - 1
    return column.take(pa.array(places, mask=~np.array(there, dtype=bool)))


def _odd(key: str, values: list[Any]) -> list[pa.Array]:
    """Return `"key":value` for each value of the other type, if there are any."""
    other = ODD[key][0]
    texts = [encode_json(value) if type(value) is other else None for value in values]
    return [_member(key, pa.array(texts, pa.string()))] if any(texts) else []


def _exact(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers, all of which float64 says exactly."""
    if not (np.abs(numbers) < EXACT).all():
        raise ValueError("a number that is not exact")
    return numbers


def _texts(values: list[msgspec.Raw]) -> pa.Array:
    """Return JSON texts as a column; null where absent.

    Raises:
        RecursionError: One is nested too deeply.
    """
    texts = pa.array(list(map(bytes, values)), pa.binary()).view(pa.string())
    lengths = pc.binary_length(texts)
    for text in texts.filter(pc.greater(lengths, 2 * MAX_DEPTH)).to_pylist():
        if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(json.loads(text)):
            raise RecursionError
    absent = pc.equal(lengths, 0)
    return _nulls_where(absent, texts) if pc.any(absent).as_py() else texts


def _without_null(texts: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Return a column without the explicit nulls, and these, if there are any."""
    if not pc.any(pc.equal(pc.binary_length(texts), len("null"))).as_py():
        return texts, None
    null = pc.fill_null(pc.equal(texts, "null"), False)
    return _nulls_where(null, texts), _nulls_where(pc.invert(null), texts)


def _nulls_where(bad: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(bad, pa.scalar(None, pa.string()), texts)


def _member(key: str, texts: pa.Array) -> pa.Array:
    """Return `"key":value` for each text; null for null."""
    return pc.binary_join_element_wise(encode_json(key), texts, ":")
