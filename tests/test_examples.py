"""Every script of `examples/`, run on drawn scenes with a labeler of random values."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from malcli.model import locate
from malcli.model.checkpoint import Checkpoint, save_checkpoint
from malcli.model.labeler import Architecture, build_labeler

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = Architecture(
    encoder="timm/test_vit.r160_in1k",
    decoder="attention",
    crop_size=64,
    channels=8,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)


def main_of(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def labelers(tmp_path_factory):
    """Two labelers of random values."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks = [build_labeler(TINY).eval() for _ in range(2)]
        paths.append(tmp_path_factory.mktemp("labelers") / f"{seed}.safetensors")
        save_checkpoint(Checkpoint(*networks, TINY, (0.1, 0.1, 0.1)), paths[-1])
    return paths


@pytest.fixture(autouse=True)
def shipped(labelers, tmp_path, monkeypatch):
    """A small labeler in the place of the one that ships, and no runs."""
    monkeypatch.setattr(locate, "SHIPPED", labelers[0])
    monkeypatch.chdir(tmp_path)


def test_one_image_is_labelled_in_memory(scenes, tmp_path, capsys):
    photo = min(scenes.images.iterdir())
    main_of("one_image")(str(photo), "out.png", "10,12,60,60", "20.5,8,70,50")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "[10.0, 12.0, 60.0, 60.0]",
        "[20.5, 8.0, 70.0, 50.0]",
    ]
    before, after = (np.array(Image.open(path).convert("RGB")) for path in (photo, "out.png"))
    changed = (before != after).any(axis=2)
    assert changed[12:60, 10:60].any()
    changed[8:60, 10:70] = False
    assert not changed.any()


def test_a_folder_is_labelled_and_its_sure_masks_written_as_yolo(scenes, tmp_path, capsys):
    main_of("folder")(str(scenes.boxes), str(scenes.images), "out")
    said = capsys.readouterr().out
    assert "Boxes" in said
    annotations = json.loads(Path("out/masks.json").read_text("utf-8"))["annotations"]
    assert len(annotations) == len(json.loads(scenes.boxes.read_text("utf-8"))["annotations"])
    assert {"report.html", "masks.json", "yolo"} <= {path.name for path in Path("out").iterdir()}


def test_two_labelers_are_compared(scenes, labelers, tmp_path, capsys):
    main_of("compare")(str(scenes.instances), *map(str, labelers), "out")
    *table, last = capsys.readouterr().out.splitlines()
    assert any("second" in line for line in table)
    value, low, high = (float(word.strip("()")) for word in last.split() if "." in word)
    assert low <= value <= high
    assert low < high
    assert last.startswith("mIoU changes by ")
    assert Path("out/report.html").is_file()


def test_every_example_has_a_test():
    text = Path(__file__).read_text("utf-8")
    assert len(list(EXAMPLES.glob("*.py"))) >= 3
    for path in EXAMPLES.glob("*.py"):
        assert f'main_of("{path.stem}")' in text
