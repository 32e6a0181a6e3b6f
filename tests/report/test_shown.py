import json
from html import unescape

import pytest
from typer.testing import CliRunner

import malcli
from malcli.cli.main import app
from malcli.report import shown
from malcli.report.shown import Shown, flatten


def test_nested_values_become_dotted_lines():
    nested = {"miou": {"all": 0.123456, "small": None}, "out": "x.json"}
    assert dict(flatten(nested)) == {"miou.all": "0.1235", "miou.small": "-", "out": "x.json"}


def printed(*words):
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--quiet")])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def scored(scenes, tmp_path_factory):
    """What `evaluate` gives, with its page, and how the command is called."""
    page = tmp_path_factory.mktemp("report") / "a page.html"
    files = {"gt": scenes.instances, "pred": scenes.instances}
    return malcli.evaluate(**files, report=page, bootstrap=20, quiet=True), files, page


def test_a_result_prints_the_table_of_its_command(scored, scenes, tmp_path):
    result, files, _ = scored
    words = ("eval", "--gt", files["gt"], "--pred", files["pred"], "--bootstrap", 20)
    assert f"{result}\n" == printed(*words)
    assert "mIoU" in str(result)
    assert result.to_json() == json.loads(printed(*words, "--json"))
    out = tmp_path / "boxes.parquet"
    converted = malcli.convert(scenes.boxes, out, quiet=True)
    wanted = printed("convert", scenes.boxes, out)
    assert f"{converted}\n".replace("False", "True") == wanted  # `unchanged`
    checked = malcli.label(boxes=scenes.boxes, dry_run=True, quiet=True)
    assert (
        str(checked).splitlines()[0]
        == printed("label", "--boxes", scenes.boxes, "--dry-run").splitlines()[0]
    )


def test_a_notebook_shows_the_table_and_the_page(scored):
    result, _, page = scored
    html = result._repr_html_()
    table, _, frame = html.partition("<iframe")
    assert unescape(table.partition(">")[2].removesuffix("</pre>")) == str(result)
    source = frame.partition('srcdoc="')[2].partition('"')[0]
    assert unescape(source) == page.read_text("utf-8")


class Plain(Shown):
    def __init__(self, report):
        self.report = report

    def to_json(self):
        return {"name": "<b>&"}


def test_what_is_shown_is_escaped_and_a_large_or_missing_page_is_not_taken_in(
    tmp_path, monkeypatch
):
    page = tmp_path / "<i>.html"
    assert "<b>" not in Plain(None)._repr_html_()
    assert Plain(page)._repr_html_() == Plain(None)._repr_html_()
    page.write_text("x" * 50, "utf-8")
    assert "srcdoc" in Plain(page)._repr_html_()
    monkeypatch.setattr(shown, "LARGEST_PAGE", 40)
    link = Plain(page)._repr_html_()
    assert "srcdoc" not in link
    assert "&lt;i&gt;.html" in link
