import json

import pytest

from malcli.data.formats.objects365 import read_objects365, write_objects365
from malcli.data.formats.open import recognise
from malcli.data.formats.yolo_read import read_yaml
from malcli.data.formats.yolo_write import write_yolo
from malcli.data.images.find import find_images, image_path
from malcli.records import records_of

NAMES = [
    "images/v1/patch8/objects365_v1_00420917.jpg",
    "images/v2/patch16/objects365_v2_00908726.jpg",
    "objects365_v1_00000003.jpg",
]
CATEGORIES = [{"id": 2, "name": "Table Tennis "}, {"id": 1, "name": "Person"}]


def value_of(names=NAMES):
    images = [
        {"id": n, "file_name": name, "height": 40, "width": 60, "license": 4, "url": ""}
        for n, name in enumerate(names)
    ]
    flags = [{"iscrowd": 0}, {"iscrowd": 1}, {"iscrowd": 0, "isreflected": 1}]
    boxes = [
        {"id": 9 - n, "image_id": n, "category_id": 2, "bbox": [1, 2, 3.5, 4], "isfake": 0} | more
        for n, more in enumerate(flags[: len(names)])
    ]
    return {"categories": CATEGORIES, "annotations": boxes, "images": images}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "annotations/zhiyuan_objv2_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(value_of()))
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_flags_names_and_the_order_of_categories_are_kept(path, tmp_path):
    table = read_objects365(path)
    assert table.format == "objects365"
    assert table.boxes["status"].to_pylist() == ["ok", "skipped:crowd", "ok"]
    assert table.header["categories"] == CATEGORIES
    write_objects365(tmp_path / "b.json", table, [records_of(table)])
    assert json.loads((tmp_path / "b.json").read_text()) == value_of()


@pytest.mark.parametrize(
    "places",
    [
        NAMES,  # as the file says
        ["patch8/objects365_v1_00420917.jpg", "patch16/objects365_v2_00908726.jpg", "patch0/3"],
        [name.rpartition("/")[2] for name in NAMES],  # flattened
    ],
)
@pytest.mark.parametrize("folder", ["train", "annotations/images", "elsewhere"])
def test_images_are_found_in_patch_folders_or_flattened(path, tmp_path, places, folder):
    for name, place in zip(NAMES, places, strict=True):
        file = tmp_path / folder / place
        touch(file if file.suffix else file.with_name(name.rpartition("/")[2]))
    given = tmp_path / folder if folder == "elsewhere" else None
    found = find_images(path, read_objects365(path), given)
    assert (found.root, found.found) == (tmp_path / folder, 3)


def test_a_bare_name_is_found_in_the_patch_folders_of_both_versions(tmp_path):
    for place in ("patch7", "v1/patch8", "images/v2/patch16"):
        file = tmp_path / place / f"objects365_v1_{len(place):08}.jpg"
        touch(file)
        assert image_path(tmp_path, file.name) == file


def test_folders_that_come_later_are_seen(tmp_path):
    name = "objects365_v1_00000001.jpg"
    assert image_path(tmp_path, name) == tmp_path / name
    touch(tmp_path / "patch3" / name)
    assert image_path(tmp_path, name) == tmp_path / "patch3" / name


@pytest.mark.parametrize("name", ["a.jpg", "cam2/0001.jpg", "images/v1/0001.jpg"])
def test_a_name_that_others_may_share_is_looked_for_in_one_place(tmp_path, name):
    touch(tmp_path / "patch0" / name.rpartition("/")[2])
    (tmp_path / "0001.jpg").touch()
    assert image_path(tmp_path, name) == tmp_path / name


def test_a_very_long_name_is_just_not_there(tmp_path):
    name = "patch1/" + "a" * 5000
    assert image_path(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", ["{0}/{1}", "images/{0}/{1}", "images/{1}"])
@pytest.mark.parametrize("prefix", ["", "{0}/"])
def test_the_release_with_other_names_is_recognised_and_found(tmp_path, split, place, prefix):
    names = [f"obj365_{split}_{n:012}.jpg" for n in (702, 354609)]
    value = value_of([prefix.format(split) + name for name in names])
    for record in value["annotations"]:
        for flag in ("isfake", "isreflected"):
            record.pop(flag, None)
    path = tmp_path / f"objects365_{split}.json"
    path.write_text(json.dumps(value))
    for name in names:
        touch(tmp_path / place.format(split, name))
    assert recognise(path) == "objects365"
    found = find_images(path, read_objects365(path), None)
    assert found.found == 2
    assert all(image_path(found.root, image["file_name"]).is_file() for image in value["images"])


def test_names_of_one_release_are_not_taken_for_those_of_another(tmp_path):
    """Their numbers need not agree: a renamed release may have numbered its images anew."""
    touch(tmp_path / "objects365_v1_00000702.jpg")
    name = "obj365_val_000000000702.jpg"
    assert image_path(tmp_path, name) == tmp_path / name


def test_category_lists_of_other_orders_become_the_same_classes(tmp_path):
    """Train and validation files order their lists differently; names keep their odd spaces."""
    names = {}
    for split, categories in (("train", CATEGORIES), ("val", CATEGORIES[::-1])):
        value = value_of(NAMES[2:]) | {"categories": categories}
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(value))
        table = read_objects365(path)
        write_yolo(tmp_path / split / "data.yaml", table, [records_of(table)])
        names[split] = read_yaml(tmp_path / split / "data.yaml").names
    assert names["train"] == names["val"]
    assert list(names["train"].values()) == ["Person", "Table Tennis "]
