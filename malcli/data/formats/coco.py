"""COCO JSON: boxes in as columns, annotations out as a stream, and lists of detections.

Keys may come in any order, and what the columns cannot say is kept in `extra`. Knows nothing of
images on disk.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa

from malcli.data.boxtable.build import ROWS, build_table
from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import (
    bounded_json,
    encode_json,
    take_boxes,
    take_images,
)
from malcli.data.boxtable.json_columns import BOXES, IMAGES, RecordParser
from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.boxtable.spill import Spooled, spool
from malcli.data.formats.registry import Sample
from malcli.errors import DataFormatError
from malcli.files import replacing
from malcli.records import BoxTable, Record, to_records
from malcli.records import records_of as records_of  # part of this module's surface

CHUNK = 1024  # records that are encoded at a time
LISTS: dict[str, Callable[..., pa.RecordBatch]] = {
    "images": take_images,
    "annotations": take_boxes,
}
TYPES = {"images": IMAGES, "annotations": BOXES}


def is_coco(sample: Sample) -> bool:
    """Return whether a file is JSON: whose habits it has, others ask before."""
    return sample.is_json


def read_coco(
    path: Path,
    folder: Path | None = None,
    format: str = "coco",
    adapt: Callable[[pa.Table], pa.Table] | None = None,
) -> BoxTable:
    """Read boxes, images and header of a COCO file, in bounded memory.

    Args:
        path: The file.
        folder: Where the files of the table stay; None: with the temporary files, without names.
        format: The name that the table gets, for formats that are COCO with other habits.
        adapt: Changes the columns of images, for such formats.

    Raises:
        DataFormatError: It is not JSON, not COCO, or its ids are missing or not unique.
        RunError: The disk is full.
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
            batches = _batches(path, text, key)
            first = next(batches, LISTS[key]([]))  # says whether ids are text
            tables[key] = spool(first.schema, chain([first], batches), folder, key)
        text.finish()
    for key in LISTS:
        if key not in tables and "videos" in header:
            raise DataFormatError(path, f"has no list '{key}' but videos; save frames as images")
        if key not in tables:
            raise DataFormatError(path, f"has no list '{key}'; {_EXPECTED}")
    images = tables["images"].table
    return build_table(
        path, format, header, adapt(images) if adapt else images, tables["annotations"], folder
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
    parser = RecordParser(TYPES[key], LISTS[key]([]).schema)
    for batch in text.batches(ROWS, parser):
        if isinstance(batch, pa.RecordBatch):
            begin += batch.num_rows
            yield batch
            continue
        for row, record in enumerate(batch, begin):
            if type(record) is not dict:
                raise DataFormatError(path, "is not an object; correct it", f"{key}[{row}]")
        parser.learn(batch)
        try:
            yield LISTS[key](batch, parser.texts)
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
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(b"{")
        for key, value in table.header.items():
            file.write(f"{encode_json(key)}:{encode_json(value)},".encode("ascii"))
        file.write(b'"images":')
        _write_list(file, (image_records(batch) for batch in table.images.to_batches()))
        file.write(b',"annotations":')
        count = _write_list(file, batches)
        file.write(b"}\n")
    return count


def _write_list(file: IO[bytes], batches: Iterable[list[Record]]) -> int:
    """Write records as one JSON list; return how many."""
    count = 0
    file.write(b"[")
    for batch in batches:
        for begin in range(0, len(batch), CHUNK):
            file.write(b"," if count + begin else b"")
            file.write(_members(batch[begin : begin + CHUNK]))
        count += len(batch)
    file.write(b"]")
    return count


# Where msgspec may say a value otherwise than `encode_json`: NaN and infinities (as null), floats
# below 1e-4 (0.00001) and from 1e16 on (1e16), the character 127.
_ODD = (b"\x7f", b"null", b"0.0000")
_HUGE = re.compile(rb"e[1-3]\d{1,2}(?:[,}]|\][,}\]])")
_encode_quickly = msgspec.json.Encoder().encode


def _members(records: list[Record]) -> bytes:
    """Return what `encode_json` gives, without brackets; much faster where nothing is odd."""
    try:
        text = _encode_quickly(records)[1:-1]
    except (TypeError, ValueError, OverflowError):  # a lone surrogate, or what is no JSON
        return encode_json(records)[1:-1].encode("ascii")
    tiny = b"-" in text and b"e-" in text  # the first is found, or not, in no time
    if tiny or not text.isascii() or any(odd in text for odd in _ODD) or _HUGE.search(text):
        return encode_json(records)[1:-1].encode("ascii")
    return text


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
