"""Tells a failing machine from missing images: what became of the reads in an image folder.

A share that is unmounted, or a disk that dies, looks like thousands of missing files. Reading such
a folder to its end would skip every box for good. Knows nothing of boxes and jobs.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from malcli.errors import BadImage, RunError

IN_A_ROW = 100  # images not there, after others were, that stop a job
ENOUGH = 1000  # images that a share of failures is judged by
FOLDERS = 1000  # sub-folders that are remembered
RESUME = "what is finished is kept; start the same command again once they can be read"


@dataclass
class Health:
    """What became of the reads in a folder so far, of this process.

    Attributes:
        root: The folder.
        limit: Share of images that may fail before a job stops; 1 and above: all of them, and any
            number in a row.
        folders: Device and inode of the root, and of sub-folders that an image was read from.
        read: Images that could be read.
        failed: Images that could not.
        row: Images in a row that were not there.
    """

    root: Path | None = None
    limit: float = 1.0
    folders: dict[str, tuple[int, int]] = field(default_factory=dict)
    read: int = 0
    failed: int = 0
    row: int = 0

    @classmethod
    def of(cls, root: Path, limit: float) -> "Health":
        """Return the state of a folder that nothing was read from yet."""
        health = cls(root, limit)
        health._remember(str(root))
        return health

    def good(self, path: Path) -> None:
        """Count an image that could be read."""
        self.read += 1
        self.row = 0
        if str(path.parent) not in self.folders and len(self.folders) < FOLDERS:
            self._remember(str(path.parent))

    def bad(self, path: Path, error: BadImage) -> None:
        """Count an image that could not be read.

        Raises:
            RunError: It is the machine's failure, or there are too many.
        """
        self.failed += 1
        self.row = self.row + 1 if error.status == "no-image" else 0
        if self.root is None:
            return
        if error.status == "no-image":
            for folder in (str(self.root), str(path.parent)):
                if folder in self.folders and _identity(folder) != self.folders[folder]:
                    raise RunError(
                        f"{folder}: the image folder is gone or another one has taken its place, "
                        f"after {self.read} images could be read; {RESUME}"
                    )
        if self.limit >= 1:
            return
        if self.row >= IN_A_ROW and self.read:
            raise RunError(
                f"{self.root}: {self.row} images in a row are not there, after {self.read} could "
                f"be read; {RESUME}, or with --max-failures 1 if they are missing for good"
            )
        if self.read + self.failed >= ENOUGH and self.failed > self.limit * (
            self.read + self.failed
        ):
            raise RunError(
                f"{self.root}: {self.failed} of {self.read + self.failed} images cannot be read "
                f"(last: {error}), more than --max-failures {self.limit:g}; {RESUME}, or with a "
                "higher --max-failures to have their boxes skipped"
            )

    def _remember(self, folder: str) -> None:
        found = _identity(folder)
        if found is not None:
            self.folders[folder] = found


def _identity(folder: str) -> tuple[int, int] | None:
    """Return a folder's device and inode; None if it cannot be entered."""
    try:
        status = os.stat(os.path.join(folder, "."))
    except OSError:
        return None
    return status.st_dev, status.st_ino
