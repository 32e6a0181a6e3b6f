"""Parquet: one row an instance, image records in FILE.images.parquet beside it.

The header (`info`, `licenses`, `categories`, other keys) stands in the file's metadata as JSON. A
mask that is no compressed RLE is stored as one, its original form in `extra`. Equal values give
equal bytes.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from malcli.data.boxtable.build import ROWS, build_table
from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import encode_json
from malcli.data.boxtable.json_stream import open_regular
from malcli.data.boxtable.spill import spool
from malcli.data.formats.parquet_rows import RowMaker, parquet_schema
from malcli.data.formats.registry import Sample
from malcli.errors import DataFormatError
from malcli.files import replacing
from malcli.records import BoxTable, Record, box_schema, image_schema

ROW_GROUP = 65_536  # rows; fixed, so that equal values give equal bytes
HEADER_KEYS = ("info", "licenses", "categories")
OTHER_KEYS = "malcli.header"


def is_parquet(sample: Sample) -> bool:
    """Return whether a file is Parquet."""
    return sample.head.startswith(b"PAR1")


def files_of(path: Path) -> list[Path]:
    """Return the two files of an output."""
    return [path, images_path(path)]


def images_path(path: Path) -> Path:
    """Return FILE.images.parquet of FILE.parquet."""
    return path.with_suffix(".images.parquet") if path.name else path / ".images.parquet"


def write_parquet(path: Path, table: BoxTable, batches: Iterable[list[Record]]) -> int:
    """Write annotations and, beside them, the table's images.

    Args:
        path: Replaced when all is written, untouched if anything fails.
        table: For `header`, `images` and the types of ids; its boxes are not read.
        batches: Lists of annotations, in the order of the output.

    Returns:
        The number of annotations.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    id_type, image_id_type = (table.boxes.schema.field(key).type for key in ("id", "image_id"))
    schema = parquet_schema(id_type, image_id_type).with_metadata(_metadata(table.header))
    rows = RowMaker(table, schema)
    with replacing(path) as temporary, replacing(images_path(path)) as temporary_images:
        _write(temporary_images, table.images.schema, iter(table.images.to_batches()))
        return _write(temporary, schema, map(rows.make, filter(None, batches)))


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write batches in row groups of one size, whatever the sizes of the batches."""
    count = 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            count += batch.num_rows
            while sum(each.num_rows for each in waiting) >= ROW_GROUP:
                whole = pa.Table.from_batches(waiting, schema)
                writer.write_table(whole.slice(0, ROW_GROUP).combine_chunks())
                waiting = whole.slice(ROW_GROUP).to_batches()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks())
    return count


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    """Return the header as JSON texts: the keys of COCO by name, the rest as one object."""
    metadata = {key: encode_json(header[key]) for key in HEADER_KEYS if key in header}
    rest = {key: value for key, value in header.items() if key not in HEADER_KEYS}
    return metadata | {OTHER_KEYS: encode_json(rest)}


def read_parquet(path: Path) -> BoxTable:
    """Read what `write_parquet` wrote, in bounded memory.

    Raises:
        DataFormatError: Damaged, not of malcli, or without its images file.
        RunError: The disk of temporary files is full.
    """
    beside = images_path(path)
    with _opened(path) as file:
        wanted = parquet_schema(*_id_types(path, file, ("id", "image_id")))
        _check_columns(path, file, wanted)
        header = _header(path, file)
        if not beside.is_file():
            raise DataFormatError(beside, f"is missing; keep it beside {path.name}")
        kept = box_schema(wanted.field("id").type, wanted.field("image_id").type)
        kept = pa.schema([field for field in kept if field.name not in ("image", "status")])
        boxes = spool(kept, (_boxes(path, batch, kept) for batch in _batches(path, file, wanted)))
    with _opened(beside) as file:
        schema = image_schema(*_id_types(beside, file, ("id",)))
        _check_columns(beside, file, schema)
        images = spool(schema, _checked_extra(beside, _batches(beside, file, schema))).table
    return build_table(path, "parquet", header, images, boxes)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with open_regular(path) as raw:
        try:
            file = pq.ParquetFile(raw)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(path, error) from None
        with file:
            yield file


def _damaged(path: Path, error: Exception) -> DataFormatError:
    return DataFormatError(path, f"not a Parquet file, or damaged ({short(str(error))})")


def _id_types(path: Path, file: pq.ParquetFile, keys: tuple[str, ...]) -> list[pa.DataType]:
    """Return int64 or string for each column of ids."""
    schema = file.schema_arrow
    texts = (pa.string(), pa.large_string())
    present = {field.name: field.type for field in schema}
    return [pa.string() if present.get(key) in texts else pa.int64() for key in keys]


def _check_columns(path: Path, file: pq.ParquetFile, wanted: pa.Schema) -> None:
    missing = [name for name in wanted.names if name not in file.schema_arrow.names]
    if missing:
        raise DataFormatError(
            path,
            f"not a file of malcli: it has no column {', '.join(missing)}; convert from its own "
            "format",
        )


def _header(path: Path, file: pq.ParquetFile) -> dict[str, Any]:
    metadata = file.schema_arrow.metadata or {}
    header: dict[str, Any] = {}
    try:
        for key in HEADER_KEYS:
            if key.encode() in metadata:
                header[key] = json.loads(metadata[key.encode()])
        header.update(json.loads(metadata.get(OTHER_KEYS.encode(), b"{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from None
    return header


def _batches(path: Path, file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in the columns of a schema, checked: text is UTF-8, offsets fit."""
    try:
        for batch in file.iter_batches(ROWS, columns=schema.names):
            cast = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            for part in cast.combine_chunks().to_batches():
                part.validate(full=True)
                yield part
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _checked_extra(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for text in pc.drop_null(batch["extra"]).to_pylist():
            _extra(path, text)
        yield batch


def _extra(path: Path, text: str | None) -> Record:
    """Return an `extra` as an object."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataFormatError(path, f"its column extra holds {short(text)}, which is no object")
    return value


def _boxes(path: Path, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the columns of boxes; score and status go to `extra`, polygons come out of it."""
    names = ("segmentation", "score", "status", "extra")
    masks: list[str | None] = []
    extras: list[str | None] = []
    for mask, score, status, text in zip(*(batch[n].to_pylist() for n in names), strict=True):
        extra = _extra(path, text)
        # An explicit null stays in `extra`, where it overrides the column.
        own = mask if extra.get("segmentation") is None else extra.pop("segmentation")
        masks.append(None if own is None else encode_json(own))
        given = {"malcli_score": score, "malcli_status": status}
        extra = {key: value for key, value in given.items() if value is not None} | extra
        extras.append(encode_json(extra) if extra else None)
    columns = {name: batch[name] for name in schema.names if name in batch.schema.names}
    columns["segmentation"] = pa.array(masks, pa.string())
    columns["extra"] = pa.array(extras, pa.string())
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
