import dataclasses
import os
import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.config.convert import ConvertConfig
from malcli.config.demo import DemoConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.errors import ConfigError
from malcli.settings import (
    PRESETS,
    as_in,
    names_of,
    nearest,
    parse_thresholds,
    read_recipe,
    resolve,
    setting,
    to_plain,
    to_public,
    to_toml,
    value_type,
)

KINDS = {
    "fit": FitConfig,
    "label": LabelConfig,
    "eval": EvalConfig,
    "convert": ConvertConfig,
    "demo": DemoConfig,
}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flag_beats_recipe_and_recipe_beats_default(tmp_path):
    recipe = write(tmp_path / "r.toml", 'command = "fit"\ndata = "a.json"\nepochs = 3\nlr = 1')
    resolved = resolve(FitConfig, {"epochs": 5, "theta": None}, recipe, "fit")
    assert (resolved.config.epochs, resolved.config.lr, resolved.config.theta) == (5, 1.0, 1.2)
    origins = [resolved.origin[name] for name in ("epochs", "lr", "theta")]
    assert origins == ["flag", f"recipe {recipe}", "default"]


def test_defaults_are_those_of_the_paper():
    """Sec. 3.1 and 4.2 and Tab. 5 of the paper."""
    config = FitConfig(data=Path("boxes.json"))
    assert (config.epochs, config.batch_size, config.crop_size, config.theta) == (10, 4, 512, 1.2)
    assert (config.lr, config.beta1, config.beta2) == (1.5e-6, 0.9, 0.9)
    assert (config.teacher_momentum, config.mil_weight, config.crf_weight) == (0.996, 4.0, 0.5)
    assert (config.encoder, config.decoder) == ("vit_mae_base", "attention")


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("command", ["fit", "label"])
def test_every_preset_resolves(name, command):
    required = {"fit": "data", "label": "boxes"}[command]
    resolved = resolve(KINDS[command], {required: "x.json"}, name, command)
    for key, value in PRESETS[name][command].items():
        assert getattr(resolved.config, key) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('command = "fit"\nepohcs = 3', ["epohcs", "did you mean 'epochs'?"]),
        ('command = "label"', ["label", "fit"]),
        ("epochs = 3", ["command"]),
        ("epochs = ", ["TOML"]),
        ('command = "fit"\nepochs = "many"', ["--epochs", "int"]),
        ('command = "fit"\nepochs = true', ["--epochs", "int"]),
        ('command = "fit"\nstrict = 1', ["--strict", "bool"]),
        ('command = "fit"\nepochs = 0', ["--epochs", "below 1"]),
        ('command = "fit"\ntheta = 11.0', ["--theta", "above 10"]),
        ('command = "fit"\nlr = nan', ["--lr", "finite"]),
        ('command = "fit"\nlr = inf', ["--lr", "finite"]),
        ('command = "fit"\ndecoder = "atention"', ["'atention'", "did you mean 'attention'?"]),
        ('command = "fit"\ndecoder = ["attention"]', ["--decoder"]),
        ('command = "fit"\nout = ""', ["--out", "empty"]),
        ('command = "fit"\n[model]\nencoder = "x"', ["unknown key 'model'"]),
    ],
)
def test_bad_recipe_is_one_line_that_names_the_fault(tmp_path, text, words):
    recipe = write(tmp_path / "r.toml", text)
    with pytest.raises(ConfigError) as error:
        resolve(FitConfig, {"data": "a.json"}, recipe, "fit")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_missing_recipe_names_the_nearest_preset():
    with pytest.raises(ConfigError, match="did you mean 'released'"):
        resolve(FitConfig, {"data": "a.json"}, "relaesed", "fit")


def test_recipe_that_is_a_folder_or_not_utf8_is_a_config_error(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    for recipe in (tmp_path, tmp_path / "r.toml"):
        with pytest.raises(ConfigError, match="not a readable TOML"):
            resolve(FitConfig, {"data": "a.json"}, str(recipe), "fit")


def test_unknown_keyword_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'checkpoint'"):
        resolve(LabelConfig, {"boxes": "a.json", "chekpoint": "x"}, None, "label")


def test_required_setting_may_come_from_the_recipe(tmp_path):
    with pytest.raises(ConfigError, match="--boxes is required"):
        resolve(LabelConfig, {}, None, "label")
    recipe = write(tmp_path / "r.toml", 'command = "label"\nboxes = "a.json"')
    assert resolve(LabelConfig, {}, recipe, "label").config.boxes == Path("a.json")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_default_obeys_its_own_checks(kind):
    required = {
        item.name: "x" for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING
    }
    given_back = {
        item.name: item.default for item in dataclasses.fields(kind) if item.name not in required
    }
    plain = resolve(kind, required, None).config
    assert resolve(kind, {**required, **given_back}, None).config == plain


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_setting_has_help_and_a_plain_type(kind):
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        assert len(item.metadata["help"]) > 5, item.name
        assert value_type(hints[item.name]) in (int, float, str, bool, Path), item.name


def test_a_setting_that_does_not_say_its_identity_is_refused():
    with pytest.raises(TypeError, match="identity"):
        setting(1, "Side, pixels.")
    with pytest.raises(ValueError, match="'mine' is none of"):
        setting(1, "Side, pixels.", identity="mine")


def test_names_by_identity_are_in_the_config_s_order():
    assert names_of(DemoConfig, "private", "free") == ("out", "device")
    assert names_of(DemoConfig, "result") == ("seed",)


def test_a_setting_as_in_another_config_has_its_checks_and_what_is_changed():
    @dataclasses.dataclass(frozen=True)
    class Other:
        margin: float | None = as_in(LabelConfig, "margin", default=None, identity="free")

    (item,) = dataclasses.fields(Other)
    (source,) = (one for one in dataclasses.fields(LabelConfig) if one.name == "margin")
    assert item.default is None
    assert dict(item.metadata) == {**source.metadata, "identity": "free"}
    with pytest.raises(ConfigError, match="--margin: 11"):
        resolve(Other, {"margin": 11.0})


def test_what_is_passed_on_names_files_and_leaves_folders_and_switches_out():
    config = FitConfig(
        data=Path("/home/me/boxes.json"),
        val=Path("/home/me/val.json"),
        paste=Path("/home/me/masks.json"),
        weights="/home/me/mae.pth",
        images=Path("/home/me/images"),
        out=Path("/home/me/run"),
        workers=3,
        overwrite=True,
        lr=0.5,
    )
    public = to_public(config)
    named = {"data": "boxes.json", "val": "val.json", "paste": "masks.json", "weights": "mae.pth"}
    assert {key: public[key] for key in named} == named
    assert not public.keys() & {"images", "out", "workers", "overwrite", "resume"}
    assert public["lr"] == 0.5
    assert to_public(dataclasses.replace(config, weights="none"))["weights"] == "none"


@given(
    st.builds(
        FitConfig,
        data=st.text(min_size=1).map(Path),
        weights=st.none() | st.text(st.characters(codec="utf-8")),
        lr=st.floats(0, 1),
        epochs=st.integers(1, 10**9),
        keep_crowd=st.booleans(),
    )
)
def test_toml_of_a_config_reads_back_as_the_same_config(config):
    values = tomllib.loads(to_toml(config, "fit"))
    assert values.pop("command") == "fit"
    assert resolve(FitConfig, values, None, "fit").config == config


def test_plain_values_leave_out_what_is_not_set():
    plain = to_plain(ConvertConfig(src=Path("a"), dst=Path("b"), to="yolo"))
    assert {key: value for key, value in plain.items() if value is not False} == {
        "src": "a", "dst": "b", "to": "yolo", "exif": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0.5", (0.5, 0.5, 0.5)), ("0.4,0.5,0.6", (0.4, 0.5, 0.6)), ("0", (0,) * 3)],
)
def test_thresholds_are_one_number_or_three(text, wanted):
    assert parse_thresholds(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "1", "-0.1", "0.1,0.2", "nan", "0.1,0.2,0.3,0.4"])
def test_bad_thresholds_are_refused(text):
    with pytest.raises(ConfigError, match="--threshold"):
        parse_thresholds(text)


def test_nearest_says_nothing_about_words_unlike_any():
    assert nearest("zzzz", ["epochs"]) == ""


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 20_000,
        "x = " + "{a=" * 5_000,
        "seed = " + "9" * 5_000,
        "lr = 0x" + "f" * 5_000,
        "command = 0x" + "f" * 5_000,
        "encoder = 0x" + "f" * 5_000,
        'command = "fit"\nseed = 0x' + "f" * 5_000,
        'command = "fit"\nlr = 0x' + "f" * 500,
        'command = "fit"\ndecoder = "' + "x" * 100_000 + '"',
        'command = "fit"\nlr = [[1], {a = 2}]',
        'command = "fit"\nseed = 1979-05-27',
        "#" * (1 << 20) + "#",
    ],
    ids=range(12),
)
def test_a_recipe_of_absurd_values_is_one_line(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(FitConfig, {"data": "x.json"}, str(path), "fit")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_recipe_that_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ConfigError, match="no regular file"):
            read_recipe(str(path), "fit")
