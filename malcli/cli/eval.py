"""`malcli eval`: masks measured against human ones, or the encoder behind them."""

from typing import Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_result, run_engine, show
from malcli.config.evaluate import EvalConfig
from malcli.settings import resolve


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "eval", run, EvalConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Score masks against human masks: mIoU, boundary IoU, mask AP."""
    config = resolve(EvalConfig, values, common.recipe, "eval").config
    from malcli.engine.eval.command import measure

    show(run_engine(lambda: measure(config), common.quiet), common.json, print_result)
