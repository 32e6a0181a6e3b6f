"""The CSV files of Open Images as Arrow batches of text, columns found by name.

Knows how a value is written, not what it means.
"""

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import encode_json
from malcli.data.boxtable.json_stream import open_regular
from malcli.errors import DataFormatError

BLOCK = 1 << 20  # bytes read at a time
_WHOLE = re.compile(r"0|-?[1-9]\d{0,14}", re.ASCII)
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d{0,14})\.\d{1,30}(?:e-?\d{1,3})?", re.ASCII)


@contextlib.contextmanager
def opened_csv(
    path: Path, needed: Sequence[str], what: str, columns: list[str] | None = None
) -> Iterator[arrow_csv.CSVStreamingReader]:
    """Open a CSV, every column as text; what pyarrow raises in the block is one line.

    Args:
        path: The file.
        needed: Columns that it must have.
        what: Its rows, such as "boxes"; for messages.
        columns: Those to read; None: all.

    Raises:
        DataFormatError: Not such a CSV, cut short, or not UTF-8.
    """
    with open_regular(path) as file:
        names = _header(path, file, needed, what)
        convert = arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=columns or names,
            strings_can_be_null=False,
        )
        options = arrow_csv.ReadOptions(
            use_threads=False, block_size=BLOCK, column_names=names, skip_rows=1
        )
        try:
            yield arrow_csv.open_csv(file, read_options=options, convert_options=convert)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            why = " ".join(str(error).split())
            raise DataFormatError(
                path, f"not a CSV of Open Images ({short(why)}); correct it, or copy it again"
            ) from None


def _header(path: Path, file: BinaryIO, needed: Sequence[str], what: str) -> list[str]:
    """Return the names of the columns; the file is at its start again."""
    line = file.readline(BLOCK)
    file.seek(0)
    try:
        names = next(csv.reader([line.decode("utf-8-sig").strip("\r\n")]), [])
    except (UnicodeDecodeError, csv.Error):
        raise DataFormatError(path, "its first line is no text; is it a CSV?") from None
    missing = [name for name in needed if name not in names]
    if missing and "MaskPath" in names and "MaskPath" not in needed:
        raise DataFormatError(path, "is a CSV of masks; name the CSV of boxes beside it")
    if missing:
        raise DataFormatError(
            path, f"its first line has no column {', '.join(missing)}; is it a CSV of {what}?"
        )
    if len(set(names)) < len(names):
        raise DataFormatError(path, "two of its columns have the same name; rename one")
    return names


def numbers_of(column: pa.Array) -> NDArray[np.float64]:
    """Return texts as numbers, (N,); NaN where they are none."""
    try:
        return np.asarray(column.cast(pa.float64()))
    except pa.ArrowInvalid:
        return np.array([_number(text) for text in column.to_pylist()])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def members_of(name: str, column: pa.Array) -> pa.Array:
    """Return `"name":value` for each text; nothing for an empty one."""
    coded = column.dictionary_encode()
    key = encode_json(name)
    texts = [f"{key}:{_plain(text)}" if text else None for text in coded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(coded.indices)


def _plain(text: str) -> str:
    """Return a text as JSON: a number if it is one that float64 says exactly, else as it is.

    So 0.50 is 0.5, but 007, -0 and decimals of twenty places stay texts.
    """
    if _WHOLE.fullmatch(text):
        return text
    if _DECIMAL.fullmatch(text):
        number = repr(float(text))
        if Decimal(number) == Decimal(text):
            return number
    return encode_json(text)
