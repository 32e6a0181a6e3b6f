"""The labeler that ships: what it does with drawn scenes, odd images, and damage to its file."""

import json

import numpy as np
import pytest
from PIL import Image

from malcli import api
from malcli.data.scenes import draw_scenes
from malcli.errors import CheckpointError
from malcli.model import locate
from malcli.model.locate import SHIPPED

BOX = [8.0, 10.0, 40.0, 30.0]
HW = (60, 80)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No run lies under ./runs, so the labeler that ships is taken."""
    monkeypatch.chdir(tmp_path)


def test_on_drawn_scenes_it_beats_the_box_and_the_ellipse(tmp_path):
    scenes = draw_scenes(tmp_path / "scenes", 6, seed=11, size_hw=(192, 256), split="val")
    scores = api.evaluate(gt=scenes.instances, images=scenes.images, bootstrap=0).to_json()
    miou = scores["miou"]["all"]
    assert miou > scores["baselines"]["ellipse"]["miou"]["all"] + 0.03
    assert miou > scores["baselines"]["box"]["miou"]["all"] + 0.10


def write_boxes(folder, image, name):
    image.save(folder / name)
    file = folder / "boxes.json"
    record = {"id": 1, "file_name": name, "height": HW[0], "width": HW[1]}
    box = {"id": 5, "image_id": 1, "category_id": 1, "bbox": BOX, "iscrowd": 0}
    categories = [{"id": 1, "name": "thing"}]
    file.write_text(
        json.dumps({"images": [record], "annotations": [box], "categories": categories})
    )
    return file


def drawing():
    """A white sheet with a black outline."""
    sheet = np.full((*HW, 3), 255, np.uint8)
    sheet[10:40, 8:48][[0, -1]] = 0
    sheet[10:40, [8, 47]] = 0
    return Image.fromarray(sheet)


NOISE = np.random.default_rng(0).integers(0, 65535, HW)
ODD = {
    "grey.png": Image.fromarray((NOISE >> 8).astype(np.uint8)),
    "deep.png": Image.fromarray(NOISE.astype(np.uint16)),
    "black.png": Image.new("RGB", HW[::-1]),
    "two.png": Image.fromarray(NOISE > 30_000),
    "palette.gif": Image.fromarray((NOISE >> 8).astype(np.uint8)).convert("P"),
    "drawing.png": drawing(),
}


@pytest.mark.parametrize("name", ODD)
def test_images_unlike_photographs_are_labelled(tmp_path, name):
    boxes = write_boxes(tmp_path, ODD[name], name)
    found = api.label(boxes=boxes, images=tmp_path, out=tmp_path / "masks.json")
    assert set(found.counts) <= {"ok", "empty"}
    assert sum(found.counts.values()) == 1


@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_a_missing_or_damaged_file_is_named_with_the_remedy(tmp_path, monkeypatch, damage):
    boxes = write_boxes(tmp_path, ODD["drawing.png"], "drawing.png")
    broken = tmp_path / "labeler.safetensors"
    if damage == "cut":
        broken.write_bytes(SHIPPED.read_bytes()[:100_000])
    elif damage == "garbage":
        broken.write_bytes(b"not a checkpoint" * 100)
    monkeypatch.setattr(locate, "SHIPPED", broken)
    with pytest.raises(CheckpointError, match=r"labeler.safetensors.*install malcli again"):
        api.label(boxes=boxes, images=tmp_path, out=tmp_path / "masks.json")
    assert not (tmp_path / "masks.json").exists()
