"""Folders that appear whole or not at all, and whether a folder is one that malcli made."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from malcli.errors import OutputError
from malcli.files import beside, sync, write_error


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target; on success it takes the target's place.

    On failure the new folder is removed and the target is as it was. The caller has made sure that
    the target may go.

    Raises:
        OutputError: It cannot be written.
        RunError: The disk is full.
    """
    made, old = beside(target), beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made.mkdir()
        yield made
        if target.exists():
            target.rename(old)
        made.rename(target)
        sync(target.parent)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise write_error(error, target) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(folder: Path, is_ours: Callable[[Path], bool]) -> None:
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
