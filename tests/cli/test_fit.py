import dataclasses
import json

import pytest

from malcli.cli.main import app
from malcli.config.fit import FitConfig


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        app(["fit", *arguments], prog_name="malcli")
    return stop.value.code


def explained(capsys, *arguments):
    assert call("--explain", "--json", *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)["settings"]


def test_explain_says_value_origin_and_source_of_every_setting(capsys):
    settings = explained(capsys)
    assert set(settings) == {item.name for item in dataclasses.fields(FitConfig)}
    assert settings["theta"] == {"value": 1.2, "origin": "default", "source": "paper, Tab. 5"}
    assert settings["data"]["value"] is None
    assert settings["data"]["origin"] == "not given"


def test_explain_says_what_paper_and_released_code_have(capsys):
    settings = explained(capsys, "--recipe", "released", "--crf-zeta", "0.2", "--epochs", "3")
    assert settings["border"]["source"] == "released code; paper: reflect"
    assert settings["key_pool"]["source"] == "released code; paper: max"
    assert settings["crf_zeta"]["source"] == "malcli; paper: 0.5; released code: 0.1"
    assert settings["loss_size"]["source"] == "released code; paper: crop"
    assert settings["epochs"]["source"] == "yours"
    assert settings["weight_decay"]["source"] == "released code"


def test_explain_tells_flag_from_recipe_from_default(capsys, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('command = "fit"\ndata = "boxes.json"\nepochs = 3\ncrf_zeta = 0.2\n')
    settings = explained(capsys, "--recipe", str(recipe), "--epochs", "5")
    assert (settings["epochs"]["value"], settings["epochs"]["origin"]) == (5, "flag")
    assert settings["crf_zeta"]["origin"] == f"recipe {recipe}"
    assert settings["data"]["value"] == "boxes.json"
    assert settings["lr"]["origin"] == "default"


def test_explain_of_the_papers_preset_shows_the_papers_constants(capsys):
    settings = explained(capsys, "--recipe", "paper")
    values = {name: settings[name]["value"] for name in ("crf_zeta", "crf_omega", "key_pool")}
    assert values == {"crf_zeta": 0.5, "crf_omega": 2.0, "key_pool": "max"}


def test_explain_for_people_is_an_aligned_table(capsys):
    assert call("--explain", "--data", "boxes.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "value", "origin", "source"]
    assert len(lines) == 1 + len(dataclasses.fields(FitConfig))
    column = lines[0].index("origin")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_explain_checks_values_too(capsys):
    assert call("--explain", "--theta", "99") == 2
    assert "--theta" in capsys.readouterr().err
