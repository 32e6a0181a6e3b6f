import json

import pytest
from PIL import Image

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.errors import DataFormatError
from malcli.records import records_of, to_records


def box(label, x, y, w, h, **more):
    sides = {"x": x, "y": y, "width": w, "height": h}
    return {"label": label, "coordinates": sides} | more


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        Image.new("RGB", (160, 120)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def write(path, *images):
    path.write_text(json.dumps(images))
    return path


@pytest.mark.parametrize("key", ["image", "imagefilename"])
def test_a_box_is_said_by_its_centre(root, key):
    boxes = [box("dog", 50, 40.5, 31, 20, confidence=0.5, id=9), box("cat", 5, 5, 10, 10)]
    file = write(root / "x.json", {key: "a.jpg", "annotations": boxes}, {key: "x/b.jpg"})
    assert recognise(file) == "createml"
    table = open_boxes(file)
    assert table.header == {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [34.5, 30.5, 31, 20],
         "confidence": 0.5, "createml_id": 9},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
    ]  # fmt: skip
    size = {"height": 120, "width": 160}
    assert to_records(table.images) == [
        {"id": 1, "file_name": "a.jpg"} | size, {"id": 2, "file_name": "b.jpg"} | size,
    ]  # fmt: skip


def test_what_is_no_box_keeps_its_place_and_is_named(root):
    boxes = [{"label": "dog"}, box("dog", 1, 1, "x", 2), box("dog", 5, 5, 2, 2)]
    table = open_boxes(write(root / "x.json", {"image": "a.jpg", "annotations": boxes}))
    assert table.boxes["status"].to_pylist() == ["skipped:bad-box", "skipped:bad-box", "ok"]
    assert [one["id"] for one in records_of(table)] == [1, 2, 3]
    assert records_of(table)[1]["coordinates"]["width"] == "x"
    assert table.problems.examples["no-coordinates"] == [
        f"[0].annotations[{n}] ('a.jpg') has no four coordinates" for n in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"annotations": []}]', "[0], key 'image': has no image"),
        ("[1]", "[0], key 'image': has no image"),
        ('[{"image": "a.jpg", "annotations": [1]}]', "[0], key 'annotations'"),
        ('[{"image": "a.jpg", "annotations": [', "ends too early"),
        ("{}", "is no list"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(root, text, said):
    (root / "x.json").write_text(text)
    with pytest.raises(DataFormatError, match=r"x\.json: ") as caught:
        open_boxes(root / "x.json", "createml")
    assert said in str(caught.value)


def test_other_lists_are_not_taken(root):
    (root / "x.json").write_text('[{"image_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]')
    assert recognise(root / "x.json") == "coco"


def to_createml(src, dst):
    return convert(ConvertConfig(src=src, dst=dst, to="createml"))


def test_what_is_written_comes_back_with_its_ids(root):
    boxes = [box("dog", 50, 40.5, 31, 20), {"label": "dog"}, box("cat", 5, 5, 10, 10)]
    images = {"image": "a.jpg", "annotations": boxes}, {"image": "b.jpg", "annotations": []}
    convert(ConvertConfig(src=write(root / "x.json", *images), dst=root / "c.json"))
    value = json.loads((root / "c.json").read_text())
    mask = {"size": [120, 160], "counts": "PQ3"}
    value["annotations"][0] |= {"segmentation": mask, "malcli_score": 0.5, "malcli_status": "ok"}
    (root / "masks.json").write_text(json.dumps(value))
    result = to_createml(root / "masks.json", root / "back.json")
    assert (result.records_out, result.left_out) == (2, 1)
    assert result.lost == {
        "masks, which Create ML cannot say": 1, "key 'malcli_score'": 1, "key 'malcli_status'": 1,
        "annotations without a usable box": 1,
    }  # fmt: skip
    images[0]["annotations"] = [boxes[0] | {"malcli_id": 1}, boxes[2] | {"malcli_id": 3}]
    assert json.loads((root / "back.json").read_text()) == list(images)
    back = open_boxes(root / "back.json")
    old = records_of(open_boxes(root / "x.json"))
    assert records_of(back) == [old[0], old[2]]
    assert back.images["file_name"].to_pylist() == ["a.jpg", "b.jpg"]
