"""Every recipe loads, and says its command, hardware and result before its settings."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.config.retention import RetentionConfig
from malcli.settings import PRESETS, parse_thresholds, resolve

KINDS = {
    "fit": FitConfig,
    "label": LabelConfig,
    "eval": EvalConfig,
    "retention": RetentionConfig,
    "convert": ConvertConfig,
}
NEEDED = {
    "fit": {"data": "boxes.json"},
    "label": {"boxes": "boxes.json"},
    "eval": {"gt": "gt.json"},
    "retention": {"train": "gt.json", "masks": "masks.json", "val": "val.json"},
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


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if path.stem.startswith(("tab", "fig"))],
    ids=lambda path: path.stem,
)
def test_a_row_of_the_paper_differs_from_its_preset_in_what_it_is_named_for(path):
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    preset = PRESETS["paper"].get(values["command"], {})
    if values["command"] != "eval":
        other = {key for key, value in preset.items() if values.get(key) != value}
        assert other == {key for key in preset if key in path.stem}
    varied = {key: value for key, value in values.items() if key in ("decoder", "theta", "encoder")}
    for key, value in varied.items():
        said = str(value).replace(".", "_")
        named = said in path.stem or (key, value) == ("encoder", "vit_mae_base")
        assert named, f"{key} = {value}"


def test_the_page_on_the_paper_names_every_recipe():
    pages = Path(__file__).parents[1] / "docs"
    text = (pages / "paper.md").read_text("utf-8") + (pages / "how_good.md").read_text("utf-8")
    patterns = set(re.findall(r"(\w+\*?)\.toml", text))
    for path in RECIPES:
        assert any(fnmatch(path.stem, pattern) for pattern in patterns), path.name
