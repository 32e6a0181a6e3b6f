"""`malcli eval`: masks measured against human ones, or the encoder behind them."""

from typing import TYPE_CHECKING, Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_rich, run_engine, show
from malcli.config.evaluate import EvalConfig
from malcli.settings import resolve

if TYPE_CHECKING:
    from malcli.engine.eval.encoder.attention import AttentionResult
    from malcli.engine.eval.encoder.clustering import ClusteringResult
    from malcli.engine.eval.masks import EvalResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "eval", run, EvalConfig)


def run(values: dict[str, Any], common: Common) -> None:
    """Score masks against human masks: mIoU, boundary IoU, mask AP."""
    config = resolve(EvalConfig, values, common.recipe, "eval").config
    from malcli.engine.eval.command import measure

    show(run_engine(lambda: measure(config), common.quiet), common.json, print_eval)


def print_eval(result: "EvalResult | ClusteringResult | AttentionResult") -> None:
    """Print the scores, or where the page of attention maps is."""
    from malcli.report.encoders import attention_lines, clustering_table
    from malcli.report.tables import eval_tables

    shown = result.to_json()
    if "attention" in shown:
        print_rich(attention_lines(shown))
    else:
        print_rich(clustering_table(shown) if "clustering" in shown else eval_tables(shown))
