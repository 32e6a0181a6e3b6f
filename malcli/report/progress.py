"""How far a command is, on stderr: a bar on a terminal, a line every few seconds elsewhere.

Knows nothing of what is counted. No thread of its own, so that processes may be forked meanwhile.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

from malcli.messages import log_line

if TYPE_CHECKING:
    import rich.progress

LINE_SECONDS = 5.0  # between log lines
BAR_SECONDS = 0.1  # between redraws of the bar

_quiet = False  # of the whole process: `--quiet`
_silenced: ContextVar[bool] = ContextVar("silenced", default=False)  # of this thread or task


def set_quiet(quiet: bool) -> None:
    """Silence progress and log lines of this process, or let them speak again."""
    global _quiet
    _quiet = quiet


@contextlib.contextmanager
def silenced(quiet: bool) -> Iterator[None]:
    """Silence what this thread, or task of an event loop, does; others go on speaking."""
    before = _silenced.set(bool(quiet) or _silenced.get())
    try:
        yield
    finally:
        _silenced.reset(before)


def _is_quiet() -> bool:
    return _quiet or _silenced.get()


def log(message: str) -> None:
    """Print one line to stderr, unless `--quiet`; what could drive a terminal is escaped."""
    if not _is_quiet():
        print(log_line(message), file=sys.stderr, flush=True)


class Progress:
    """Done and total, rate and time left of a job.

    Use as a context manager; `advance` is cheap enough for every batch.

    Args:
        total: Units in the job; None if unknown.
        unit: What is counted, plural: `boxes`, `images`.
        label: What is done: `label`.
        done: Units that an earlier run finished; they count as done, not in the rate.
    """

    def __init__(self, total: int | None, unit: str, label: str, done: int = 0) -> None:
        """Start the clock; nothing is printed before the first `advance`."""
        self.total = total
        self.unit = unit
        self.label = label
        self.done = done
        self._before = done
        self._start = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        """Open the bar if stderr is a terminal."""
        self._start = self._shown = time.monotonic()
        if not _is_quiet() and sys.stderr.isatty():
            self._bar = _open_bar(self.label, self.total)
        return self

    def advance(self, n: int = 1) -> None:
        """Count n more units and show them if the last time was long enough ago."""
        self.done += n
        if time.monotonic() - self._shown >= (BAR_SECONDS if self._bar else LINE_SECONDS):
            self._show()

    def describe(self) -> str:
        """Return one line: `label: 120/400 boxes, 35.1 boxes/s, 0:00:08 left`."""
        return f"{self.label}: {self._counted()}, {self._speed()}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the last state and close the bar."""
        if self.done > self._before:
            self._show()
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._bar:
            task = self._bar.task_ids[0]
            speed = self._speed()
            self._bar.update(task, completed=self.done, counted=self._counted(), speed=speed)
            self._bar.refresh()
        else:
            log(self.describe())

    def _counted(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of} {self.unit}"

    def _speed(self) -> str:
        """Return the rate and the time left, `35.1 boxes/s, 0:00:08 left`."""
        seconds = time.monotonic() - self._start
        rate = (self.done - self._before) / max(seconds, 1e-9)
        digits = 0 if rate >= 100 else 1 if rate >= 1 else 3
        text = f"{rate:.{digits}f} {self.unit}/s"
        if self.total is not None and rate > 0:
            text += f", {clock(max(self.total - self.done, 0) / rate)} left"
        return text


def clock(seconds: float) -> str:
    """Return a duration as `h:mm:ss`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _open_bar(label: str, total: int | None) -> "rich.progress.Progress":
    """Return a started bar on stderr; stdout stays the results' own."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[counted]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
    )
    bar.add_task(label, total=total, counted="", speed="")
    bar.start()
    return bar
