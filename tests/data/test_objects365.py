import json

import pytest

from malcli.data.images import find_images, resolve
from malcli.data.objects365 import read_objects365, write_objects365
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
        assert resolve(tmp_path, file.name) == file


def test_folders_that_come_later_are_seen(tmp_path):
    name = "objects365_v1_00000001.jpg"
    assert resolve(tmp_path, name) == tmp_path / name
    touch(tmp_path / "patch3" / name)
    assert resolve(tmp_path, name) == tmp_path / "patch3" / name


@pytest.mark.parametrize("name", ["a.jpg", "cam2/0001.jpg", "images/v1/0001.jpg"])
def test_a_name_that_others_may_share_is_looked_for_in_one_place(tmp_path, name):
    touch(tmp_path / "patch0" / name.rpartition("/")[2])
    (tmp_path / "0001.jpg").touch()
    assert resolve(tmp_path, name) == tmp_path / name


def test_a_very_long_name_is_just_not_there(tmp_path):
    name = "patch1/" + "a" * 5000
    assert resolve(tmp_path, name) == tmp_path / name
