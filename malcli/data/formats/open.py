"""Opens annotation files of any format: recognised, read or taken from the cache, selected."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.build import build_table
from malcli.data.boxtable.cache import cached
from malcli.data.boxtable.json_stream import open_regular
from malcli.data.boxtable.spill import spool
from malcli.data.formats.registry import FORMATS, Sample, reader_of
from malcli.data.images.find import frame_of
from malcli.errors import ConfigError, DataFormatError
from malcli.records import BoxTable, category_names
from malcli.settings import nearest

HEAD = 4096  # bytes that tell a format
EDGES = (1 << 16, 1 << 20)  # bytes at the start and the end that tell whose JSON it is


def open_boxes(
    path: Path,
    format: str | None = None,
    images: Path | None = None,
    *,
    with_masks: bool = True,
    exif: str = "auto",
) -> BoxTable:
    """Read an annotation file, or what the cache kept of it.

    Args:
        path: The file, or the folder of a YOLO data set.
        format: Its format's name; None: recognised from content.
        images: The image folder, for formats that state no sizes; None: looked up.
        with_masks: Read masks that lie in files of their own (Open Images'), too: a picture a box.
        exif: The setting `--exif`: whose sizes count, of formats that state none.

    Raises:
        ConfigError: The format is unknown.
        DataFormatError: The file cannot be understood.
        MissingImageError: The format states no sizes, and none of the images is there.
    """
    name = format or recognise(path)
    read = reader_of(name)
    takes = FORMATS[name].read_takes
    if "folder" in takes:
        return cached(path, name, partial(read, path))
    options = {"images": images, "with_masks": with_masks, "frame": frame_of(exif, name)}
    return cast(BoxTable, read(path, **{key: options[key] for key in takes}))


def recognise(path: Path) -> str:
    """Return the format's name, from the content of a file or folder.

    Raises:
        DataFormatError: Missing, unreadable, or none of the formats.
    """
    sample = Sample(path) if path.is_dir() else _sample(path)
    for each in FORMATS.values():
        if each.recognises(sample):
            return each.name
    if path.is_dir():
        open_regular(path)  # says that it is a folder
    for each in FORMATS.values():
        if each.by_suffix and path.suffix in each.suffixes:
            return each.name
    raise DataFormatError(path, "is no annotation file that malcli knows; name it with --format")


def _sample(path: Path) -> Sample:
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        edges = file.read(EDGES[0])
        file.seek(max(file.tell(), size - EDGES[1]))
        return Sample(path, edges[:HEAD], edges + file.read(EDGES[1]))


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
