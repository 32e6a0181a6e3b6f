import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.errors import DataFormatError
from malcli.records import records_of, to_records

COLUMNS = (
    "filename", "file_size", "file_attributes", "region_count", "region_id",
    "region_shape_attributes", "region_attributes",
)  # fmt: skip


def rect(x, y, w, h, **attributes):
    shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
    return {"shape_attributes": shape, "region_attributes": attributes}


POLYGON = {
    "shape_attributes": {
        "name": "polygon", "all_points_x": [1, 30, 30.5], "all_points_y": [2, 3, 40],
    },
    "region_attributes": {"type": "b", "q": "1"},
}  # fmt: skip
CIRCLE = {
    "shape_attributes": {"name": "circle", "cx": 5, "cy": 6, "r": 3},
    "region_attributes": {"type": "a"},
}


def files(a, b=()):
    a = {"filename": "a.jpg", "size": 12, "regions": list(a), "file_attributes": {"w": "1"}}
    b = {"filename": "b.jpg", "size": 3, "regions": list(b), "file_attributes": {}}
    return {"a.jpg12": a, "b.jpg3": b}


SETTINGS = {"_via_settings": {"core": {"default_filepath": "p/"}}}
ATTRIBUTES = {"_via_attributes": {"region": {"type": {"type": "text"}}, "file": {}}}


def write(path, value, kind="project"):
    if kind == "project":
        value = SETTINGS | {"_via_img_metadata": value} | ATTRIBUTES
    if kind == "via1":
        for each in value.values():
            each["regions"] = {str(n): one for n, one in enumerate(each["regions"])}
    if kind != "csv":
        path.write_text(json.dumps(value))
        return path
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for each in value.values():
            head = [each["filename"], each["size"], json.dumps(each["file_attributes"])]
            regions = each["regions"]
            if not regions:
                writer.writerow([*head, 0, 0, "{}", "{}"])
            for n, one in enumerate(regions):
                shape, attributes = one["shape_attributes"], one["region_attributes"]
                texts = json.dumps(shape), json.dumps(attributes)
                writer.writerow([*head, len(regions), n, *texts])
    return path


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        Image.new("RGB", (160, 120)).save(tmp_path / f"{name}.jpg")
    return tmp_path


@pytest.mark.parametrize("kind", ["project", "regions", "via1", "csv"])
def test_every_form_of_file_says_the_same(root, kind):
    value = files([rect(10, 10, 50, 60.5, type="a"), POLYGON, CIRCLE])
    path = write(root / ("x.csv" if kind == "csv" else "x.json"), value, kind)
    assert recognise(path) == "via"
    table = open_boxes(path)
    size = {"height": 120, "width": 160}
    assert to_records(table.images) == [
        {"id": 1, "file_name": "a.jpg", "size": 12, "file_attributes": {"w": "1"}} | size,
        {"id": 2, "file_name": "b.jpg", "size": 3} | size,
    ]
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 60.5]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [1, 2, 29.5, 38],
         "segmentation": [[1, 2, 30, 3, 30.5, 40]], "region_attributes": {"q": "1"}},
        {"id": 3, "image_id": 1, "category_id": 1,
         "shape_attributes": CIRCLE["shape_attributes"]},
    ]  # fmt: skip
    assert table.boxes["status"].to_pylist() == ["ok", "ok", "skipped:bad-box"]
    assert table.problems.examples["no-rect"] == ["region 2 of 'a.jpg' is a 'circle'"]
    kept = {"settings": SETTINGS["_via_settings"], "attributes": ATTRIBUTES["_via_attributes"]}
    kept = kept if kind == "project" else {}
    names = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    assert table.header == names | {"via": kept | {"class": "type"}}


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ([{"id": "1", "Class": "x"}, {"id": "2", "Class": "x"}], "Class"),
        ([{"type": "x", "label": "y"}, {"id": "2", "type": "z"}], "label"),
        ([{"fish": "x", "size": "1"}, {"fish": "y", "size": "1"}], "fish"),
        ([{"b": "x", "a": "y"}], "b"),
        ([{"malcli_id": 1, "b": "x"}, {"malcli_id": 2, "b": "x"}], "b"),
        ([{"class": "", "b": "x"}], "b"),
    ],
)
def test_the_attribute_of_the_class_follows_the_rule(root, attributes, wanted):
    regions = [rect(1, 1, 5, 5, **each) for each in attributes]
    table = open_boxes(write(root / "x.json", files(regions)))
    assert table.header["via"]["class"] == wanted
    names = sorted({each[wanted] for each in attributes if wanted in each})
    assert [one["name"] for one in table.header["categories"]] == names


def test_ticked_names_are_the_class_and_a_region_without_one_is_labelled(root):
    regions = [
        rect(1, 1, 5, 5, kind={"cat": True, "old": True}),
        rect(1, 1, 5, 6),
        rect(1, 1, 5, 7, kind={"dog": True}),
    ]
    table = open_boxes(write(root / "x.json", files(regions)))
    assert [one["name"] for one in table.header["categories"]] == ["cat,old", "dog"]
    assert [one.get("category_id") for one in records_of(table)] == [1, None, 2]
    assert table.boxes["status"].to_pylist() == ["ok"] * 3
    assert table.problems.counts == {"unknown-category": 1}


def test_photographs_lie_in_images_beside_the_file_too(root):
    (root / "x").mkdir()
    (root / "images").mkdir()
    (root / "a.jpg").rename(root / "images/a.jpg")
    table = open_boxes(write(root / "x/x.json", files([rect(1, 1, 5, 5, type="a")])))
    assert table.path == root / "images"
    assert table.boxes["status"].to_pylist() == ["ok"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"_via_img_metadata": {"a": 1}}', "'a': has no filename"),
        ("x.json", '{"_via_img_metadata": {"a": {"filename": "a", "regions": [1]}}}', "regions"),
        ("x.json", '{"_via_img_metadata": {"a": ', "ends too early"),
        ("x.json", "[]", "line 1"),
        ("x.csv", ",".join(COLUMNS) + "\na,1,{},1\n", "line 2: has 4 columns"),
        ("x.csv", ",".join(COLUMNS) + "\na,1,{},1,0,{,{}\n", "line 2, key 'region_shape"),
        ("x.csv", "filename,x\n", "line 1: has no column region_shape_attributes"),
    ],
)
def test_a_file_that_is_not_via_s_is_refused_in_one_line(root, name, text, said):
    (root / name).write_text(text)
    with pytest.raises(DataFormatError) as caught:
        open_boxes(root / name, "via")
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


MASK = np.zeros((120, 160), dtype=np.uint8)
MASK[10:40, 20:60] = 1
MASK[20:30, 30:50] = 0
MASK[50:60, 70:80] = 1


def to_via(src, dst, **options):
    return convert(ConvertConfig(src=src, dst=dst, to="via", **options))


def test_boxes_become_masks_and_come_back_with_their_ids(root):
    regions = [rect(20, 10, 60, 50, fish="a", q="1"), rect(1, 2, 30.25, 40), rect(3, 3, 0, 9)]
    src = write(root / "x.json", files(regions, [rect(3, 3, 9, 9, fish="b")]))
    convert(ConvertConfig(src=src, dst=root / "coco.json"))
    value = json.loads((root / "coco.json").read_text())
    rle = coco_mask.encode(np.asfortranarray(MASK))
    mask = rle | {"counts": rle["counts"].decode()}
    value["annotations"][0] |= {"segmentation": mask, "malcli_score": 0.5, "malcli_status": "ok"}
    (root / "masks.json").write_text(json.dumps(value))
    result = to_via(root / "masks.json", root / "back.json")
    assert (result.records_out, result.left_out) == (3, 1)
    assert result.lost == {
        "masks of several parts, joined by bridges": 1,
        "annotations without a usable box": 1,
    }  # fmt: skip
    made = json.loads((root / "back.json").read_text())
    assert made["_via_settings"] == SETTINGS["_via_settings"]
    assert made["_via_image_id_list"] == list(made["_via_img_metadata"]) == ["a.jpg12", "b.jpg3"]
    assert set(made["_via_attributes"]["region"]["fish"]["options"]) == {"a", "b"}
    old, new = value["annotations"], records_of(open_boxes(root / "back.json"))
    assert [one["id"] for one in new] == [1, 2, 4]
    drawn = coco_mask.merge(coco_mask.frPyObjects(new[0].pop("segmentation"), 120, 160))
    assert coco_mask.decode(drawn).tolist() == MASK.tolist()
    del old[0]["segmentation"], old[2]
    assert new == old


def test_a_project_goes_round_unchanged_but_for_the_ids(root):
    value = files([rect(1, 2, 3, 4.5, type="a"), POLYGON, CIRCLE])
    src = write(root / "x.json", value)
    to_via(src, root / "y.json")
    made = json.loads((root / "y.json").read_text())
    number = 0
    for file in made["_via_img_metadata"].values():
        for region in file["regions"]:
            number += 1
            assert region["region_attributes"].pop("malcli_id") == number
    assert made["_via_img_metadata"] == value
    assert {key: made[key] for key in SETTINGS | ATTRIBUTES} == SETTINGS | ATTRIBUTES


def test_a_photograph_s_size_in_bytes_is_that_of_its_file(root):
    image = {"id": 1, "file_name": "a.jpg", "height": 120, "width": 160}
    value = {"images": [image, image | {"id": 2, "file_name": "gone.jpg"}]}
    (root / "c.json").write_text(json.dumps(value | {"annotations": [], "categories": []}))
    to_via(root / "c.json", root / "y.json")
    made = json.loads((root / "y.json").read_text())
    size = (root / "a.jpg").stat().st_size
    assert list(made["_via_img_metadata"]) == [f"a.jpg{size}", "gone.jpg-1"]
    assert list(made["_via_attributes"]["region"]) == ["class"]


def test_what_a_region_cannot_say_is_counted(root):
    image = {"id": 1, "file_name": "a.jpg", "height": 120, "width": 160, "url": "u"}
    box = {"image_id": 1, "category_id": 1}
    boxes = [box | {"id": 1, "bbox": [1, 1, 0, 5]}, box | {"id": 2, "area": 3, "bbox": [1] * 4}]
    value = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (root / "c.json").write_text(json.dumps(value))
    result = to_via(root / "c.json", root / "y.json")
    assert (result.records_out, result.left_out) == (1, 1)
    assert result.lost == {
        "annotations without a usable box": 1, "key 'area'": 1, "other keys of images": 1,
    }  # fmt: skip


def test_what_the_tool_saves_as_text_is_a_number_again(root):
    region = rect(1, 1, 5, 5, type="a", malcli_id="7", malcli_score="0.25", malcli_status="ok")
    (record,) = records_of(open_boxes(write(root / "x.json", files([region]))))
    assert (record["id"], record["malcli_score"], record["malcli_status"]) == (7, 0.25, "ok")
    assert "region_attributes" not in record
