"""`malcli convert`: one annotation format into another, or released checkpoints into malcli's."""

from typing import Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import print_result, run_engine, show
from malcli.config.convert import ConvertConfig
from malcli.errors import ConfigError
from malcli.settings import resolve


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "convert", run, ConvertConfig, positional=("src", "dst"))


def run(values: dict[str, Any], common: Common) -> None:
    """Convert annotations from one format to another, or a released checkpoint into malcli's."""
    if not common.recipe and not (values["src"] and values["dst"]):
        raise ConfigError("convert: give both SRC and DST (see 'malcli convert --help')")
    config = resolve(ConvertConfig, values, common.recipe, "convert").config
    from malcli.engine.convert.command import convert

    show(run_engine(lambda: convert(config), common.quiet), common.json, print_result)
