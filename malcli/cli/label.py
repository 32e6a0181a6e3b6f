"""`malcli label`: a mask for every box."""

from typing import TYPE_CHECKING, Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_rich, run_engine, show, start_processes
from malcli.config import LabelConfig

if TYPE_CHECKING:
    from malcli.engine.label import LabelResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "label", run, LabelConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Make a mask for every box."""
    from malcli.engine.label import label
    from malcli.engine.survey import resolve_label

    config = resolve_label(values, common.recipe)
    if not (config.dry_run or config.merge):
        start_processes(config, together=False)
    show(run_engine(lambda: label(config), common.quiet), common.json, print_label)


def print_label(result: "LabelResult") -> None:
    """Print counts per status, then where the time went."""
    from malcli.report.tables import label_table

    print_rich(label_table(result.to_json()))
