"""Outputs that appear whole or not at all: written beside the target, synced, then renamed."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from malcli.errors import OutputError, RunError

# What a disk or a share that fails answers: no fault of the name that was given.
FAILING = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside the target; on success it is synced and takes its name.

    On failure the temporary file is removed and the target is as it was.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full or fails.
    """
    temporary = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise write_error(error, target) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not even be made
            temporary.unlink()


def beside(target: Path) -> Path:
    """Return a new hidden name in the target's folder.

    Random, not the process id: several hosts may share the folder.
    """
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: OSError, target: Path) -> OutputError | RunError:
    """Return the one-line error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(_existing(target)).free / 1e6
        return RunError(
            f"{target}: no space left to write ({free:.0f} MB free); make room and start the same "
            f"command again"
        )
    if error.errno in FAILING:
        return RunError(
            f"{target}: the disk fails ({error.strerror or error}); what was written before is "
            f"kept; start the same command again once it works"
        )
    return OutputError(f"{target}: cannot be written ({error.strerror or error}); choose another")


def _existing(path: Path) -> Path:
    """Return the nearest folder above path that exists."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths name one file, through links, too."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
