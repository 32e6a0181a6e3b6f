"""The `malcli` command: its commands, and the one place where errors become exit codes.

0 done; 1 failed while running; 2 wrong usage or input; 130 / 143 interrupted.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from malcli.cli import convert, demo, doctor, eval, fit, label, retention
from malcli.cli.output import print_error
from malcli.errors import MalcliError
from malcli.messages import printable
from malcli.version import __version__

USERS_OWN = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Commands(TyperGroup):
    """The group of all commands, with malcli's errors and exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Run the command line and exit."""
        given = kwargs.get("args") or (args[0] if args else None) or sys.argv[1:]
        kwargs["standalone_mode"] = False
        sys.exit(exit_code_of(lambda: super(Commands, self).main(*args, **kwargs), given))


app = typer.Typer(
    cls=Commands,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        print(f"malcli {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def commands(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Boxes in, instance masks out: the Mask Auto-Labeler (CVPR 2023)."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


for module in (fit, label, eval, retention, convert, demo, doctor):
    module.register(app)


def main() -> NoReturn:
    """Run the command line on the process's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what the locale cannot say
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _on_sigterm)
    app(prog_name="malcli")
    raise AssertionError("Commands.main exits")


def exit_code_of(run: Callable[[], Any], arguments: list[str]) -> int:
    """Run a command and return its exit code, with one line on stderr for an error."""
    try:
        code = run()
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BaseException as error:
        if "--debug" in arguments:
            lines = traceback.format_exc().splitlines()
            print(*map(printable, lines), sep="\n", file=sys.stderr)
        return _report(error, arguments)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, arguments: list[str]) -> int:
    """Print an error's line and return the exit code."""
    if isinstance(error, MalcliError):
        print_error(error)
        return error.exit_code
    if hasattr(error, "format_message"):  # Typer's usage errors: their class moved with versions
        print_error(_usage_line(error, arguments))
        return 2
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit must not fail again
        return 1
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        print_error(f"{_place(error)}: disk full; free some space and run the same command again")
        return 1
    if isinstance(error, USERS_OWN) and error.filename is not None:
        print_error(f"{_place(error)}: {error.strerror}")
        return 2
    if isinstance(error, MemoryError):
        print_error("out of memory; take fewer --workers or a smaller --batch-size")
        return 1
    print_error(f"unexpected {type(error).__name__}: {error} (--debug shows the trace)")
    return 1


def _place(error: OSError) -> str:
    return str(error.filename2 or error.filename or "output")


def _usage_line(error: Any, arguments: list[str]) -> str:  # noqa: ANN401
    """Return a usage error with the nearest name and where to read on."""
    near = list(getattr(error, "possibilities", None) or ())
    text = error.message if near else error.format_message()
    hint = f"; did you mean '{near[0]}'?" if near else ""
    known = {command.name for command in app.registered_commands}
    command = next((f" {one}" for one in arguments[:1] if one in known), "")
    return f"{str(text).rstrip('.')}{hint} (see 'malcli{command} --help')"


def _on_sigterm(signum: int, frame: object) -> None:
    """Unwind as SIGINT does, so that temporary files go; commands that resume replace this."""
    sys.exit(128 + signum)
