"""Columns in files, written batch by batch and memory-mapped.

Knows columns, not what they mean.
"""

import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from malcli.errors import RunError
from malcli.records import BATCHES_KEPT, release


class Spooled(NamedTuple):
    """Columns in a file, memory-mapped."""

    table: pa.Table
    mapped: mmap.mmap

    def batches(self, *names: str) -> Iterator[pa.RecordBatch]:
        """Yield the batches of some columns, or all, that are not empty, in bounded memory."""
        table = self.table.select(names) if names else self.table
        for number, batch in enumerate(table.to_batches()):
            if batch.num_rows:
                yield batch
            if number % BATCHES_KEPT == 0:
                release(self.mapped)


@contextlib.contextmanager
def enough_space(folder: Path | None) -> Iterator[None]:
    """Say in one line what failed to write columns to a folder, or to that of temporary files.

    Raises:
        RunError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder or tempfile.gettempdir()}: cannot hold the columns of the annotations "
            f"({error.strerror or error}); set {'MALCLI_CACHE' if folder else 'TMPDIR'} to a "
            "folder with more space"
        ) from error


@contextlib.contextmanager
def new_file(folder: Path | None, name: str) -> Iterator[BinaryIO]:
    """Open a new file: of a name in a folder, or of none, gone when nobody uses it."""
    with enough_space(folder):
        if folder:
            with (folder / name).open("x+b") as file:
                yield file
        else:
            with tempfile.TemporaryFile(prefix="malcli-") as file:
                yield file


def spool(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    folder: Path | None = None,
    name: str = "",
) -> Spooled:
    """Write batches to a file and return them memory-mapped.

    Args:
        schema: Theirs.
        batches: Written one by one.
        folder: Where the file stays; None: it has no name, and its space is free again when the
            table is gone.
        name: Of the file in the folder, without suffix.

    Raises:
        RunError: The disk is full.
    """
    with new_file(folder, f"{name}.arrow") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        return map_arrow(file)


def map_arrow(file: BinaryIO) -> Spooled:
    """Return the columns of an Arrow file."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Spooled(pa.ipc.open_file(pa.py_buffer(mapped)).read_all(), mapped)


def map_numbers(file: BinaryIO) -> tuple[NDArray[np.int64], tuple[mmap.mmap, ...]]:
    """Return the numbers of a file."""
    if not file.seek(0, 2):
        return np.zeros(0, dtype=np.int64), ()
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, "<i8"), (mapped,)
