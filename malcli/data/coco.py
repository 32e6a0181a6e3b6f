"""COCO JSON: boxes in as columns, annotations out as a stream, and lists of detections.

Keys may come in any order, and what the columns cannot say is kept in `extra`. Knows nothing of
images on disk.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from malcli.data.checks import short
from malcli.data.columns import (
    bounded_json,
    encode_json,
    parse_boxes,
    take_boxes,
    take_images,
)
from malcli.data.index import ROWS, Spooled, build_table, spool
from malcli.data.stream import JsonText, open_regular
from malcli.errors import DataFormatError
from malcli.files import replacing
from malcli.records import BoxTable, Record, to_records
from malcli.records import records_of as records_of  # part of this module's surface

LISTS: dict[str, Callable[[list[Record]], pa.RecordBatch]] = {
    "images": take_images,
    "annotations": take_boxes,
}


def read_coco(
    path: Path, format: str = "coco", adapt: Callable[[pa.Table], pa.Table] | None = None
) -> BoxTable:
    """Read boxes, images and header of a COCO file, in bounded memory.

    Args:
        path: The file.
        format: The name that the table gets, for formats that are COCO with other habits.
        adapt: Changes the columns of images, for such formats.

    Raises:
        DataFormatError: It is not JSON, not COCO, or its ids are missing or not unique.
        RunError: The disk of temporary files is full.
    """
    header: dict[str, Any] = {}
    tables: dict[str, Spooled] = {}
    with open_regular(path) as file:
        text = JsonText(path, file)
        _check_root(path, text)
        for key in text.members():
            if key not in LISTS:
                header[key] = text.value()
                _refuse_deep(path, header[key], f"key '{short(key)}'")
                continue
            if key in tables:
                raise DataFormatError(path, f"has the key '{key}' twice; merge the two lists")
            if text.peek() != "[":
                raise DataFormatError(path, f"'{key}' is not a list; {_EXPECTED}")
            tables[key] = spool(LISTS[key]([]).schema, _batches(path, text, key))
        text.finish()
    for key in LISTS:
        if key not in tables:
            raise DataFormatError(path, f"has no list '{key}'; {_EXPECTED}")
    images = tables["images"].table
    return build_table(
        path, format, header, adapt(images) if adapt else images, tables["annotations"]
    )


_EXPECTED = "COCO JSON is an object with the lists images, annotations and categories"


def _check_root(path: Path, text: JsonText) -> None:
    char = text.peek()
    if char == "[":
        raise DataFormatError(path, f"is a list, such as detections; {_EXPECTED}")
    if char and char in '"-0123456789tfnNI':
        raise DataFormatError(path, f"is a single value; {_EXPECTED}")


def _batches(path: Path, text: JsonText, key: str) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a list of records."""
    begin = 0
    for batch in text.batches(ROWS, parse_boxes if key == "annotations" else None):
        if isinstance(batch, pa.RecordBatch):
            begin += batch.num_rows
            yield batch
            continue
        for row, record in enumerate(batch, begin):
            if type(record) is not dict:
                raise DataFormatError(path, "is not an object; correct it", f"{key}[{row}]")
        try:
            yield LISTS[key](batch)
        except RecursionError:
            last = begin + len(batch) - 1
            raise _too_deep(path, f"one of {key}[{begin}..{last}]") from None
        begin += len(batch)


def _refuse_deep(path: Path, value: object, place: str) -> None:
    try:
        bounded_json(value)
    except RecursionError:
        raise _too_deep(path, place) from None


def _too_deep(path: Path, place: str) -> DataFormatError:
    return DataFormatError(path, "values are nested too deeply; flatten them", place)


def write_coco(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    image_records: Callable[[pa.RecordBatch], list[Record]] = to_records,
) -> int:
    """Write COCO JSON: header and images of the table, and the annotations given.

    Equal values give equal bytes: compact ASCII, keys in the order of each record.

    Args:
        path: Replaced when all is written, untouched if anything fails.
        table: For `header` and `images`; its boxes are not read.
        batches: Lists of annotations, in the order of the output.
        image_records: Returns the records of images, for formats that are COCO with other habits.

    Returns:
        The number of annotations.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        file.write("{")
        for key, value in table.header.items():
            file.write(f"{encode_json(key)}:{encode_json(value)},")
        file.write('"images":')
        _write_list(file, (image_records(batch) for batch in table.images.to_batches()))
        file.write(',"annotations":')
        count = _write_list(file, batches)
        file.write("}\n")
    return count


def _write_list(file: IO[str], batches: Iterable[list[Record]]) -> int:
    """Write records as one JSON list; return how many."""
    count = 0
    file.write("[")
    for batch in batches:
        if batch:
            file.write("," if count else "")
            file.write(encode_json(batch)[1:-1])
            count += len(batch)
    file.write("]")
    return count


def read_results(path: Path) -> list[Record]:
    """Read a COCO results list: detections with image, category, score, and a mask or box.

    Raises:
        DataFormatError: Not a list of such objects.
    """
    results: list[Record] = []
    with open_regular(path) as file:
        text = JsonText(path, file)
        if text.peek() == "{":
            raise DataFormatError(path, "is an object, not a list of detections")
        for batch in text.batches(ROWS):
            for row, record in enumerate(batch, len(results)):
                _check_result(path, record, f"[{row}]")
            results += batch
        text.finish()
    return results


def _check_result(path: Path, record: object, place: str) -> None:
    if not isinstance(record, dict):
        raise DataFormatError(path, "is not an object; a detection is one", place)
    for key in ("image_id", "category_id", "score"):
        if key not in record:
            raise DataFormatError(path, "missing; every detection needs it", place, key)
    for key in ("image_id", "category_id"):
        if isinstance(record[key], bool) or not isinstance(record[key], int | str):
            raise DataFormatError(path, f"{short(record[key])} is no id", place, key)
    score = record["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise DataFormatError(path, f"{short(score)} is not a finite number", place, "score")
    if record.get("segmentation") is None and record.get("bbox") is None:
        raise DataFormatError(path, "has neither segmentation nor bbox", place)
