"""`malcli label`: a mask for every box."""

from typing import Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import is_first, print_json, print_rich, run_engine, start_processes
from malcli.config.label import LabelConfig


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "label", run, LabelConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Make a mask for every box."""
    from malcli.engine.label.command import label
    from malcli.engine.label.settings import resolve_label
    from malcli.engine.label.siblings import combine, hand_in

    config = resolve_label(values, common.recipe)
    if not (config.dry_run or config.merge):
        start_processes(config, together=False, combined=lambda some: tell(combine(some), common))
    result = run_engine(lambda: label(config), common.quiet)
    summary = result.to_json()
    if not hand_in(summary, result.labelled) and is_first():
        tell(summary, common)


def tell(summary: dict[str, Any], common: Common) -> None:
    """Print counts per status, then where the time went."""
    if common.json:
        print_json(summary)
        return
    from malcli.report.tables import label_table

    print_rich(label_table(summary))
