"""Every recipe loads, and says its command, hardware and result before its settings."""

import tomllib
from pathlib import Path

import pytest

from malcli.config import ConvertConfig, EvalConfig, FitConfig, LabelConfig
from malcli.settings import parse_thresholds, resolve

KINDS = {"fit": FitConfig, "label": LabelConfig, "eval": EvalConfig, "convert": ConvertConfig}
NEEDED = {
    "fit": {"data": "boxes.json"},
    "label": {"boxes": "boxes.json"},
    "eval": {"gt": "gt.json"},
}
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_opens_with_command_hardware_and_result(path):
    text = path.read_text(encoding="utf-8")
    values = tomllib.loads(text)
    command = values["command"]
    config = resolve(KINDS[command], NEEDED[command], str(path), command).config
    for key, value in values.items():
        if key != "command":
            assert getattr(config, key) == value
    if command == "fit":
        parse_thresholds(config.threshold)
    opening = text[: text.index("command =")]
    assert f"malcli {command}" in opening
    assert f"recipes/{path.name}" in opening
    for word in ("Hardware:", "Time:", "Result:"):
        assert word in opening
