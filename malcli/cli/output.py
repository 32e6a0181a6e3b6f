"""What goes where: results on stdout, everything else on stderr, one line for an error."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from malcli.config.shared import ImageConfig
from malcli.messages import one_line
from malcli.report import progress
from malcli.report.shown import PAGE_WIDTH, Shown, console_of

if TYPE_CHECKING:
    from rich.console import RenderableType


class Result(Protocol):
    """What an engine function returns."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""


AnyResult = TypeVar("AnyResult", bound=Result)


def run_engine(work: Callable[[], AnyResult], quiet: bool) -> AnyResult:
    """Run an engine function with stdout kept free of what libraries print.

    Of several processes of a job, only the first shows progress.
    """
    progress.set_quiet(quiet or not is_first())
    with stdout_kept():
        return work()


def is_first() -> bool:
    """Return whether this is the first, or the only, process of a job."""
    return os.environ.get("RANK", "0") == "0"


def start_processes(
    config: ImageConfig,
    together: bool,
    combined: Callable[[list[dict[str, Any]]], None] | None = None,
) -> None:
    """Run the command in `num_processes` processes, where that is wanted, and exit with them.

    Args:
        config: Its `num_processes`; processes that have a rank are left alone.
        together: One that fails ends the others too.
        combined: Gets what the processes handed in, if any did; without it the first one prints.
    """
    if config.num_processes > 1 and "RANK" not in os.environ:
        from malcli.engine.label.siblings import RESULTS
        from malcli.engine.machine.processes import start_processes as start

        if combined is None:
            raise typer.Exit(start(config.num_processes, sys.argv[1:], together))
        with tempfile.TemporaryDirectory(prefix="malcli-") as folder:
            code = start(config.num_processes, sys.argv[1:], together, {RESULTS: folder})
            found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
        if found:
            combined(found)
        raise typer.Exit(code)


def show(result: AnyResult, as_json: bool, table: Callable[[AnyResult], None]) -> None:
    """Print a result on stdout, as one JSON object or for people; once for all processes."""
    if not is_first():
        return
    if as_json:
        print_json(result.to_json())
    else:
        table(result)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object; ASCII, so that no terminal and no file name can spoil it."""
    print(json.dumps(value, allow_nan=False))


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send everything that is written to stdout to stderr, also by C code and child processes."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # closed by the shell: nothing to keep
            sys.stdout.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def print_error(message: object) -> None:
    """Print `malcli: error: ...` on stderr, on one line."""
    with contextlib.suppress(OSError):
        print(f"malcli: error: {one_line(message)}", file=sys.stderr, flush=True)


def print_rich(renderable: "RenderableType") -> None:
    """Print a table on stdout; a pipe gets whole columns."""
    console_of(sys.stdout, None if sys.stdout.isatty() else PAGE_WIDTH).print(renderable)


def print_result(result: Shown) -> None:
    """Print a result's table on stdout, or its values, each on a line."""
    table = result.table()
    if table is None:
        print(result)
    else:
        print_rich(table)
