"""Annotation formats by name: readers, writers, and which one a file is.

A new format is one file beside this one and a line in each table below.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.build import build_table
from malcli.data.boxtable.cache import cached
from malcli.data.boxtable.json_stream import open_regular
from malcli.data.boxtable.spill import spool
from malcli.data.formats.coco import read_coco, write_coco
from malcli.data.formats.lvis import read_lvis, write_lvis
from malcli.data.formats.objects365 import read_objects365, write_objects365
from malcli.data.formats.openimages.boxes import read_openimages
from malcli.data.formats.openimages.masks import mask_folders, masks_csv_of
from malcli.data.formats.openimages.write import files_of, write_openimages
from malcli.data.formats.parquet import images_path, read_parquet, write_parquet
from malcli.data.formats.yolo_read import read_yolo
from malcli.data.formats.yolo_write import folder_of, write_yolo
from malcli.errors import ConfigError, DataFormatError
from malcli.records import BoxTable, category_names
from malcli.settings import nearest

Entry = TypeVar("Entry")
Reader = Callable[..., BoxTable]  # (path), and what the two kinds below take
Writer = Callable[..., int]  # (path, table, batches of records); the folders of EXPORTS take more

SUFFIXES = {
    ".json": "coco",
    ".parquet": "parquet",
    ".csv": "openimages",
    ".yaml": "yolo",
    ".yml": "yolo",
}
HEAD = 4096  # bytes that tell a format
EDGES = (1 << 16, 1 << 20)  # bytes at the start and the end that tell whose JSON it is
JSON_FORMATS = ("coco", "lvis", "objects365")  # their readers take a folder, for the cache
SIZELESS = ("openimages", "yolo")  # they state no image sizes; their readers take the images
EXPORTS = ("openimages", "yolo")  # writers that leave things out, and count them

_LVIS = re.compile(rb'"(?:neg_category_ids|not_exhaustive_category_ids)"\s*:')
_OBJECTS365 = re.compile(
    rb'"(?:isfake|isreflected)"\s*:|objects365_v[12]_\d|obj365_(?:train|val|test)_\d'
)


def open_boxes(
    path: Path, format: str | None = None, images: Path | None = None, *, with_masks: bool = True
) -> BoxTable:
    """Read an annotation file, or what the cache kept of it.

    Args:
        path: The file, or the folder of a YOLO data set.
        format: Its format's name; None: recognised from content.
        images: The image folder, for formats that state no sizes; None: looked up.
        with_masks: Read masks that lie in files of their own (Open Images'), too: a picture a box.

    Raises:
        ConfigError: The format is unknown.
        DataFormatError: The file cannot be understood.
        MissingImageError: The format states no sizes, and none of the images is there.
    """
    name = format or recognise(path)
    read = reader_of(name)
    if name == "openimages":
        return read(path, images, with_masks=with_masks)
    if name in SIZELESS:
        return read(path, images)
    return cached(path, name, partial(read, path)) if name in JSON_FORMATS else read(path)


def recognise(path: Path) -> str:
    """Return the format's name, from the file's content.

    Raises:
        DataFormatError: Missing, unreadable, or none of the formats.
    """
    if path.is_dir() and (any(path.glob("*.yaml")) or any(path.glob("*.yml"))):
        return "yolo"
    with open_regular(path) as file:
        head = file.read(HEAD)
        kind = _whose_json(file)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if text[:1] in (b"{", b"[", b""):
        return kind
    line = text.splitlines()[0]
    if b"ImageID" in line and b"XMin" in line:
        return "openimages"
    if path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.suffix == ".json":
        return "coco"  # whose reader says what is wrong with it
    raise DataFormatError(path, "is no annotation file that malcli knows; name it with --format")


def _whose_json(file: BinaryIO) -> str:
    """Return whose habits a JSON file has, from its edges: the middle may be gigabytes away."""
    size = file.seek(0, 2)
    file.seek(0)
    text = file.read(EDGES[0])
    file.seek(max(file.tell(), size - EDGES[1]))
    text += file.read(EDGES[1])
    if _LVIS.search(text) or (b'"coco_url"' in text and b'"file_name"' not in text):
        return "lvis"
    return "objects365" if _OBJECTS365.search(text) else "coco"


def inputs_of(path: Path, format: str) -> list[Path]:
    """Return the files and folders that reading a format may read, images apart."""
    files = outputs_of(path, format)
    masks_csv = masks_csv_of(path) if format == "openimages" else None
    return [*files, masks_csv, *mask_folders(masks_csv)] if masks_csv else files


def outputs_of(path: Path, format: str) -> list[Path]:
    """Return the files and folders that writing a format makes."""
    if format == "parquet":
        return [path, images_path(path)]
    if format == "openimages":
        return files_of(path)
    return [folder_of(path)] if format == "yolo" else [path]


def format_of_output(path: Path, format: str | None = None) -> str:
    """Return the format to write: the one named, or that of the suffix.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if format is None and path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: cannot tell the format from '{path.suffix}'; use .json, .parquet, .csv or "
            ".yaml, or --to"
        )
    return format or SUFFIXES[path.suffix.lower()]


def reader_of(format: str) -> Reader:
    """Return the reader of a format.

    Raises:
        ConfigError: There is none.
    """
    return _of(READERS, format, "read")


def writer_of(format: str) -> Writer:
    """Return the writer of a format.

    Raises:
        ConfigError: There is none.
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
        for batch in table.batches():
            yield batch.filter(pa.array(_chosen(batch, wanted, limit)))

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


READERS: dict[str, Reader] = {
    "coco": read_coco,
    "lvis": read_lvis,
    "objects365": read_objects365,
    "openimages": read_openimages,
    "parquet": read_parquet,
    "yolo": read_yolo,
}
WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "lvis": write_lvis,
    "objects365": write_objects365,
    "openimages": write_openimages,
    "parquet": write_parquet,
    "yolo": write_yolo,
}
