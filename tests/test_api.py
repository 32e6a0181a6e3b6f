import dataclasses
import inspect
import subprocess
import sys
import threading
import types
import typing
from pathlib import Path, PurePosixPath

import pytest

import malcli
from malcli.api import StrPath
from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.config.retention import RetentionConfig
from malcli.errors import ConfigError
from malcli.report import progress


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


COMMANDS = {
    "fit": FitConfig,
    "label": LabelConfig,
    "evaluate": EvalConfig,
    "convert": ConvertConfig,
    "retention": RetentionConfig,
}
MAY_BE_NUMBERS = ("threshold", "crop_size", "batch_size")  # whose settings are texts


def python_type(item, hint):
    """The annotation that a setting has as a keyword."""
    optional = type(None) in typing.get_args(hint)
    kind = next((one for one in typing.get_args(hint) if one is not type(None)), hint)
    if kind is Path:
        kind = StrPath
    elif kind is str and item.name in MAY_BE_NUMBERS:
        kind = str | float
    return kind | None if optional else kind


@pytest.mark.parametrize("name", COMMANDS)
def test_signatures_have_the_names_defaults_and_types_of_the_settings_in_their_order(name):
    kind = COMMANDS[name]
    hints = typing.get_type_hints(kind)
    items = sorted(dataclasses.fields(kind), key=lambda one: one.default is not dataclasses.MISSING)
    wanted = {
        item.name: (
            inspect.Parameter.empty
            if item.default is dataclasses.MISSING
            else str(item.default)
            if isinstance(item.default, Path)
            else item.default,
            python_type(item, hints[item.name]),
        )
        for item in items
    }
    wanted |= {"recipe": (None, str | None), "quiet": (False, bool)}
    found = inspect.signature(getattr(malcli, name)).parameters
    assert list(found) == list(wanted)
    assert {n: (one.default, one.annotation) for n, one in found.items()} == wanted
    kinds = {n: one.kind for n, one in found.items()}
    positional = {n for n in kinds if kinds[n] is not inspect.Parameter.KEYWORD_ONLY}
    assert positional == ({"src", "dst"} if name == "convert" else set())


@pytest.mark.parametrize("name", COMMANDS)
def test_without_keywords_a_function_has_its_settings_defaults(engine, name):
    required = {
        item.name: "x.json"
        for item in dataclasses.fields(COMMANDS[name])
        if item.default is dataclasses.MISSING
    }
    found = getattr(malcli, name)(**required)
    assert found == COMMANDS[name](**{key: Path(value) for key, value in required.items()})


def test_a_keyword_beats_the_recipe_even_with_the_default_and_none_leaves_it_alone(engine):
    default = FitConfig(data=Path("x")).crf_zeta
    assert default != 0.5
    assert malcli.fit(data="x", recipe="paper", crf_zeta=default).crf_zeta == default
    assert malcli.fit(data="x", recipe="paper", crf_zeta=None).crf_zeta == 0.5


def test_paths_may_be_of_any_kind_and_numbers_stand_for_their_text(engine):
    config = malcli.label(boxes=PurePosixPath("b.json"), threshold=0.25, batch_size=8, crop_size=96)
    assert config.boxes == Path("b.json")
    assert (config.threshold, config.batch_size, config.crop_size) == ("0.25", "8", "96")


def test_settings_are_keywords(engine):
    with pytest.raises(TypeError, match="too many positional"):
        malcli.fit("boxes.json")
    with pytest.raises(TypeError, match="multiple values for argument 'src'"):
        malcli.convert("a.json", "b.json", src="c.json")


def test_quiet_silences_its_own_thread_alone(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_quiet", False)  # as another test may have left it
    started, heard = threading.Event(), threading.Event()

    def speak(config):
        progress.log(str(config.gt))
        started.set()
        assert heard.wait(30)
        with progress.Progress(1, "boxes", str(config.gt)) as shown:
            shown.advance()
        return config

    stand_in = types.ModuleType("malcli.engine.eval.masks")
    stand_in.evaluate = speak
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr("malcli.engine.eval.masks", stand_in, raising=False)
    thread = threading.Thread(target=malcli.evaluate, kwargs={"gt": "hushed", "quiet": True})
    thread.start()
    assert started.wait(30)
    progress.log("spoken")
    heard.set()
    thread.join()
    malcli.evaluate(gt="aloud")
    said = capsys.readouterr()
    assert said.out == ""
    assert "spoken" in said.err
    assert "aloud: 1/1 boxes" in said.err
    assert "hushed" not in said.err


def test_nothing_stays_silent_after_a_quiet_call_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_quiet", False)
    with pytest.raises(ConfigError):
        malcli.evaluate(gt="gt.json", clustering=True, attention=True, quiet=True)
    progress.log("spoken")
    assert capsys.readouterr().err == "spoken\n"
