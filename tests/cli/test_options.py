import dataclasses

import pytest
import typer
from typer.testing import CliRunner

from malcli.cli.options import Common, add_command, flag_of
from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    side: int = setting(512, "Side, pixels.", low=32, identity="free")
    kind: str = setting("disc", "Shape.", choices=("disc", "star"), identity="free")
    keep: bool = setting(False, "Keep.", identity="free")
    scale: bool = setting(True, "Scale.", identity="free")
    name: str = setting(help="Name [of it].", short="n", identity="free")


def invoke(*arguments, kind=Sample, **kwargs):
    """Return the runner's result and what the command got."""
    seen = []

    def run(values, common):
        """Do it."""
        seen.append((values, common))

    app = typer.Typer(rich_markup_mode="rich")
    add_command(app, "do", run, kind, **kwargs)
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments))
    return result, seen[0] if seen else None


def test_flags_not_given_are_none_so_that_recipes_can_set_them():
    _, (values, common) = invoke()
    assert values == {"side": None, "kind": None, "keep": None, "scale": None, "name": None}
    assert common == Common()


def test_flags_given_have_their_types():
    _, (values, common) = invoke("--side", "64", "-n", "x", "--keep", "--json", "--recipe", "paper")
    assert (values["side"], values["name"], values["keep"]) == (64, "x", True)
    assert common == Common(recipe="paper", json=True)


def test_no_form_undoes_what_a_recipe_sets():
    _, (values, _) = invoke("--no-keep", "--no-scale")
    assert (values["keep"], values["scale"]) == (False, False)
    assert set(values) == {"side", "kind", "keep", "scale", "name"}


def test_switches_and_no_recipe():
    _, (values, _) = invoke("--explain", switches={"explain": "Explain."}, recipe=False)
    assert values["explain"] is True
    result, seen = invoke("--recipe", "paper", recipe=False)
    assert (result.exit_code, seen) == (2, None)


def test_positional_fields_are_arguments():
    _, (values, _) = invoke("a", "b", kind=ConvertConfig, positional=("src", "dst"))
    assert (str(values["src"]), str(values["dst"])) == ("a", "b")
    _, (values, _) = invoke(
        "a", "b", "--from", "yolo", kind=ConvertConfig, positional=("src", "dst")
    )
    assert values["from_"] == "yolo"


def test_help_says_default_choices_and_required_and_shows_brackets_as_they_are():
    text = " ".join(invoke("--help")[0].output.split())
    for words in (
        "Side, pixels. [default: 512]",
        "Shape: disc, star. [default: disc]",
        "Keep. [default: off]",
        "Scale. [default: on; --no-scale]",
        "Name [of it]. [required]",
    ):
        assert words in text


def test_required_options_come_first_in_help():
    text = invoke("--help")[0].output
    assert text.index("--name") < text.index("--side")


@pytest.mark.parametrize("kind", [FitConfig, LabelConfig, EvalConfig])
def test_every_field_has_its_flag(kind):
    text = invoke("--help", kind=kind)[0].output
    for item in dataclasses.fields(kind):
        assert flag_of(item.name) + " " in text


def test_flag_names():
    assert [flag_of(name) for name in ("crop_size", "from_", "lr")] == [
        "--crop-size",
        "--from",
        "--lr",
    ]
