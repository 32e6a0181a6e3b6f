"""Rows of the Parquet file from annotations, with what images and categories say of them.

Annotations with no other keys than the columns' take a short way; the others leave what a column
cannot say in `extra`. Knows nothing of files.
"""

from itertools import chain
from operator import attrgetter
from typing import Any, TypeGuard

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.columns import (
    is_text,
    take_ids,
    take_numbers,
    take_rest,
    take_texts,
    take_whole,
    take_xywh,
)
from malcli.data.boxtable.image_rows import ImageRows
from malcli.geometry.rle import RleError, from_segmentation
from malcli.records import BOX_TYPE, EXACT, BoxTable, Record, Rle, category_names

LONGEST_SIDE = 65_535  # pixels; a mask of a larger image is kept in its own form only
IMAGE_COLUMNS = ("file_name", "height", "width")
TEXT = pa.string()
MASK_TYPE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])


def parquet_schema(id_type: pa.DataType, image_id_type: pa.DataType) -> pa.Schema:
    """Return the columns of the file; `score` and `status` are `malcli_score`, `malcli_status`."""
    return pa.schema(
        [
            ("id", id_type),
            ("image_id", image_id_type),
            ("file_name", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("category_id", pa.int64()),
            ("category", pa.string()),
            ("bbox", BOX_TYPE),
            ("segmentation", MASK_TYPE),
            ("area", pa.float64()),
            ("iscrowd", pa.int8()),
            ("score", pa.float64()),
            ("status", pa.string()),
            ("extra", pa.string()),
        ]
    )


class RowMaker:
    """Makes rows of annotations.

    Args:
        table: For its images and categories.
        schema: As `parquet_schema` gives it.
    """

    def __init__(self, table: BoxTable, schema: pa.Schema) -> None:
        """Index the images and the categories."""
        self._schema = schema
        columns = {name: table.images[name].combine_chunks() for name in IMAGE_COLUMNS}
        self._images = pa.RecordBatch.from_pydict(columns)
        self._rows = ImageRows(table.images)
        names = category_names(table.header).items()
        names_of = {number: name for number, name in names if name and is_text(name)}
        self._categories = pa.array([*names_of], pa.int64()), pa.array([*names_of.values()], TEXT)

    def make(self, batch: list[Record]) -> pa.RecordBatch:
        """Return the rows of annotations, which are left as they are."""
        ids, image_ids = (self._schema.field(key).type for key in ("id", "image_id"))
        values = _plain_columns(batch, ids, image_ids)
        if values is None:
            values = self._any_columns(batch, ids, image_ids)
        else:
            values |= self._image_columns(values["image_id"])
        numbers, names = self._categories
        values["category"] = names.take(pc.index_in(values["category_id"], value_set=numbers))
        return pa.RecordBatch.from_arrays(
            [values[name] for name in self._schema.names], schema=self._schema
        )

    def _image_columns(self, image_ids: pa.Array) -> dict[str, pa.Array]:
        rows = self._rows.find(pa.chunked_array([image_ids]))
        taken = self._images.take(pa.array(rows, mask=rows < 0))
        return dict(zip(IMAGE_COLUMNS, taken.columns, strict=True))

    def _any_columns(
        self, batch: list[Record], id_type: pa.DataType, image_id_type: pa.DataType
    ) -> dict[str, Any]:
        """Return the columns of any annotations, what they cannot say as `extra`."""
        records = [dict(record) for record in batch]
        ids = take_ids(records, "id", id_type)
        image_ids = take_ids(records, "image_id", image_id_type)
        image = self._image_columns(image_ids)
        sides = zip(image["height"].to_pylist(), image["width"].to_pylist(), strict=True)
        masks = [_take_mask(record, *hw) for record, hw in zip(records, sides, strict=True)]
        return image | {
            "id": ids,
            "image_id": image_ids,
            "category_id": take_whole(records, "category_id", pa.int64()),
            "bbox": take_xywh(records, "bbox"),
            "segmentation": pa.array(masks, MASK_TYPE),
            "area": take_numbers(records, "area"),
            "iscrowd": take_whole(records, "iscrowd", pa.int8(), see_bool=True),
            "score": take_numbers(records, "malcli_score"),
            "status": take_texts(records, "malcli_status"),
            "extra": take_rest(records),
        }


_ABSENT: Any = None  # which the checks of types refuse where it is given, as JSON's null


class _Mask(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A compressed mask, and no more."""

    size: tuple[int, int]
    counts: str


class _Row(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An annotation with no other keys than the columns', of the right types."""

    id: int | str = _ABSENT
    image_id: int | str = _ABSENT
    category_id: int = _ABSENT
    bbox: tuple[float, float, float, float] = _ABSENT
    segmentation: _Mask = _ABSENT
    area: float = _ABSENT
    iscrowd: int = _ABSENT
    malcli_score: float = _ABSENT
    malcli_status: str = _ABSENT


def _plain_columns(
    batch: list[Record], id_type: pa.DataType, image_id_type: pa.DataType
) -> dict[str, Any] | None:
    """Return the columns that `_any_columns` gives, without those of images; much faster.

    None if an annotation has other keys or types, or numbers that float64 cannot say.
    """
    try:
        rows = msgspec.convert(batch, list[_Row])
        taken = {name: [*map(attrgetter(name), rows)] for name in _Row.__struct_fields__}
        return {
            "id": pa.array(taken["id"], id_type),
            "image_id": pa.array(taken["image_id"], image_id_type),
            "category_id": pa.array(taken["category_id"], pa.int64()),
            "bbox": _boxes(taken["bbox"]),
            "segmentation": _masks(taken["segmentation"]),
            "area": _numbers(taken["area"]),
            "iscrowd": pa.array(taken["iscrowd"], pa.int8()),
            "score": _numbers(taken["malcli_score"]),
            "status": pa.array(taken["malcli_status"], pa.string()),
            "extra": pa.nulls(len(rows), pa.string()),
        }
    # A value that its column cannot hold; Arrow's and Unicode's errors are ValueErrors, too.
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
        return None


def _exact(values: list[float]) -> NDArray[np.float64]:
    """Return numbers as float64; those that it cannot say, and NaN, need the long way."""
    numbers = np.array(values, dtype=np.float64)
    if not (np.abs(numbers) < EXACT).all():
        raise ValueError("a number that is not exact")
    return numbers


def _numbers(values: list[Any]) -> pa.Array:
    """Return numbers as a column; null where None."""
    if None not in values:
        return pa.array(_exact(values))
    _exact([value for value in values if value is not None])
    return pa.array(values, pa.float64())


def _boxes(boxes: list[tuple[float, float, float, float]]) -> pa.Array:
    """Return xywh as a column; where a box is missing, the record needs the long way."""
    return pa.FixedSizeListArray.from_arrays(pa.array(_exact([*chain.from_iterable(boxes)])), 4)


def _masks(masks: list[_Mask | None]) -> pa.Array:
    """Return masks as a column; null where None."""
    there = [mask for mask in masks if mask is not None]
    sides = pa.array([*chain.from_iterable(map(_SIZE, there))], pa.int32())
    if (sides.to_numpy() < 0).any():
        raise ValueError("a side below 0")
    ends = pa.array(np.arange(0, len(sides) + 1, 2, dtype=np.int32))
    sizes = pa.ListArray.from_arrays(ends, sides)
    counts = pa.array([*map(_COUNTS, there)], TEXT)
    column = pa.StructArray.from_arrays([sizes, counts], fields=list(MASK_TYPE))
    if len(there) == len(masks):
        return column
    absent = np.array([mask is None for mask in masks])
    return column.take(pa.array(np.cumsum(~absent) - 1, mask=absent))


_SIZE, _COUNTS = attrgetter("size"), attrgetter("counts")


def _take_mask(record: Record, height: int | None, width: int | None) -> Rle | None:
    """Return an annotation's mask as RLE; unless it was just that, its own form stays."""
    value = record.get("segmentation")
    if value is None:
        return None
    if _is_rle(value):
        del record["segmentation"]
        return Rle(size=value["size"], counts=value["counts"])
    hw = (height or 0, width or 0)
    if not all(0 < side <= LONGEST_SIDE for side in hw):
        return None
    try:
        return from_segmentation(value, hw)
    except RleError:
        return None


def _is_rle(value: object) -> TypeGuard[Rle]:
    """Return whether the column can say it: a `size` of integers, `counts` as text, no more."""
    if not isinstance(value, dict) or value.keys() != {"size", "counts"}:
        return False
    size, counts = value["size"], value["counts"]
    if not isinstance(size, list) or not isinstance(counts, str) or not is_text(counts):
        return False
    return all(type(side) is int and 0 <= side < 2**31 for side in size)
