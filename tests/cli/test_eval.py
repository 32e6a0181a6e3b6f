"""`malcli eval` on the command line: its three forms and their output."""

import json

import pytest

from malcli.cli import main as cli

TINY = ("--encoder", "timm/test_vit.r160_in1k", "--weights", "none", "--crop-size", "64")


@pytest.fixture
def call(scenes, capsys):
    """Run `malcli eval` on the scenes; return exit code, stdout, stderr."""

    def run(*arguments):
        files = ("--gt", str(scenes.instances), "--images", str(scenes.images), "--device", "cpu")
        with pytest.raises(SystemExit) as stop:
            cli.app(["eval", *files, *map(str, arguments)], prog_name="malcli")
        return stop.value.code, *capsys.readouterr()

    return run


def test_clustering_prints_a_table_or_one_object(call):
    code, out, err = call("--clustering", *TINY, "--limit", "2")
    assert code == 0
    for words in ("Clustering score of timm/test_vit", "shuffled", "interval", "stride 16"):
        assert words in out
    assert "images" in err
    code, out, _ = call("--clustering", *TINY, "--limit", "2", "--json", "--quiet")
    assert code == 0
    assert set(json.loads(out)) >= {"clustering", "chance", "intervals", "counts", "encoder", "gt"}


def test_attention_writes_a_page_and_says_where(call, tmp_path):
    page = tmp_path / "maps.html"
    code, out, _ = call("--attention", *TINY, "--layers", "2,6", "--report", page)
    assert code == 0
    assert f"layers 2, 6: {page}" in " ".join(out.split())
    code, out, _ = call("--attention", *TINY, "--layers", "2", "--report", page, "--json")
    assert json.loads(out)["attention"]["report"] == str(page)


def test_masks_are_scored_as_ever(call, scenes):
    code, out, _ = call("--pred", scenes.instances, "--json", "--bootstrap", "0")
    assert code == 0
    assert json.loads(out)["miou"]["all"] == 1


def test_a_second_file_of_masks_has_its_own_table(call, scenes):
    code, out, _ = call("--pred", scenes.instances, "--compare", scenes.instances)
    assert code == 0
    assert "Second masks against the first" in out
    assert "no clear difference" in " ".join(out.split())
    code, out, _ = call("--pred", scenes.instances, "--compare", scenes.instances, "--json")
    assert json.loads(out)["compare"]["difference"]["all"]["value"] == 0


def test_a_results_list_prints_ap_alone(call, scenes, tmp_path):
    path = tmp_path / "results.json"
    truth = json.loads(scenes.instances.read_text())["annotations"]
    keys = ("image_id", "category_id", "segmentation", "bbox")
    path.write_text(json.dumps([{key: one[key] for key in keys} | {"score": 1} for one in truth]))
    code, out, _ = call("--pred", path, "--bootstrap", "0")
    assert code == 0
    assert "Mask AP" in out
    assert "Mask AP is 1.000." in out
    assert "filled box" not in out


def test_wrong_usage_is_one_line_and_exit_2(call, scenes):
    for arguments, words in (
        (("--clustering", "--pred", scenes.instances), "--clustering with --pred"),
        (("--attention", *TINY), "has 6 layers, not 12; take --layers 2,4,6"),
        (("--encoder", "vit_mae_base"), "goes with --clustering or --attention"),
    ):
        code, out, err = call(*arguments, "--quiet")
        assert (code, out) == (2, "")
        assert err.startswith("malcli: error: ")
        assert err.count("\n") == 1
        assert words in err
