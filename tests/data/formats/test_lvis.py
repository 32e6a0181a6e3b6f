import json

import pytest
from PIL import Image

from malcli.data.formats.coco import read_coco
from malcli.data.formats.lvis import name_of_url, read_lvis, write_lvis
from malcli.data.formats.parquet import read_parquet, write_parquet
from malcli.data.images.find import find_images, image_path
from malcli.errors import BadImage, DataFormatError
from malcli.records import records_of, to_records

URL = "http://images.cocodataset.org/"


def image(number, folder="val2017", **more):
    record = {"id": number, "height": 40, "width": 60, "neg_category_ids": [3], "license": 1}
    record["coco_url"] = f"{URL}{folder}/{number:012}.jpg"
    return record | {"not_exhaustive_category_ids": [], "flickr_url": "f"} | more


def box(number, image_id):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [1.5, 2.25, 10, 10],
        "area": 80.5,
        "segmentation": [[1.5, 2, 11, 2, 11, 12]],
    }


def value_of(images):
    category = {"id": 1, "name": "aerosol_can", "frequency": "c", "synset": "aerosol.n.02"}
    boxes = [box(7 + n, record["id"]) for n, record in enumerate(images)]
    return {"annotations": boxes, "images": images, "categories": [category]}


@pytest.fixture
def write(tmp_path):
    def write(value):
        path = tmp_path / "annotations/lvis_v1_val.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


def test_names_are_the_last_two_parts_of_the_url(write):
    table = read_lvis(write(value_of([image(139), image(42, "train2017")])))
    assert table.images["file_name"].to_pylist() == [
        "val2017/000000000139.jpg",
        "train2017/000000000042.jpg",
    ]
    assert table.boxes["status"].to_pylist() == ["ok", "ok"]
    assert table.problems.counts == {}
    assert table.format == "lvis"


def test_a_file_comes_back_key_for_key_without_iscrowd_or_file_name(write, tmp_path):
    own = {"file_name": "COCO_val2014_000000000005.jpg"}
    same = {"file_name": "val2017/000000000006.jpg"}
    value = value_of([image(139), image(5, **own), image(6, **same)])
    table = read_lvis(write(value))
    assert write_lvis(tmp_path / "b.json", table, [records_of(table)]) == 3
    assert json.loads((tmp_path / "b.json").read_text()) == value


def test_lvis_to_parquet_to_lvis_is_the_same_data(write, tmp_path):
    value = value_of([image(139), image(5, file_name="own.jpg")])
    table = read_lvis(write(value))
    write_parquet(tmp_path / "a.parquet", table, [records_of(table)])
    table = read_parquet(tmp_path / "a.parquet")
    write_lvis(tmp_path / "b.json", table, [records_of(table)])
    assert json.loads((tmp_path / "b.json").read_text()) == value


@pytest.mark.parametrize("url", [None, 5, "", "///", ["a/b"], "\ud800/a.jpg"])
def test_an_image_without_a_usable_url_is_no_image_and_kept(write, url):
    value = value_of([image(139) | {"coco_url": url}, image(5)])
    table = read_lvis(write(value))
    assert table.boxes["status"].to_pylist() == ["skipped:no-image", "ok"]
    assert to_records(table.images)[0] == value["images"][0]


def test_names_of_other_formats_become_urls_if_they_have_a_folder(write, tmp_path):
    plain = {"id": 1, "file_name": "val2017/1.jpg", "height": 4, "width": 4}
    bare = {"id": 2, "file_name": "2.jpg", "height": 4, "width": 4}
    coco = bare | {"id": 3, "file_name": "3.jpg", "coco_url": URL + "val2017/3.jpg"}
    table = read_coco(write(value_of([plain, bare, coco])))
    write_lvis(tmp_path / "b.json", table, [records_of(table)])
    images = json.loads((tmp_path / "b.json").read_text())["images"]
    assert images == [plain | {"coco_url": "val2017/1.jpg"}, bare, coco]


def test_images_are_found_in_both_folders_beside_and_flattened(write, tmp_path):
    path = write(value_of([image(139), image(42, "train2017")]))
    names = ["val2017/000000000139.jpg", "train2017/000000000042.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    table = read_lvis(path)
    assert find_images(path, table, None).root == tmp_path
    assert find_images(path, table, None).found == 2
    assert image_path(tmp_path / "val2017", names[0]).is_file()  # by its base name
    (tmp_path / "flat").mkdir()
    for name in names:
        (tmp_path / name).rename(tmp_path / "flat" / name.split("/")[1])
    assert find_images(path, table, tmp_path / "flat").found == 2


@pytest.mark.parametrize("url", ["http://x/../a.jpg", "http://x/..", "c:/a.jpg"])
def test_a_hostile_url_is_refused_by_the_resolver(tmp_path, url):
    with pytest.raises(BadImage):
        image_path(tmp_path, name_of_url(url))


def test_what_is_no_lvis_is_refused(write):
    with pytest.raises(DataFormatError, match="images"):
        read_lvis(write({"annotations": [], "categories": []}))
