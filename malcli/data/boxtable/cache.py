"""What was read once and need not be read again, in the user's cache folder.

    <cache>/tables/<hash of the path>/   the columns of a large annotation file
    <cache>/sizes/<hash of the folder>   the sizes of images, from their headers

An entry is used only while its source is what it was: the same file, of the same size, times and
first and last bytes. The time of the last change (ctime) is the system's own: no `cp -p` or `touch`
sets it. An entry's files carry checksums, looked at once, when they are mapped. Whatever goes wrong
here, the source is read again. `MALCLI_CACHE` names another folder, or is `off`. Knows no
annotation format.
"""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from malcli.checksums import DamagedError, seal, unseal
from malcli.data.boxtable.build import assemble
from malcli.data.boxtable.spill import Spooled, map_arrow, map_numbers
from malcli.errors import MalcliError
from malcli.files import commit_folder, folder_beside, hash_file, remove_leftovers
from malcli.records import BoxTable, Problems
from malcli.report.progress import log
from malcli.version import __version__

WORTH = 32 << 20  # bytes; smaller files are read in less than a second
EDGE = 64 << 10  # bytes at each end of a file that are hashed
LIMIT = 20 << 30  # bytes of all tables; the oldest go
LAYOUT = 3  # changes with what an entry holds
FILES = ("annotations", "judged", "named")  # boxes as read, what became known later, and images
ABOUT = "table.json"
FAILURES = (OSError, ValueError, KeyError, TypeError, pa.ArrowException, RecursionError)


class StaleError(ValueError):
    """An entry was made from another file."""


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


def cached(path: Path, format: str, read: Callable[[Path | None], BoxTable]) -> BoxTable:
    """Return the table of a file: the one kept, or else the one that `read` returns, kept if large.

    Args:
        path: The annotation file.
        format: Its format.
        read: Reads it, and leaves the table's files in a folder, if it gets one; what it raises
            passes.
    """
    folder = cache_folder("tables")
    try:
        size = path.stat().st_size
        if folder is None or size < WORTH:
            return read(None)
        stamp = _stamp(path, format)
    except OSError:
        return read(None)
    entry = folder / entry_name(path)
    try:
        return _load(entry, path, stamp)
    except (FileNotFoundError, StaleError):
        pass
    except FAILURES as error:
        log(f"{path}: what the cache kept of it is damaged ({_line(error)}); reading it again")
    with contextlib.ExitStack() as stack:
        made = None
        with contextlib.suppress(OSError, MalcliError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(folder).free >= 3 * size:
                made = stack.enter_context(folder_beside(entry))
        table = read(made)
        with contextlib.suppress(*FAILURES):
            if made and _stamp(path, format) == stamp:  # it did not change while it was read
                _keep(entry, made, table, stamp)
    return table


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:80]


def _stamp(path: Path, format: str) -> list[Any]:
    """Return what an entry's source must still be."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(EDGE)
        file.seek(max(status.st_size - EDGE, 0))
        digest = hashlib.sha256(head + file.read(EDGE)).hexdigest()
    about = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return [LAYOUT, __version__, format, *about, digest]


def _load(entry: Path, path: Path, stamp: list[Any]) -> BoxTable:
    """Return a table that is kept; any failure means that there is none."""
    about = unseal((entry / ABOUT).read_bytes())
    if about["stamp"] != stamp:
        raise StaleError
    for name, digest in about["sha256s"].items():
        if hash_file(entry / name) != digest:
            raise DamagedError
    read, judged, images = (_open(entry / f"{name}.arrow") for name in FILES)
    boxes = assemble(read.table, judged.table)
    with (entry / "order").open("rb") as file:
        order, mapped = map_numbers(file)
    starts = np.load(entry / "starts.npy", mmap_mode="r")
    if (boxes.num_rows, images.table.num_rows + 1) != (order.size, starts.size):
        raise ValueError("cut short")
    os.utime(entry)
    table = BoxTable(
        path=path,
        format=about["format"],
        header=about["header"],
        images=images.table,
        boxes=boxes,
        order=order,
        starts=starts,
        problems=Problems(about["counts"], about["examples"]),
        mapped=(read.mapped, judged.mapped, images.mapped, *mapped),
    )
    table.release()  # opening touches each batch
    return table


def _open(path: Path) -> Spooled:
    with path.open("rb") as file:
        return map_arrow(file)


def _keep(entry: Path, made: Path, table: BoxTable, stamp: list[Any]) -> None:
    """Complete the folder that a table's files are in, then rename it."""
    (made / "images.arrow").unlink()  # as they were read
    with pa.ipc.new_file(made / f"{FILES[2]}.arrow", table.images.schema) as writer:
        writer.write_table(table.images)
    np.save(made / "starts.npy", table.starts)
    about = {
        "stamp": stamp,
        "sha256s": {file.name: hash_file(file) for file in sorted(made.iterdir())},
        "format": table.format,
        "header": table.header,
        "counts": table.problems.counts,
        "examples": table.problems.examples,
    }
    (made / ABOUT).write_text(seal(about), encoding="ascii")
    commit_folder(made, entry)
    _prune(entry)


def _prune(newest: Path) -> None:
    """Remove the entries that were not used for longest, until the rest is within LIMIT."""
    remove_leftovers(newest.parent)
    others = (path for path in newest.parent.iterdir() if path != newest and path.is_dir())
    entries = [path for path in others if not path.name.startswith(".")]  # one under way
    total = _bytes_of(newest)
    for entry in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        total += _bytes_of(entry)
        if total > LIMIT:
            shutil.rmtree(entry, ignore_errors=True)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
