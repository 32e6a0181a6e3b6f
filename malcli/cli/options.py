"""Typer options made from the fields of a config dataclass, so that each setting is said once.

Every default is None here: only `config.resolve` knows defaults, so that a flag beats a recipe and
a recipe beats a default.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from malcli.settings import PRESETS, flag_of, value_type

PANEL = "Messages and recipes"
UNDO = "undo_"  # + field: the hidden `--no-...` of a switch
_REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class Common:
    """Flags that every command shares and that are no settings of its work."""

    recipe: str | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False


Run = Callable[[dict[str, Any], Common], None]


def add_command(
    app: typer.Typer,
    name: str,
    run: Run,
    kind: type | None = None,
    *,
    positional: tuple[str, ...] = (),
    recipe: bool = True,
    switches: Mapping[str, str] | None = None,
) -> None:
    """Register a command whose flags are the fields of a config.

    Args:
        app: The application.
        name: The command's name.
        run: Gets the values (None: not given) and the common flags; its docstring is the help.
        kind: The config dataclass; None for a command without settings.
        positional: Fields that are arguments, in order.
        recipe: Whether there is `--recipe`.
        switches: Further flags, off by default: name -> help.
    """
    fields = {item.name: item for item in dataclasses.fields(kind)} if kind else {}
    hints = typing.get_type_hints(kind) if kind else {}
    parameters = [_argument(fields.pop(key), hints[key]) for key in positional]
    required_first = sorted(fields.values(), key=lambda item: item.default is not _REQUIRED)
    for item in required_first:
        parameters += _option(item, value_type(hints[item.name]))
    parameters += [_switch(key, text) for key, text in (switches or {}).items()]
    parameters += _common(recipe)
    app.command(name, help=inspect.getdoc(run))(_function(name, run, parameters))


def _function(name: str, run: Run, parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Return a function with the given signature, which Typer reads, that calls `run`."""
    shared = {item.name for item in dataclasses.fields(Common)}

    def command(**values: Any) -> None:  # noqa: ANN401
        for key in [key for key in values if key.startswith(UNDO)]:
            if values.pop(key):
                values[key.removeprefix(UNDO)] = False
        common = Common(**{key: values.pop(key) for key in shared & values.keys()})
        run(values, common)

    command.__name__ = name
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _option(item: dataclasses.Field[Any], kind: type) -> list[inspect.Parameter]:
    """Return the option of a field; a switch also has `--no-...`, to undo what a recipe sets."""
    flag = flag_of(item.name)
    short = [f"-{item.metadata['short']}"] if item.metadata["short"] else []
    choices = item.metadata["choices"]
    info = typer.Option(
        flag,
        *short,
        help=_help(item, kind),
        rich_help_panel=item.metadata["panel"],
        autocompletion=(lambda: list(choices)) if choices else None,
    )
    parameters = [_parameter(item.name, kind, info)]
    if kind is bool:
        undo = typer.Option(f"--no-{flag[2:]}", hidden=True)
        parameters.append(_parameter(UNDO + item.name, kind, undo))
    return parameters


def _argument(item: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:  # noqa: ANN401
    """Return the positional argument of a field; `resolve` says when it is missing."""
    info = typer.Argument(metavar=item.name.upper(), help=_help(item, value_type(hint)))
    return _parameter(item.name, value_type(hint), info)


def _help(item: dataclasses.Field[Any], kind: type) -> str:
    """Return a field's help with its choices and default, escaped for rich."""
    text = str(item.metadata["help"])
    if item.metadata["choices"]:
        text = f"{text.rstrip('.')}: {', '.join(item.metadata['choices'])}."
    if item.default is _REQUIRED:
        text += " [required]"
    elif kind is bool:
        undo = "; --no-" + flag_of(item.name)[2:] if item.default else ""
        text += f" [default: {'on' if item.default else 'off'}{undo}]"
    elif item.default is not None:
        text += f" [default: {item.default}]"
    elif "default:" not in text:
        text += " [default: none]"
    return escape(text)


def _common(recipe: bool) -> list[inspect.Parameter]:
    """Return the parameters of `Common`."""
    presets = " or ".join(PRESETS)
    info = typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help=escape(f"Settings from a preset ({presets}) or a TOML file. [default: none]"),
        rich_help_panel=PANEL,
    )
    return ([_parameter("recipe", str, info)] if recipe else []) + [
        _switch("json", "Print one JSON object on stdout and nothing else there."),
        _switch("quiet", "No progress and no log on stderr."),
        _switch("debug", "Show the trace of an error."),
    ]


def _switch(name: str, text: str) -> inspect.Parameter:
    """Return a flag that is off by default."""
    info = typer.Option(
        flag_of(name),
        help=escape(f"{text} [default: off]"),
        rich_help_panel=PANEL,
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, info]
    )


def _parameter(name: str, kind: type, info: Any) -> inspect.Parameter:  # noqa: ANN401
    """Return a keyword parameter that is None when the user does not give it."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )
