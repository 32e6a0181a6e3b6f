"""Errors that a user can meet.

    MalcliError             exit 2
    ├── ConfigError         a setting, flag or recipe is wrong
    ├── DataFormatError     an annotation file or record is wrong
    ├── MissingImageError   images cannot be found
    ├── CheckpointError     weights cannot be used
    ├── InputError          an argument of a Python function is wrong
    ├── OutputError         an output exists, or is also an input
    ├── BadImage            one image cannot be used; its boxes are skipped, the job goes on
    └── RunError            exit 1: the machine failed while running (disk full, NaN loss ...)
        └── Interrupted     exit 130 / 143: SIGINT / SIGTERM, the work so far is kept

Each message is one line: what is wrong, where, and what to do. `cli.main` catches them once.
"""

from pathlib import Path


class MalcliError(Exception):
    """Base of all errors that malcli raises on purpose."""

    exit_code = 2


class ConfigError(MalcliError):
    """A setting, flag or recipe is wrong."""


class DataFormatError(MalcliError):
    """An annotation file cannot be understood.

    Args:
        path: The file.
        problem: What is wrong and what to do, without the path.
        record: The record concerned, such as `annotations[12]` or `id 7`.
        field: The key concerned.
    """

    def __init__(
        self, path: Path | str, problem: str, record: str | None = None, field: str | None = None
    ) -> None:
        """Build the one-line message."""
        place = ", ".join(part for part in (record, field and f"key '{field}'") if part)
        super().__init__(f"{path}: {place + ': ' if place else ''}{problem}")
        self.path = Path(path)
        self.record = record
        self.field = field


class MissingImageError(MalcliError):
    """None of the images can be found."""


class CheckpointError(MalcliError):
    """Weights cannot be used."""


class InputError(MalcliError, ValueError):
    """An argument of a Python function, such as an image or its boxes, is wrong."""


class OutputError(MalcliError):
    """An output exists and belongs to another job, or is also an input."""


class RunError(MalcliError):
    """The machine failed while running; what was finished is kept."""

    exit_code = 1


class Interrupted(RunError):  # noqa: N818 - a signal is no error
    """A signal ended the run; the work so far is kept.

    Args:
        message: How to resume.
        signum: The signal's number (2 or 15).
    """

    def __init__(self, message: str, signum: int) -> None:
        """Set the exit code from the signal, as shells do."""
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class BadImage(MalcliError):  # noqa: N818
    """An image cannot be used; its boxes are skipped.

    Args:
        status: `no-image` or `bad-image`.
        reason: One line, with the file.
    """

    def __init__(self, status: str, reason: str) -> None:
        """Keep both as `args`, so that it crosses processes."""
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason
