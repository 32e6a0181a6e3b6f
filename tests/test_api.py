import subprocess
import sys
import types
from pathlib import Path

import pytest

import malcli
from malcli.errors import ConfigError


@pytest.fixture
def engine(monkeypatch):
    """Engine functions that return the config they get."""
    for module, function in (
        ("fit.command", "fit"), ("label.command", "label"), ("eval.masks", "evaluate"),
        ("convert.command", "convert"),
        ("retention.command", "retention"),
    ):  # fmt: skip
        stand_in = types.ModuleType(f"malcli.engine.{module}")
        setattr(stand_in, function, lambda config: config)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        monkeypatch.setattr(f"malcli.engine.{module}", stand_in, raising=False)


def test_import_of_malcli_and_its_functions_loads_no_torch():
    code = (
        "import sys\nfrom malcli import fit, label, evaluate, convert\n"
        "print([name for name in ('torch', 'timm', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_functions_take_the_flags_as_keywords(engine):
    assert malcli.fit(data="boxes.json", epochs=2).epochs == 2
    assert malcli.label(boxes=Path("boxes.json"), out="masks.json").out == Path("masks.json")
    assert malcli.evaluate(gt="gt.json", bootstrap=0).bootstrap == 0
    config = malcli.convert("a.json", Path("b.parquet"), from_="coco")
    assert (config.src, config.dst, config.from_) == (Path("a.json"), Path("b.parquet"), "coco")


def test_recipe_is_a_keyword_too(engine):
    assert malcli.fit(data="boxes.json", recipe="paper").crf_zeta == 0.5
    assert malcli.label(boxes="boxes.json", out="masks.json", recipe="paper").network == "student"
    assert malcli.evaluate(gt="gt.json", recipe="paper").network == "student"


def test_convert_and_retention_take_their_own_recipes(engine, tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text('command = "convert"\nmin_score = 0.5\n')
    assert malcli.convert("a.json", "b.json", recipe=str(recipe)).min_score == 0.5
    files = {"train": "a.json", "masks": "b.json", "val": "c.json", "out": "study"}
    with pytest.raises(ConfigError, match="this is 'retention'"):
        malcli.retention(**files, recipe=str(recipe))
    recipe.write_text('command = "retention"\nseed = 7\n')
    assert malcli.retention(**files, recipe=str(recipe)).seed == 7


def test_unknown_or_missing_keyword_is_a_config_error(engine):
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        malcli.fit(data="boxes.json", epohcs=2)
    with pytest.raises(ConfigError, match="--boxes is required"):
        malcli.label()


def test_malcli_has_no_other_functions():
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = malcli.train
