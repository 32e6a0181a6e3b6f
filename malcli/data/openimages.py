"""Open Images V4 to V7: a CSV of relative boxes, names of classes in a CSV without header.

Columns are found by name. The file states no image sizes: they come from the headers. A box of a
group is skipped as `group` (and gets `iscrowd`), one that is the whole view as `inside`. Columns
that are not needed are kept under their own names. Annotations get their row's number as id, from
1, categories the number of their line in the class descriptions.
"""

import contextlib
import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from malcli.data.checks import GROUP, INSIDE, OK, STATUSES, short
from malcli.data.columns import encode_json, join_members
from malcli.data.images import find_folder
from malcli.data.index import build_table
from malcli.data.sizes import Found, read_sizes
from malcli.data.spool import spool
from malcli.data.stream import open_regular
from malcli.errors import DataFormatError, MissingImageError
from malcli.records import BoxTable, box_schema, image_schema

SIDES = ("XMin", "YMin", "XMax", "YMax")
NEEDED = ("ImageID", "LabelName", *SIDES)
SUFFIXES = (".jpg", ".jpeg", ".png")  # of images, in the order that they are looked for
BLOCK = 1 << 20  # bytes read at a time
MAX_DESCRIPTIONS = 1 << 26  # bytes
HEADING = ("LabelName", "DisplayName")  # V7's descriptions have one
_WHOLE = re.compile(r"-?\d{1,15}")
_DECIMAL = re.compile(r"-?\d{1,15}\.\d+(?:e-?\d{1,3})?")

SCHEMA = pa.schema([each for each in box_schema(pa.int64(), pa.string()) if each.name != "image"])


def read_openimages(path: Path, images: Path | None = None) -> BoxTable:
    """Read a CSV of boxes, in bounded memory beside the list of images.

    Args:
        path: The CSV.
        images: The image folder; None: looked up beside the CSV.

    Raises:
        DataFormatError: Not a CSV of boxes, cut short, or not UTF-8.
        MissingImageError: None of the images is there.
        RunError: The disk of temporary files is full.
    """
    ids, labels = _first_pass(path)
    names = pa.chunked_array([pa.array([f"{each}{SUFFIXES[0]}" for each in ids], pa.string())])
    found: list[Found] = []
    if ids:
        root = _folder(path, names, ids, images)
        found = read_sizes(root, list(ids), SUFFIXES)
    categories = _categories(path, labels)
    numbers = {each["mid"]: each["id"] for each in categories}
    hw = np.array([(each.height or 0, each.width or 0) for each in found]).reshape(-1, 2)
    boxes = spool(SCHEMA, _boxes(path, ids, numbers, hw.astype(np.float64)))
    return build_table(path, "openimages", {"categories": categories}, _images(ids, found), boxes)


def _folder(path: Path, names: pa.ChunkedArray, ids: dict[str, int], images: Path | None) -> Path:
    """Return the image folder; images are .jpg unless none of them is there."""
    for suffix in SUFFIXES[1:]:
        with contextlib.suppress(MissingImageError):
            return find_folder(path, names, images).root
        names = pa.chunked_array([pa.array([each + suffix for each in ids], pa.string())])
    return find_folder(path, names, images).root


def _images(ids: dict[str, int], found: list[Found]) -> pa.Table:
    """Return the columns of images; one that is not there has no name."""
    names, heights, widths = zip(*found, strict=True) if found else ((), (), ())
    columns = [list(ids), names, heights, widths, [None] * len(ids)]
    return pa.Table.from_arrays(
        [
            pa.array(column, field.type)
            for column, field in zip(columns, image_schema(pa.string()), strict=True)
        ],
        schema=image_schema(pa.string()),
    )


@contextlib.contextmanager
def _opened(path: Path, columns: list[str] | None = None) -> Iterator[arrow_csv.CSVStreamingReader]:
    """Open the CSV, every column as text; what pyarrow raises in the block is one line."""
    with open_regular(path) as file:
        names = _header(path, file)
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
            what = " ".join(str(error).split())
            raise DataFormatError(path, f"not a CSV of Open Images ({short(what)})") from None


def _header(path: Path, file: BinaryIO) -> list[str]:
    """Return the names of the columns; the file is at its start again."""
    line = file.readline(BLOCK)
    file.seek(0)
    try:
        names = next(csv.reader([line.decode("utf-8-sig").strip("\r\n")]), [])
    except (UnicodeDecodeError, csv.Error):
        raise DataFormatError(path, "its first line is no text; is it a CSV?") from None
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataFormatError(
            path, f"its first line has no column {', '.join(missing)}; is it a CSV of boxes?"
        )
    if len(set(names)) < len(names):
        raise DataFormatError(path, "two of its columns have the same name; rename one")
    return names


def _first_pass(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the row of each image id, in the order of the file, and the labels, sorted."""
    ids: dict[str, int] = {}
    labels: set[str] = set()
    with _opened(path, ["ImageID", "LabelName"]) as reader:
        for batch in reader:
            for name in pc.unique(batch["ImageID"]).to_pylist():
                ids.setdefault(name, len(ids))
            labels.update(pc.unique(batch["LabelName"]).to_pylist())
    return ids, sorted(labels)


def _categories(path: Path, labels: list[str]) -> list[dict[str, Any]]:
    """Return the described classes, then those that have no description, by their labels."""
    described = _descriptions(path)
    found: list[dict[str, Any]] = []
    for mid in [*described, *(label for label in labels if label not in described)]:
        found.append({"id": len(found) + 1, "name": described.get(mid, mid), "mid": mid})
    return found


def _descriptions(path: Path) -> dict[str, str]:
    """Return the names of classes by label from the CSV beside; none if there is none."""
    folders = (path.absolute().parent, path.absolute().parent.parent)
    files = [file for folder in folders for file in sorted(folder.glob("*class-descriptions*.csv"))]
    if not files:
        return {}
    file = min(
        files, key=lambda file: (not file.name.startswith(path.stem), "boxable" not in file.name)
    )
    with open_regular(file) as opened:
        data = opened.read(MAX_DESCRIPTIONS)
    try:
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(file, f"not a CSV of class names ({short(str(error))})") from None
    return {row[0]: row[1] for row in rows if len(row) >= 2 and tuple(row[:2]) != HEADING}


def _boxes(
    path: Path, ids: dict[str, int], numbers: dict[str, int], hw: NDArray[np.float64]
) -> Iterator[pa.RecordBatch]:
    """Yield the columns of boxes in pixels.

    Args:
        path: The CSV.
        ids: Row of each image.
        numbers: Category id of each label.
        hw: (N, 2) sizes of the images; 0 if unknown.
    """
    begin = 1
    with _opened(path) as reader:
        for batch in reader:
            if batch.num_rows:
                yield _columns(batch, begin, ids, numbers, hw)
            begin += batch.num_rows


def _columns(
    batch: pa.RecordBatch,
    begin: int,
    ids: dict[str, int],
    numbers: dict[str, int],
    hw: NDArray[np.float64],
) -> pa.RecordBatch:
    sides = [_numbers(batch[name]) for name in SIDES]
    size = hw[_mapped(batch["ImageID"], ids)]
    height, width = size.T
    x0, y0, x1, y1 = sides
    with np.errstate(over="ignore", invalid="ignore"):
        xywh = np.stack([x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height], axis=1)
    bad = ~np.isfinite(xywh).all(axis=1) | (size <= 0).any(axis=1)
    xywh[bad] = 0
    group, inside = (_flag(batch, name) for name in ("IsGroupOf", "IsInside"))
    status = np.where(group, GROUP, np.where(inside, INSIDE, OK)).astype(np.int8)
    named = pa.DictionaryArray.from_arrays(pa.array(status), pa.array(STATUSES))
    values = {
        "id": pa.array(np.arange(begin, begin + batch.num_rows)),
        "image_id": batch["ImageID"],
        "category_id": pa.array(_mapped(batch["LabelName"], numbers)),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(xywh.ravel()), 4, mask=pa.array(bad)),
        "area": pa.nulls(batch.num_rows, pa.float64()),
        "iscrowd": pa.array(group.astype(np.int8)),
        "segmentation": pa.nulls(batch.num_rows, pa.string()),
        "status": named.dictionary_decode(),
        "extra": _extra(batch, bad),
    }
    columns = [values[field.name].cast(field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """Return texts as numbers; NaN where they are none."""
    try:
        return np.asarray(column.cast(pa.float64()))
    except pa.ArrowInvalid:
        return np.array([_number(text) for text in column.to_pylist()])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _mapped(column: pa.Array, values: dict[str, int]) -> NDArray[np.int64]:
    """Return the value of each text."""
    coded = column.dictionary_encode()
    by_code = np.array([values[text] for text in coded.dictionary.to_pylist()], dtype=np.int64)
    return np.asarray(by_code[coded.indices.to_numpy()])


def _flag(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    """Return where a flag is 1; machine boxes have -1."""
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=bool)
    return np.asarray(pc.equal(batch[name], "1"), dtype=bool)


def _extra(batch: pa.RecordBatch, bad: NDArray[np.bool_]) -> pa.Array:
    """Return the other columns as JSON objects; those of a bad box with its sides, as they are."""
    names = [name for name in batch.schema.names if name not in NEEDED]
    parts = [_members(name, batch[name]) for name in names]
    if bad.any():
        rows = pa.array(bad)
        parts += [
            pc.if_else(rows, _members(name, batch[name]), pa.scalar(None, pa.string()))
            for name in SIDES
        ]
    return join_members(parts, batch.num_rows)


def _members(name: str, column: pa.Array) -> pa.Array:
    """Return `"name":value` for each text; nothing for an empty one."""
    coded = column.dictionary_encode()
    key = encode_json(name)
    texts = [f"{key}:{_plain(text)}" if text else None for text in coded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(coded.indices)


def _plain(text: str) -> str:
    """Return a text as JSON: a number if it is one."""
    if _WHOLE.fullmatch(text):
        return str(int(text))
    return repr(float(text)) if _DECIMAL.fullmatch(text) else encode_json(text)
