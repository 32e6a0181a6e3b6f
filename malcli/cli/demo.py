"""`malcli demo`: the whole pipeline on drawn scenes."""

from typing import TYPE_CHECKING, Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import run_engine, show
from malcli.config.demo import DemoConfig
from malcli.settings import resolve

if TYPE_CHECKING:
    from malcli.engine.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "demo", run, DemoConfig, recipe=False)


def run(values: dict[str, Any], common: Common) -> None:
    """Draw scenes, fit a small labeler on their boxes, label, score, report: under 3 minutes."""
    config = resolve(DemoConfig, values, None, "demo").config
    from malcli.engine.demo import demo

    show(run_engine(lambda: demo(config), common.quiet), common.json, print_demo)


def print_demo(result: "DemoResult") -> None:
    """Print mIoU beside the two baselines, and where to look."""
    scores = result.to_json()
    rows = {
        "malcli, from boxes alone": scores["miou"],
        "filled box": scores["baselines"]["box"]["miou"],
        "ellipse in the box": scores["baselines"]["ellipse"]["miou"],
    }
    print(f"{'mean IoU with the exact masks':<32}{'all':>7}{'small':>8}{'medium':>8}{'large':>8}")
    for name, miou in rows.items():
        cells = [_number(miou[size]) for size in ("all", "small", "medium", "large")]
        print(f"{name:<32}{cells[0]:>7}{cells[1]:>8}{cells[2]:>8}{cells[3]:>8}")
    print(f"\n{result.seconds:.0f} s; masks, run and drawn scenes are in {result.out}")
    print(f"open {result.report} in a browser to see them")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
