"""`malcli eval`: masks measured against human ones."""

from typing import TYPE_CHECKING, Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_rich, run_engine, show
from malcli.config import EvalConfig
from malcli.settings import resolve

if TYPE_CHECKING:
    from malcli.engine.evaluate import EvalResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "eval", run, EvalConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Score masks against human masks: mIoU, boundary IoU, mask AP."""
    config = resolve(EvalConfig, values, common.recipe, "eval").config
    from malcli.engine.evaluate import evaluate

    show(run_engine(lambda: evaluate(config), common.quiet), common.json, print_eval)


def print_eval(result: "EvalResult") -> None:
    """Print the scores."""
    from malcli.report.tables import eval_tables

    print_rich(eval_tables(result.to_json()))
