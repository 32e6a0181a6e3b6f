"""Sizes of images from their headers, for formats that state none; read once and cached.

A size that is kept is used only while the image file has the same length and time of change.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from malcli.data.boxtable.cache import FAILURES, cache_folder, entry_name
from malcli.data.images.decode import OF_THE_FILE, STORED, UPRIGHT, machine_failed, read_size
from malcli.data.images.find import image_path
from malcli.errors import BadImage, MalcliError
from malcli.files import replacing

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
