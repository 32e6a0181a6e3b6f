"""The malcli commands of docs/other_trainers.md run on drawn scenes and write what it says."""

import json
import re
import shlex
from pathlib import Path

import pytest

from malcli.cli.main import app
from malcli.data.scenes import draw_scenes

PAGE = (Path(__file__).parents[1] / "docs/other_trainers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
RLE, POLYGON = dict, list


def run(line):
    """Run a command line in this process; return its exit code."""
    program, *words = shlex.split(line)
    assert program == "malcli"
    with pytest.raises(SystemExit) as stop:
        app([*words, "--quiet"], prog_name="malcli")
    return stop.value.code


def detections(path, score):
    """Return a file's masks as another trainer's results."""
    records = json.loads(path.read_text("utf-8"))["annotations"]
    return [
        {key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": score}
        for one in records
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the page supposes it, after all of the page's commands."""
    made = tmp_path_factory.mktemp("trainers")
    for split, count in (("train", 4), ("val", 3)):
        scenes = draw_scenes(made / f"drawn_{split}", count, seed=2, size_hw=(96, 96), split=split)
        (made / f"instances_{split}.json").write_bytes(scenes.instances.read_bytes())
        scenes.images.rename(made / split)
    found = detections(made / "instances_val.json", 0.9)
    (made / "human_results.json").write_text(json.dumps(found), "utf-8")
    (made / "malcli_results.json").write_text(json.dumps(found[:-2]), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for line in COMMANDS:
            assert run(line) == 0, line
    return made


def annotations(path):
    return json.loads(path.read_text("utf-8"))["annotations"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("malcli_train.json", RLE),
        ("mmdet_train.json", POLYGON),
        ("d2_train.json", RLE),
        ("lvis_train.json", POLYGON),
        ("m2f_train.json", POLYGON),
        ("rfdetr/train/_annotations.coco.json", POLYGON),
        ("tv_train.json", RLE),
    ],
)
def test_each_trainers_file_has_its_form_of_masks_and_no_record_without_one(folder, name, form):
    records = annotations(folder / name)
    labelled = [one for one in annotations(folder / "masks.json") if one.get("area")]
    assert len(records) == len(labelled) > 0
    assert all(isinstance(one["segmentation"], form) for one in records)
    assert {one["id"] for one in records} == {one["id"] for one in labelled}
    if name == "tv_train.json":
        assert all(isinstance(one["segmentation"]["counts"], list) for one in records)


def test_rf_detrs_two_files_number_the_categories_alike_from_1(folder):
    lists = [
        json.loads((folder / f"rfdetr/{split}/_annotations.coco.json").read_text("utf-8"))
        for split in ("train", "valid")
    ]
    numbers = [{one["id"]: one["name"] for one in data["categories"]} for data in lists]
    assert numbers[0] == numbers[1]
    assert sorted(numbers[0]) == list(range(1, len(numbers[0]) + 1))


def test_yolos_labels_are_polygons_in_the_image(folder):
    lines = [
        line.split()
        for path in (folder / "yolo_malcli/labels").rglob("*.txt")
        for line in path.read_text("ascii").splitlines()
    ]
    assert lines
    for _, *numbers in lines:
        assert len(numbers) >= 6
        assert all(0 <= float(one) <= 1 for one in numbers)


def test_both_result_files_come_back_to_a_retention_below_100(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (line,) = [line for line in COMMANDS if "--oracle" in line]
    assert run(f"{line} --json") == 0
    kept = json.loads(capsys.readouterr().out)["retention"]["AP"]["value"]
    assert 50 < kept < 100


def test_the_readme_links_the_page():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "(docs/other_trainers.md)" in readme
