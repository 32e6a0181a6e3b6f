"""Annotation formats by name: readers, writers, and which one a file is.

A new format is one file beside this one and a line in each table below.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.coco import read_coco, write_coco
from malcli.data.index import BATCHES_KEPT, build_table, spool
from malcli.data.parquet import read_parquet, write_parquet
from malcli.data.stream import open_regular
from malcli.errors import ConfigError, DataFormatError
from malcli.records import BoxTable, Record, category_names
from malcli.settings import nearest

Entry = TypeVar("Entry")
Reader = Callable[[Path], BoxTable]
Writer = Callable[[Path, BoxTable, Iterable[list[Record]]], int]

SUFFIXES = {".json": "coco", ".parquet": "parquet", ".csv": "openimages", ".yaml": "yolo"}
HEAD = 4096  # bytes that tell a format


def open_boxes(path: Path, format: str | None = None) -> BoxTable:
    """Read an annotation file.

    Args:
        path: The file.
        format: Its format's name; None: recognised from content.

    Raises:
        ConfigError: The format has no reader yet.
        DataFormatError: The file cannot be understood.
    """
    return reader_of(format or recognise(path))(path)


def recognise(path: Path) -> str:
    """Return the format's name, from the file's content.

    Raises:
        DataFormatError: Missing, unreadable, or none of the formats.
    """
    if path.is_dir() and any(path.glob("*.yaml")):
        return "yolo"
    with open_regular(path) as file:
        head = file.read(HEAD)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if text[:1] in (b"{", b"[", b""):
        return "coco"
    line = text.splitlines()[0]
    if b"ImageID" in line and b"XMin" in line:
        return "openimages"
    if path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.suffix == ".json":
        return "coco"  # whose reader says what is wrong with it
    raise DataFormatError(path, "is no annotation file that malcli knows; name it with --format")


def format_of_output(path: Path, format: str | None = None) -> str:
    """Return the format to write: the one named, or that of the suffix.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if format is None and path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: cannot tell the format from '{path.suffix}'; use .json or .parquet, or --to"
        )
    return format or SUFFIXES[path.suffix.lower()]


def reader_of(format: str) -> Reader:
    """Return the reader of a format.

    Raises:
        ConfigError: There is none yet.
    """
    return _of(READERS, format, "read")


def writer_of(format: str) -> Writer:
    """Return the writer of a format.

    Raises:
        ConfigError: There is none yet.
    """
    return _of(WRITERS, format, "write")


def _of(table: dict[str, Entry], format: str, verb: str) -> Entry:
    if format not in table:
        raise ConfigError(
            f"format '{format}': this version cannot {verb} it yet; it can {verb} "
            f"{', '.join(table)}"
        )
    return table[format]


def select(table: BoxTable, categories: str | None = None, limit: int | None = None) -> BoxTable:
    """Return the boxes of some categories and of the first images only.

    Args:
        table: Of any format.
        categories: Names or ids, separated by commas; None: all. Every image stays.
        limit: Number of images; None: all. Boxes of unknown images go, too.

    Raises:
        ConfigError: A category is unknown.
    """
    if categories is None and limit is None:
        return table
    wanted = None if categories is None else pa.array(_category_ids(table, categories), pa.int64())
    images = table.images if limit is None else table.images.slice(0, limit)

    def kept() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(table.boxes.to_batches()):
            yield batch.filter(pa.array(_chosen(batch, wanted, limit)))
            if number % BATCHES_KEPT == 0:
                table.release()

    boxes = spool(table.boxes.schema, kept())
    return build_table(table.path, table.format, table.header, images, boxes)


def _chosen(batch: pa.RecordBatch, wanted: pa.Array | None, limit: int | None) -> NDArray[np.bool_]:
    keep = np.ones(batch.num_rows, dtype=bool)
    if wanted is not None:
        keep &= pc.is_in(batch["category_id"], value_set=wanted).to_numpy(zero_copy_only=False)
    if limit is not None:
        image = batch["image"].to_numpy()
        keep &= (image >= 0) & (image < limit)
    return keep


def _category_ids(table: BoxTable, categories: str) -> list[int]:
    """Return the ids of categories given by name (spaces around it count little) or id."""
    names = category_names(table.header)
    ids: list[int] = []
    for text in filter(None, map(str.strip, categories.split(","))):
        found = [number for number, name in names.items() if name.strip() == text]
        if not found and text.lstrip("-").isdigit() and int(text) in names:
            found = [int(text)]
        if not found:
            raise ConfigError(
                f"--categories: {table.path} has no category '{text}'"
                f"{nearest(text, names.values()) or '; give names or ids, with commas between'}"
            )
        ids += found
    if not ids:
        raise ConfigError("--categories: names no category; give names or ids, with commas between")
    return ids


READERS: dict[str, Reader] = {"coco": read_coco, "parquet": read_parquet}
WRITERS: dict[str, Writer] = {"coco": write_coco, "parquet": write_parquet}
