"""Sizes of images from their headers, for formats that state none; read once and cached.

A size that is kept is used only while the image file has the same length and time of change.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from malcli.data.boxtable.build import build_table
from malcli.data.boxtable.cache import FAILURES, cache_folder, entry_name
from malcli.data.boxtable.columns import encode_json
from malcli.data.boxtable.spill import spool
from malcli.data.images.decode import OF_THE_FILE, STORED, UPRIGHT, machine_failed, read_size
from malcli.data.images.find import find_images, image_path
from malcli.errors import BadImage, MalcliError
from malcli.files import replacing
from malcli.records import BoxTable

WORTH = 256  # images; the headers of fewer are read at once
THREADS = 4
CHUNK = 10_000  # images asked for at a time
COLUMNS = pa.schema(
    [
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("changed", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)


class Found(NamedTuple):
    """An image file: what its header says, if it can be read.

    Attributes:
        name: Where it lies in the folder; None if it is not there.
        height: Pixels, in the frame asked for; None if it cannot be read.
        width: As height.
    """

    name: str | None
    height: int | None = None
    width: int | None = None


class _Known(NamedTuple):
    bytes: int
    changed: int
    height: int
    width: int


def read_sizes(
    root: Path,
    names: list[str],
    suffixes: tuple[str, ...] = ("",),
    threads: int = THREADS,
    frame: str = STORED,
) -> list[Found]:
    """Return where each image lies, and its size.

    Args:
        root: The image folder.
        names: File names relative to it, without suffix where `suffixes` are given.
        suffixes: Endings to try, in order.
        threads: Threads that open files.
        frame: `upright`: of the picture as EXIF shows it; others: as it is stored.

    Raises:
        RunError: The machine failed.
    """
    kept = _load(root, frame) if len(names) >= WORTH else {}
    fresh: dict[str, _Known] = {}

    def look(name: str) -> Found:
        for path, place in _places(root, name, suffixes):
            try:
                status = os.stat(path)
            except OSError as error:
                if error.errno not in OF_THE_FILE:
                    raise machine_failed(path, error) from None
                continue
            except ValueError:
                continue
            known = kept.get(place)
            if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
                try:
                    known = _Known(status.st_size, status.st_mtime_ns, *read_size(path, frame))
                except BadImage as error:
                    return Found(place if error.status == "bad-image" else None)
                fresh[place] = known
            return Found(place, known.height, known.width)
        return Found(None)

    found: list[Found] = []
    with ThreadPoolExecutor(threads, "malcli") as pool:
        for begin in range(0, len(names), CHUNK):
            found += pool.map(look, names[begin : begin + CHUNK])
    if len(names) >= WORTH and fresh:
        _keep(root, frame, kept | fresh)
    return found


def fill_sizes(
    table: BoxTable, annotations: Path, images: Path | None, exif: str = "auto"
) -> BoxTable:
    """Return the table with the sizes that its images lack, or have as 0, from their headers.

    Args:
        table: Returned as it is where no size is missing.
        annotations: The annotation file.
        images: The image folder; None: looked up.
        exif: Whose sizes count where EXIF turns a photograph, as in `frame_of`.

    Raises:
        MissingImageError: None of the images is there.
    """
    sides = [pc.fill_null(table.images[side], 0).to_numpy() for side in ("height", "width")]
    missing = np.flatnonzero(np.minimum(*sides) <= 0)
    names = table.images["file_name"].to_pylist()
    if not any(names[row] for row in missing):
        return table
    folder = find_images(annotations, table, images, exif)
    found = read_sizes(folder.root, [names[row] or "" for row in missing], frame=folder.frame)
    columns = {name: table.images[name].to_pylist() for name in ("height", "width", "extra")}
    for row, size in zip(missing.tolist(), found, strict=True):
        if size.height is None:
            continue
        extra = json.loads(columns["extra"][row] or "{}")
        rest = {key: value for key, value in extra.items() if key not in ("height", "width")}
        columns["extra"][row] = encode_json(rest) if rest else None
        columns["height"][row], columns["width"][row] = size.height, size.width
    made = table.images
    for name, values in columns.items():
        place = made.schema.get_field_index(name)
        made = made.set_column(place, name, pa.array(values, made.schema.field(name).type))
    boxes = spool(table.boxes.schema, table.batches())
    return build_table(table.path, table.format, table.header, made, boxes)


def _places(root: Path, name: str, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yield where an image may lie: its path, and its name in the folder."""
    for suffix in suffixes:
        with contextlib.suppress(BadImage):
            path = image_path(root, name + suffix)
            yield path, path.relative_to(root).as_posix()


def _load(root: Path, frame: str) -> dict[str, _Known]:
    """Return the sizes that are kept of a folder; any failure means none."""
    folder = cache_folder("upright-sizes" if frame == UPRIGHT else "sizes")
    if folder is None:
        return {}
    try:
        with pa.ipc.open_file(folder / entry_name(root)) as reader:
            table = reader.read_all().select(COLUMNS.names).cast(COLUMNS)
        names, *rest = (column.to_pylist() for column in table.columns)
        return dict(zip(names, map(_Known._make, zip(*rest, strict=True)), strict=True))
    except FAILURES:
        return {}


def _keep(root: Path, frame: str, sizes: dict[str, _Known]) -> None:
    folder = cache_folder("upright-sizes" if frame == UPRIGHT else "sizes")
    if folder is None:
        return
    with contextlib.suppress(*FAILURES, MalcliError):
        columns = [pa.array(sizes), *map(pa.array, zip(*sizes.values(), strict=True))]
        table = pa.Table.from_arrays(columns, names=COLUMNS.names).cast(COLUMNS)
        with (
            replacing(folder / entry_name(root)) as temporary,
            pa.ipc.new_file(temporary, COLUMNS) as writer,
        ):
            writer.write_table(table)
