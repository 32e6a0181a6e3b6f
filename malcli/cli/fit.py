"""`malcli fit`: train a labeler from boxes, and `--explain` of its settings."""

import dataclasses
from pathlib import Path
from typing import Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_json, print_result, run_engine, show, start_processes
from malcli.config.fit import FitConfig
from malcli.messages import printable
from malcli.settings import PRESETS, given_settings, resolve

EXPLAIN = "Print every setting with its value, origin and source, and stop."


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "fit", run, FitConfig, switches={"explain": EXPLAIN})


def run(values: dict[str, Any], common: Common) -> None:
    """Train a labeler from boxes alone."""
    if values.pop("explain"):
        explain(values, common)
        return
    config = resolve(FitConfig, values, common.recipe, "fit").config
    start_processes(config, together=True)
    from malcli.engine.fit.command import fit

    show(run_engine(lambda: fit(config), common.quiet), common.json, print_result)


def explain(values: dict[str, Any], common: Common) -> None:
    """Print every setting of a fit; works without `--data`."""
    settings = explained(values, common.recipe)
    if common.json:
        print_json({"command": "fit", "settings": settings})
        return
    rows = [("setting", "value", "origin", "source")]
    for name, one in settings.items():
        value = "-" if one["value"] is None else str(one["value"])
        rows.append((name, value, one["origin"], one["source"]))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[3]])))


def explained(values: dict[str, Any], recipe: str | None) -> dict[str, dict[str, Any]]:
    """Return name -> value, origin (default, recipe or flag) and who says so.

    Raises:
        ConfigError: As `resolve`, but a missing `--data` is no error here.
    """
    given, origin = given_settings(FitConfig, values, recipe, "fit")
    settings = {}
    for item in dataclasses.fields(FitConfig):
        is_open = item.default is dataclasses.MISSING and item.name not in given
        value = None if is_open else given.get(item.name, item.default)
        settings[item.name] = {
            "value": str(value) if isinstance(value, Path) else value,
            "origin": "not given" if is_open else origin[item.name],
            "source": source_of(item, value),
        }
    return settings


def source_of(item: "dataclasses.Field[Any]", value: object) -> str:
    """Return who has this value, and what paper and released code have where they differ."""
    presets = {"paper": PRESETS["paper"]["fit"], "released code": PRESETS["released"]["fit"]}
    if not any(item.name in preset for preset in presets.values()):
        return str(item.metadata["source"]) if value == item.default else "yours"
    theirs = {who: preset.get(item.name, item.default) for who, preset in presets.items()}
    same = " and ".join(who for who in theirs if theirs[who] == value)
    other = [f"{who}: {its}" for who, its in theirs.items() if its != value]
    return "; ".join([same or "malcli", *other])
