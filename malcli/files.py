"""Outputs that appear whole or not at all.

Whatever is committed is written beside its target, synced, renamed, and the folder is synced, so
that neither a kill nor a loss of power leaves half of it. What a kill leaves beside the target,
`.NAME.HOST-PID-xxxxxxxx.tmp`, goes with the next good run of the same target.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from malcli.errors import OutputError, RunError

LFS_HEAD = b"version https://git-lfs"
MARK_WITHIN = 1024  # bytes at the head of a file of ours that hold its mark
# A sync of the machine's disks (seconds) costs less than syncs of more files than this, one by one.
MANY_FILES = 1000
LEFT_SECONDS = 86_400.0  # without a change: then another host's temporary file is left over
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL
)

# What a disk or a share that fails answers: no fault of the name that was given.
FAILING = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN)


@contextlib.contextmanager
def replacing(target: Path, *, first_wins: bool = False, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside the target; on success it is synced and takes its name.

    On failure the temporary file is removed and the target is as it was. A link is followed, and
    the mode of a file that is replaced is kept.

    Args:
        target: A regular file, or nothing yet.
        first_wins: Leave a target alone that another process made meanwhile.
        sweep: Remove what killed processes left beside the target; false where many files are
            written into one folder, which would be listed each time.

    Raises:
        OutputError: The folder cannot be written to, or the target is a device, pipe or socket.
        RunError: The disk is full or fails.
    """
    try:
        target = _followed(target)
        temporary = beside(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = _mode(target)
            if mode is not None:  # a private file is private while it is written, too
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield temporary
            if mode is not None:
                temporary.chmod(mode)
            sync(temporary)
            (_link if first_wins else os.replace)(temporary, target)
            sync(target.parent)
        finally:
            with contextlib.suppress(OSError):  # where it could not even be made
                temporary.unlink()
    except OSError as error:
        raise write_error(error, target) from error
    if sweep:
        remove_leftovers(target.parent, target.name)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target; on success it takes the target's place.

    On failure the new folder is removed and the target is as it was. The caller has made sure that
    the target may go.

    Raises:
        OutputError: It cannot be written.
        RunError: The disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, target) from error
    with folder_beside(target) as made:
        yield made
        commit_folder(made, target)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder on the target's disk that is gone afterwards, unless it was committed.

    Raises:
        OutputError: It cannot be written, or the folder that the target is in is missing.
        RunError: The disk is full.
    """
    made = beside(target)
    try:
        made.mkdir()
        yield made
    except OSError as error:
        raise write_error(error, target) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    remove_leftovers(target.parent, target.name)


def commit_folder(made: Path, target: Path) -> None:
    """Sync a folder and all that is in it, and put it in the target's place, on the same disk.

    Raises:
        OSError: It cannot be done; the target is as it was.
    """
    sync_tree(made)
    old = beside(target)
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(made, target)
    except OSError:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def beside(target: Path) -> Path:
    """Return a new hidden name in the target's folder that says which process made it.

    Random at its end: a process may write one target twice at once.
    """
    name = f".{target.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    return target.with_name(name)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of processes that are gone.

    Args:
        folder: Where they lie.
        name: Of their target; None: of any.
    """
    with contextlib.suppress(OSError):
        found = [entry for entry in os.scandir(folder) if entry.name.endswith(".tmp")]
        for entry in found:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and name in (None, match["name"]) and _is_left(entry, match):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    os.unlink(entry)


def _is_left(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    """Return whether the process that made a temporary file is gone."""
    if match["host"] != _host():
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_SECONDS
    try:
        os.kill(int(match["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # of another user
        return False
    return False


@functools.cache
def _host() -> str:
    """Return what stands for this host, or this container of it, where process ids are one's own.

    Short: names of files end at 255 bytes.
    """
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:6]


def refuse_special(target: Path) -> None:
    """Refuse a target that is a device, pipe or socket, also through links.

    Raises:
        OutputError: It is one.
    """
    with contextlib.suppress(OSError, ValueError):
        mode = target.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OutputError(
                f"{target}: is no regular file but a device, pipe or socket; name another file"
            )


def refuse_foreign_file(path: Path, mark: str, what: str) -> None:
    """Refuse to replace a file that malcli would not have made.

    Args:
        path: May be missing.
        mark: What a file of malcli holds in its first kilobyte.
        what: Such a file, for the message: `report`.

    Raises:
        OutputError: It is another file.
    """
    refuse_special(path)
    try:
        with path.open("rb") as file:
            is_ours = mark.encode() in file.read(MARK_WITHIN)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(error, path) from error
    if not is_ours:
        raise OutputError(
            f"{path}: exists and is no {what} of malcli; give another name or --overwrite"
        )


def refuse_foreign_folder(folder: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuse to replace a folder with anything in it that malcli would not have made.

    Args:
        folder: May be missing.
        is_ours: Says so of a file or link, relative to the folder.

    Raises:
        OutputError: There is such a file, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; name a folder")
    for base, _, files in os.walk(folder):
        for name in files:
            path = (Path(base) / name).relative_to(folder)
            if not is_ours(path):
                raise OutputError(
                    f"{folder}: holds {path}, which malcli did not make; name another folder"
                )


def _followed(target: Path) -> Path:
    """Return the file that a target stands for, at the end of its links."""
    refuse_special(target)
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _mode(target: Path) -> int | None:
    """Return the permissions of a file that is there."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return stat.S_IMODE(status.st_mode) & 0o777


def _link(temporary: Path, target: Path) -> None:
    """Give a file its name unless that is taken: unlike a rename, a link does not replace."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: two processes at once are rare
        os.replace(temporary, target)


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


def sync_tree(folder: Path) -> None:
    """Flush a folder and all files and folders in it to the disk; links are not followed."""
    found = [folder]
    for base, folders, names in os.walk(folder):
        found += [Path(base, name) for name in (*names, *folders)]
    found = [path for path in found if not path.is_symlink()]
    if len(found) > MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in reversed(found):
        sync(path)


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
