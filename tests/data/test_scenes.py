import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.data.scenes import SHAPES, draw_scene, draw_scenes


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def decode(annotation: dict) -> np.ndarray:
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return draw_scenes(tmp_path_factory.mktemp("many"), 40, seed=1, size_hw=(120, 160))


def test_equal_seeds_draw_equal_files_and_other_seeds_do_not(tmp_path):
    first = draw_scenes(tmp_path / "a", 2, seed=5, size_hw=(64, 80))
    again = draw_scenes(tmp_path / "b", 2, seed=5, size_hw=(64, 80))
    other = draw_scenes(tmp_path / "c", 2, seed=6, size_hw=(64, 80))
    assert first.instances.read_bytes() == again.instances.read_bytes()
    names = sorted(path.name for path in first.images.iterdir())
    for name in names:
        assert (first.images / name).read_bytes() == (again.images / name).read_bytes()
        assert (first.images / name).read_bytes() != (other.images / name).read_bytes()
    assert names == ["train_0000.png", "train_0001.png"]


def test_area_and_box_are_those_of_the_decoded_mask(scenes):
    annotations = read(scenes.instances)["annotations"]
    assert len(annotations) >= 6
    for one in annotations:
        mask = decode(one)
        rows, columns = np.nonzero(mask)
        left, top, width, height = one["bbox"]
        assert one["area"] == mask.sum() > 0
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_masks_of_one_image_share_no_pixel(many):
    by_image: dict[int, np.ndarray] = {}
    for one in read(many.instances)["annotations"]:
        by_image[one["image_id"]] = by_image.get(one["image_id"], 0) + decode(one).astype(int)
    assert max(total.max() for total in by_image.values()) == 1


def test_some_objects_are_hidden_in_part_but_never_by_half_and_more():
    shares = []
    for seed in range(20):
        _, drawn = draw_scene(np.random.default_rng(seed), (120, 160), 7)
        shares += [one.mask.sum() / one.area for one in drawn]
    assert min(shares) >= 0.45
    assert sum(share < 0.95 for share in shares) >= 10


def test_boxes_file_differs_by_the_masks_alone(scenes):
    instances, boxes = read(scenes.instances), read(scenes.boxes)
    assert all("segmentation" not in one for one in boxes["annotations"])
    for one in instances["annotations"]:
        del one["segmentation"]
    assert instances == boxes


def test_images_have_the_stated_size_and_ids_are_unique(scenes):
    data = read(scenes.instances)
    for record in data["images"]:
        with Image.open(scenes.images / record["file_name"]) as image:
            assert image.mode == "RGB"
            assert image.size == (record["width"], record["height"]) == (96, 72)
    for key in ("images", "annotations"):
        ids = [record["id"] for record in data[key]]
        assert len(set(ids)) == len(ids)


def test_filled_box_is_a_poor_mask(many):
    annotations = read(many.instances)["annotations"]
    shares = [one["area"] / (one["bbox"][2] * one["bbox"][3]) for one in annotations]
    assert 0.4 < np.mean(shares) < 0.7


def test_sizes_reach_from_a_dozen_pixels_to_half_the_image(many):
    sides = [max(one["bbox"][2:]) for one in read(many.instances)["annotations"]]
    assert min(sides) < 20
    assert 45 < max(sides) <= 62


def test_every_category_is_drawn(many):
    seen = {one["category_id"] for one in read(many.instances)["annotations"]}
    assert seen == {record["id"] for record in read(many.instances)["categories"]}
    assert len(seen) == len(SHAPES)


def test_objects_differ_from_their_surroundings_in_colour():
    """Mean colour inside against a ring around: a labeler has something to find."""
    picture, drawn = draw_scene(np.random.default_rng(0), (160, 200), 6)
    ground = ~np.any([one.mask for one in drawn], axis=0)
    for one in drawn:
        distance = np.abs(picture[one.mask].mean(axis=0) - picture[ground].mean(axis=0)).max()
        assert distance > 20


def test_jpeg_scenes_are_jpeg_files(tmp_path):
    drawn = draw_scenes(tmp_path, 1, size_hw=(64, 64), suffix=".jpg")
    with Image.open(drawn.images / "train_0000.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize(
    ("name", "area"),
    [("disc", np.pi), ("ellipse", np.pi / 2), ("triangle", 3 * 3**0.5 / 4), ("bracket", 1.15)],
)
def test_shapes_have_their_geometric_area(name, area):
    """Area in units where the circle around has radius 1, by counting a fine grid."""
    line = (np.arange(800) + 0.5) / 400 - 1
    inside = SHAPES[name](line[None, :], line[:, None])
    assert inside.mean() * 4 == pytest.approx(area, abs=0.01)
