"""`malcli retention`: phase 2 on human masks and on malcli's."""

from typing import Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_result, run_engine, show, start_processes
from malcli.config.retention import RetentionConfig
from malcli.settings import resolve


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "retention", run, RetentionConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Train the same student on human masks and on malcli's, and compare their AP."""
    config = resolve(RetentionConfig, values, common.recipe, "retention").config
    start_processes(config, together=True)
    from malcli.engine.retention.command import retention

    show(run_engine(lambda: retention(config), common.quiet), common.json, print_result)
