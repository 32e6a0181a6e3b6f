"""How settings work: default < recipe < flag, with checks, presets and sources.

Settings are fields of the frozen dataclasses in `config`; a field's metadata says its help, source
and limits, and the command line is made from it, so that a flag, a recipe key and a keyword
argument are one thing. This module reads no file but recipes.
"""

import dataclasses
import difflib
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from malcli.errors import ConfigError
from malcli.messages import short as shown

LONGEST_RECIPE = 1 << 20  # bytes

Identity = Literal["result", "selection", "input", "measure", "free", "file", "private"]


def setting(
    default: Any = dataclasses.MISSING,  # noqa: ANN401
    help: str = "",
    *,
    identity: Identity,
    panel: str = "Options",
    source: str = "malcli",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    short: str = "",
    mode: str = "",
) -> Any:  # noqa: ANN401
    """Return a dataclass field that carries all that is known of a setting.

    Args:
        default: The value when neither recipe nor flag sets it; missing means required.
        help: One line, with the unit.
        identity: What another value makes of a job, a run or a study that was begun.
            `result`: another one. `selection`: another one, of the same pace: which records.
            `input`: another one if the file's content differs, wherever it lies. `measure`: the
            same one, measured again. `free`: the same one. `file`: the same one, and a checkpoint
            says the file's name alone. `private`: the same one, and no checkpoint that people pass
            on says it: folders, and what to do with what is there.
        panel: The heading under which `--help` lists it.
        source: Where the default comes from.
        low: The smallest value allowed.
        high: The largest value allowed.
        choices: The values allowed, for strings.
        short: A one-letter flag.
        mode: The form of the command that alone takes it; empty: every form.
    """
    if identity not in typing.get_args(Identity):
        raise ValueError(f"identity {identity!r} is none of {typing.get_args(Identity)}")
    meta = {
        "identity": identity,
        "help": help,
        "panel": panel,
        "source": source,
        "low": low,
        "high": high,
        "choices": choices,
        "short": short,
        "mode": mode,
    }
    return field(default=default, metadata=meta)


result = functools.partial(setting, identity="result")  # most settings decide what is made


def as_in(kind: type, name: str, **changes: Any) -> Any:  # noqa: ANN401
    """Return a field like that of another config; `changes` are arguments of `setting`."""
    item = next(one for one in dataclasses.fields(kind) if one.name == name)
    return setting(**{"default": item.default, **item.metadata, **changes})


def names_of(kind: type, *identities: Identity) -> tuple[str, ...]:
    """Return the settings of a config that have one of these identities, in its order."""
    fields = dataclasses.fields(kind)
    return tuple(item.name for item in fields if item.metadata["identity"] in identities)


def names_of_mode(kind: type, mode: str) -> tuple[str, ...]:
    """Return the settings of a config that one form of its command alone takes."""
    return tuple(item.name for item in dataclasses.fields(kind) if item.metadata["mode"] == mode)


_PAPER_LABEL = {"network": "student", "margin": 0.6, "tta": "none", "refine": "none"}
_RELEASED_LABEL = {"threshold": "0.1", **_PAPER_LABEL, "geometry": "released"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "fit": {
            "expansion": "paper",
            "border": "reflect",
            "key_pool": "max",
            "key_layers": 1,
            "upsample_before": 3,
            "mil_form": "joint",
            "mil_ramp": 0,
            "crf_ramp": 0,
            "crf_zeta": 0.5,
            "crf_omega": 2.0,
            "crf_self": False,
            "crf_image": "clean",
            "loss_size": "crop",
            "min_box_area": 0.0,
        },
        "label": _PAPER_LABEL,
        "eval": _PAPER_LABEL,
    },
    "released": {
        "fit": {
            "expansion": "released",
            "border": "wrap",
            "keep_crowd": True,
            "lr_timing": "after",
            "teacher_start": "independent",
            "crf_image": "jittered",
            "crf_epsilon": 1e-6,
            "stem": "convolutional",
            "position": "released",
            "size_classes": "strict",
            "box_mask": "inclusive",
            "mil_norm": 1e-4,
        },
        "label": _RELEASED_LABEL,
        "eval": _RELEASED_LABEL,
    },
}


@dataclass(frozen=True)
class Resolved:
    """Settings with the origin of each: `default`, the recipe's name or `flag`."""

    config: Any
    origin: dict[str, str]


def resolve(
    kind: type,
    flags: Mapping[str, Any],
    recipe: str | None = None,
    command: str = "",
    implied: str | None = None,
) -> Resolved:
    """Merge defaults, recipe and flags into a checked config: default < recipe < flag.

    The arguments are those of `given_settings`.

    Raises:
        ConfigError: As `given_settings`, or a setting that must be given is not.
    """
    values, origin = given_settings(kind, flags, recipe, command, implied)
    for item in dataclasses.fields(kind):
        if item.name not in values and item.default is dataclasses.MISSING:
            raise ConfigError(f"{command}: --{item.name.replace('_', '-')} is required")
    return Resolved(kind(**values), origin)


def given_settings(
    kind: type,
    flags: Mapping[str, Any],
    recipe: str | None = None,
    command: str = "",
    implied: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings that flags and recipe give, checked, and the origin of every setting.

    Args:
        kind: A config dataclass.
        flags: Values that the user gave; None means not given.
        recipe: A preset's name or a TOML file.
        command: The command's name, which the recipe must be for.
        implied: A preset that the user did not name; the recipe beats it.

    Raises:
        ConfigError: An unknown key, a value of the wrong type or out of its limits.
    """
    values: dict[str, Any] = {}
    origin = {item.name: "default" for item in dataclasses.fields(kind)}
    for source in filter(None, (implied, recipe)):
        for key, value in read_recipe(source, command).items():
            name = key.replace("-", "_")
            if name not in origin:
                raise ConfigError(f"{source}: unknown key '{key}'{nearest(name, origin)}")
            values[name] = value
            origin[name] = f"recipe {source}"
    for name, value in flags.items():
        if name not in origin:
            raise ConfigError(f"unknown option '{name}'{nearest(name, origin)}")
        if value is not None:
            values[name] = value
            origin[name] = "flag"
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if item.name in values:
            values[item.name] = _checked(item, hints[item.name], values[item.name])
    return values, origin


def read_recipe(recipe: str, command: str) -> dict[str, Any]:
    """Return the settings of a preset (`paper`, `released`) or a TOML file, for one command.

    Raises:
        ConfigError: The file is missing, not TOML, or for another command.
    """
    if recipe in PRESETS:
        return dict(PRESETS[recipe].get(command, {}))
    path = Path(recipe)
    try:
        text = _recipe_text(path)
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"{recipe}: no such recipe{nearest(recipe, PRESETS)}; give a TOML file or one of "
            f"{', '.join(PRESETS)}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{recipe}: not a recipe: its values are nested too deeply") from None
    except (OSError, ValueError) as error:  # ValueError also of numbers of thousands of digits
        raise ConfigError(f"{recipe}: not a readable TOML file: {error}") from None
    meant = values.pop("command", None)
    if meant != command:
        raise ConfigError(
            f"{recipe}: says command = {shown(meant)}, but this is '{command}'; the first line of "
            f'a recipe is command = "{command}"'
        )
    return values


def _recipe_text(path: Path) -> str:
    """Return a recipe's text; a pipe would be waited for, a device never end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        data = file.read(LONGEST_RECIPE + 1)
    if len(data) > LONGEST_RECIPE:
        raise OSError(f"it is longer than {LONGEST_RECIPE >> 20} MB")
    return data.decode("utf-8")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""


def parse_thresholds(text: str, what: str = "--threshold") -> tuple[float, float, float]:
    """Return probability thresholds for small, medium and large boxes from `0.5` or `0.4,0.5,0.6`.

    Raises:
        ConfigError: Not one or three numbers in [0, 1).
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(0 <= number < 1 for number in numbers):
        raise ConfigError(f"{what} {text!r}: give one number in [0, 1), three by box size, or auto")
    small, medium, large = numbers * (3 // len(numbers))
    return small, medium, large


def to_plain(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a config as plain values that TOML and JSON can hold; None is left out."""
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is not None:
            plain[item.name] = str(value) if isinstance(value, Path) else value
    return plain


def to_public(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a config as plain values that may be passed on: files by name, no private setting."""
    named = names_of(type(config), "file")
    private = names_of(type(config), "private")
    public: dict[str, Any] = {}
    for name, value in to_plain(config).items():
        if name not in private:
            is_file = name in named or isinstance(getattr(config, name), Path)
            public[name] = Path(value).name if is_file else value
    return public


def to_toml(config: Any, command: str) -> str:  # noqa: ANN401
    """Return a config as a TOML recipe for the command."""
    lines = [f'command = "{command}"']
    for key, value in to_plain(config).items():
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, str):
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        else:
            text = repr(value)
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def flag_of(name: str) -> str:
    """Return a field's long flag: `crop_size` is `--crop-size`, `from_` is `--from`."""
    return "--" + name.strip("_").replace("_", "-")


def value_type(hint: Any) -> type:  # noqa: ANN401
    """Return the plain type of a field's annotation: `int | None` is int."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.cast(type, hint)


def _checked(item: dataclasses.Field[Any], hint: Any, value: Any) -> Any:  # noqa: ANN401
    """Return the value in the field's type, or raise ConfigError."""
    flag = flag_of(item.name)
    wanted = value_type(hint)
    if wanted is Path and isinstance(value, str | Path):
        if not str(value):
            raise ConfigError(f"{flag}: the path is empty")
        return Path(value)
    if type(value) is int and abs(value) >= 2**63:
        raise ConfigError(f"{flag}: {shown(value)} is too large")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{flag}: {shown(value)} is not of type {wanted.__name__}")
    meta = item.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(
            f"{flag}: unknown value {shown(value)}{nearest(str(value), meta['choices'])} "
            f"(one of {', '.join(meta['choices'])})"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag}: {value} is not a finite number")
    if meta["low"] is not None and value < meta["low"]:
        raise ConfigError(f"{flag}: {value} is below {meta['low']:g}")
    if meta["high"] is not None and value > meta["high"]:
        raise ConfigError(f"{flag}: {value} is above {meta['high']:g}")
    return value
