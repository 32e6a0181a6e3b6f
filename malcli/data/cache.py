"""What was read once and need not be read again, in the user's cache folder.

    <cache>/tables/<hash of the path>/   the columns of a large annotation file
    <cache>/sizes/<hash of the folder>   the sizes of images, from their headers

An entry is used only while its source is what it was: the same size, time of change, and first and
last bytes. Whatever goes wrong here, the source is read again. `MALCLI_CACHE` names another folder,
or is `off`. Knows no annotation format.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from malcli import __version__
from malcli.data.index import BATCHES_KEPT
from malcli.records import BoxTable, Problems

WORTH = 32 << 20  # bytes; smaller files are read in less than a second
EDGE = 64 << 10  # bytes at each end of a file that are hashed
LIMIT = 20 << 30  # bytes of all tables; the oldest go
LAYOUT = 1  # changes with what an entry holds
FAILURES = (OSError, ValueError, KeyError, TypeError, pa.ArrowException, RecursionError)


def cache_folder(kind: str) -> Path | None:
    """Return the folder of a kind of entries, or None if the user wants no cache."""
    named = os.environ.get("MALCLI_CACHE")
    if named is not None:
        return None if named in ("", "off", "0") else Path(named).absolute() / kind
    home = os.path.expanduser("~")
    bases = {"darwin": f"{home}/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", home)}
    base = bases.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return Path(base).absolute() / "malcli" / kind


def entry_name(path: Path) -> str:
    """Return the name of the entry of a file or folder."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def cached(path: Path, format: str, read: Callable[[], BoxTable]) -> BoxTable:
    """Return the table of a file: the one kept, or else the one that `read` returns, kept if large.

    Args:
        path: The annotation file.
        format: Its format.
        read: Reads it; what it raises passes.
    """
    folder = cache_folder("tables")
    try:
        size = path.stat().st_size
        if folder is None or size < WORTH:
            return read()
        stamp = _stamp(path, format)
    except OSError:
        return read()
    entry = folder / entry_name(path)
    with contextlib.suppress(*FAILURES):
        return _load(entry, path, stamp)
    table = read()
    with contextlib.suppress(*FAILURES):
        if _stamp(path, format) == stamp:  # it did not change while it was read
            _keep(entry, table, stamp, size)
    return table


def _stamp(path: Path, format: str) -> list[Any]:
    """Return what an entry's source must still be."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(EDGE)
        file.seek(max(status.st_size - EDGE, 0))
        digest = hashlib.sha256(head + file.read(EDGE)).hexdigest()
    return [LAYOUT, __version__, format, status.st_size, status.st_mtime_ns, digest]


def _load(entry: Path, path: Path, stamp: list[Any]) -> BoxTable:
    """Return a table that is kept; any failure means that there is none."""
    about = json.loads((entry / "table.json").read_bytes())
    if about["stamp"] != stamp:
        raise ValueError("made from another file")
    boxes, mapped = _map(entry / "boxes.arrow")
    images, _ = _map(entry / "images.arrow")
    problems = Problems(about["counts"], about["examples"])
    order, starts = (np.load(entry / f"{name}.npy", mmap_mode="r") for name in ("order", "starts"))
    if (boxes.num_rows, images.num_rows + 1) != (order.size, starts.size):
        raise ValueError("cut short")
    os.utime(entry)
    return BoxTable(
        path, about["format"], about["header"], images, boxes, order, starts, problems, (mapped,)
    )


def _map(path: Path) -> tuple[pa.Table, mmap.mmap]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapped)).read_all(), mapped


def _keep(entry: Path, table: BoxTable, stamp: list[Any], size: int) -> None:
    """Write an entry beside its place, then rename it."""
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if shutil.disk_usage(entry.parent).free < 3 * size:
        return
    about = {
        "stamp": stamp,
        "format": table.format,
        "header": table.header,
        "counts": table.problems.counts,
        "examples": table.problems.examples,
    }
    made = Path(tempfile.mkdtemp(prefix="new-", dir=entry.parent))
    try:
        for name, columns in (("boxes", table.boxes), ("images", table.images)):
            with pa.ipc.new_file(made / f"{name}.arrow", columns.schema) as writer:
                for number, batch in enumerate(columns.to_batches()):
                    writer.write_batch(batch)
                    if number % BATCHES_KEPT == 0:
                        table.release()
        np.save(made / "order.npy", table.order)
        np.save(made / "starts.npy", table.starts)
        (made / "table.json").write_text(json.dumps(about), encoding="ascii")
        shutil.rmtree(entry, ignore_errors=True)
        made.rename(entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        table.release()
    _prune(entry)


def _prune(newest: Path) -> None:
    """Remove the entries that were not used for longest, until the rest is within LIMIT."""
    entries = [path for path in newest.parent.iterdir() if path != newest and path.is_dir()]
    total = _bytes_of(newest)
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        total += _bytes_of(entry)
        if total > LIMIT:
            shutil.rmtree(entry, ignore_errors=True)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
