import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.engine.label.job import hash_input
from malcli.errors import DataFormatError, OutputError
from malcli.records import records_of, to_records


def shape(points, label="ball", kind="rectangle", **more):
    given = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return given | more


def write(path, *shapes, image="a.jpg", size=(120, 160), **more):
    value = {"version": "5.0.1", "flags": {}, "shapes": list(shapes), "imagePath": image}
    value |= {"imageData": None, "imageHeight": size[0], "imageWidth": size[1]} | more
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def photo(path, size=(160, 120)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    photo(root / "a.jpg")
    return root


@pytest.mark.parametrize("points", [
    [[72, 90], [19, 18]], [[19, 90], [72, 18]],
    [[19, 18], [72, 18], [72, 90], [19, 90]], [[72, 90], [19, 90], [19, 18], [72, 18]],
])  # fmt: skip
def test_corners_in_any_order_are_one_box(root, points):
    table = open_boxes(write(root / "a.json", shape(points)))
    assert table.format == "labelme"
    assert table.header == {"categories": [{"id": 1, "name": "ball"}]}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [19, 18, 53, 72]}
    assert records_of(table) == [box]
    image = {"id": 1, "file_name": "a.jpg", "height": 120, "width": 160, "version": "5.0.1"}
    assert to_records(table.images) == [image]


def test_other_keys_stay_with_their_shape_and_file(root):
    more = {"difficult": True, "attributes": {"c": "x"}, "score": 0.5, "description": "d"}
    more |= {"id": 7, "area": 3, "flags": {"f": True}}
    file = write(root / "a.json", shape([[1, 1], [5, 5]], **more), flags={"sunny": True}, id=3)
    (record,) = records_of(open_boxes(file))
    kept = {key: more[key] for key in more if key not in ("id", "area")}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    assert record == box | kept | {"labelme_id": 7, "labelme_area": 3}
    (image,) = to_records(open_boxes(file).images)
    assert (image["flags"], image["labelme_id"], image["id"]) == ({"sunny": True}, 3, 1)


def test_shapes_without_a_box_keep_their_place_and_are_named(root):
    turned = [[50, 10], [90, 50], [50, 90], [10, 50]]
    shapes = [
        shape([[5, 5], [9, 9]], kind="circle"),
        shape([[1, 1], [9, 9]]),
        shape(turned, kind="rotation"),
        shape(turned),
        shape([[1, 1]], kind="point"),
        shape([[1, 1], [2, "x"]]),
        shape([[1, 2], [3, 4]], kind="polygon"),
    ]
    table = open_boxes(write(root / "a.json", *shapes))
    status = table.boxes["status"].to_pylist()
    assert status == ["skipped:bad-box", "ok", *["skipped:bad-box"] * 5]
    records = records_of(table)
    assert [one["id"] for one in records] == list(range(1, 8))
    assert (records[2]["shape_type"], records[2]["points"]) == ("rotation", turned)
    assert table.problems.counts["no-rectangle"] == 6
    assert table.problems.examples["no-rectangle"][0] == "shapes[0] of 'a.json' is a 'circle'"


def test_polygons_are_masks_and_those_of_a_group_are_parts_of_one(root):
    one, other = [[0, 0], [10, 0], [10.5, 20]], [[30, 5], [40, 5], [40, 9]]
    shapes = [
        shape(one, kind="polygon", group_id=4),
        shape([[1, 1], [5, 5]], group_id=4),
        shape(other, kind="polygon", group_id=4, difficult=True),
        shape(other, "box", "polygon", group_id=4),
        shape(other, kind=None),
        shape(other, kind="polygon"),
    ]
    table = open_boxes(write(root / "a.json", *shapes))
    records = records_of(table)
    assert [one["bbox"] for one in records] == [
        [0, 0, 40, 20], [1, 1, 4, 4], *[[30, 5, 10, 4]] * 3,
    ]  # fmt: skip
    assert records[0]["segmentation"] == [[0, 0, 10, 0, 10.5, 20], [30, 5, 40, 5, 40, 9]]
    assert records[0]["difficult"]
    assert [one["id"] for one in records] == [1, 2, 3, 4, 5]


def test_a_folder_of_files_among_photographs_and_other_json(root):
    write(root / "b.json", shape([[1, 1], [2, 3]], "zebra"), image="b.jpg")
    write(root / "sub/a.json", shape([[1, 1], [2, 3]], "ant"))
    photo(root / "sub/a.jpg")
    photo(root / "b.jpg")
    photo(root / "nobody.jpg")
    (root / "coco.json").write_text('{"images":[],"annotations":[],"categories":[]}')
    (root / "list.json").write_text("[1]")
    assert recognise(root) == "labelme"
    table = open_boxes(root)
    assert table.images["file_name"].to_pylist() == ["b.jpg", "sub/a.jpg"]
    assert [one["category_id"] for one in records_of(table)] == [2, 1]
    assert [one["name"] for one in table.header["categories"]] == ["ant", "zebra"]
    assert table.problems.counts == {"other-json": 2}
    (root / "data.yaml").write_text("names: [ant]")
    assert recognise(root) == "yolo"


@pytest.mark.parametrize(
    ("said", "file"),
    [
        ("a.jpg", "a.json"), ("..\\label\\a.jpg", "a.json"), ("C:\\x\\a.jpg", "a.json"),
        ("/home/me/a.jpg", "a.json"), ("../a.jpg", "labels/a.json"), ("", "a.json"),
        (None, "a.json"), ("a.png", "a.json"), ("other.png", "a.json"), ("x/a.JPG", "b.json"),
        ("s3://bucket/a.jpg", "a.json"),
    ],
)  # fmt: skip
def test_the_photograph_is_found_by_any_name(root, said, file):
    write(root / file, shape([[1, 1], [2, 3]]), image=said)
    assert open_boxes(root).images["file_name"].to_pylist() == ["a.jpg"]


@pytest.mark.parametrize(("said", "place"), [("../pics/a.jpg", "pics"), ("a.jpg", "images")])
def test_photographs_in_a_folder_beside_are_found(tmp_path, said, place):
    write(tmp_path / "labels/a.json", shape([[1, 1], [2, 3]]), image=said, size=(0, None))
    photo(tmp_path / place / "a.jpg", (7, 9))
    table = open_boxes(tmp_path / "labels")
    assert table.path == tmp_path / place
    assert (table.images["height"][0].as_py(), table.images["width"][0].as_py()) == (9, 7)


def test_a_photograph_that_is_nowhere_keeps_its_name(root):
    write(root / "z.json", shape([[1, 1], [2, 3]]), image="..\\..\\gone.jpg")
    assert open_boxes(root).images["file_name"].to_pylist() == ["../../gone.jpg"]


def test_image_data_is_not_in_the_table_nor_in_messages(root):
    data = "QUJD" * 60_000
    shapes = [shape([[1, 1], [5, 5]])] * 300  # the first 64 kB end among the shapes
    file = write(root / "a.json", *shapes, imageData=data)
    assert recognise(file) == recognise(root) == "labelme"
    table = open_boxes(file)
    assert "QUJD" not in str(to_records(table.images) + records_of(table))
    file.write_text(file.read_text()[:-1])
    with pytest.raises(DataFormatError) as caught:
        open_boxes(file, "labelme")
    assert len(str(caught.value)) < 200 + len(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"shapes": [\n{"label": }]}', "line 2, column 11"),
        (b'{"shapes": ["\xff"]}', "not UTF-8"),
        (b'{"shapes": [1]}', "shapes[0]"),
        (b'{"shapes": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        (b'{"shapes": 1}', "has no labelme JSON"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_annotation_is_refused_in_one_line(root, text, said):
    (root / "c.json").write_bytes(text)
    with pytest.raises(DataFormatError) as caught:
        open_boxes(root / "c.json", "labelme")
    assert said in str(caught.value)
    assert "c.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_and_a_byte_order_mark_stop_nothing(root):
    file = write(root / "a.json", shape([[float("nan"), 1], [5, 5]]), shape([[1, 1], [5, 5]]))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert recognise(file) == "labelme"
    assert open_boxes(file).boxes["status"].to_pylist() == ["skipped:bad-box", "ok"]


def test_an_output_in_the_folder_is_no_part_of_the_input(root):
    write(root / "a.json", shape([[1, 1], [2, 3]]))
    out = root / "masks.json"
    before = hash_input(root, out)
    out.write_text("{}")
    (root / "masks.json.parts").mkdir()
    (root / "masks.json.parts/manifest.json").write_text("{}")
    assert hash_input(root, out) == before
    assert hash_input(root) != before


RING = np.zeros((120, 160), dtype=np.uint8)
RING[10:40, 20:60] = 1
RING[20:30, 30:50] = 0  # a hole
RING[50:60, 70:80] = 1  # a second part


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return rle | {"counts": rle["counts"].decode()}


def labelled(path, masks, **header):
    """Write a COCO file as `label` does for boxes, one image, ids from 5 on."""
    images = [{"id": 1, "file_name": "a.jpg", "height": 120, "width": 160}]
    boxes = [
        {"id": 5 + n, "image_id": 1, "category_id": 1, "bbox": [20, 10, 60, 50], "area": 9,
         "malcli_score": 0.5, "malcli_status": "ok", "difficult": n == 1}
        | ({"segmentation": rle_of(mask)} if mask is not None else {})
        for n, mask in enumerate(masks)
    ]  # fmt: skip
    value = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ball"}]}
    path.write_text(json.dumps(value | header))
    return path


def to_labelme(src, dst, **options):
    return convert(ConvertConfig(src=src, dst=dst, to="labelme", **options))


def test_masks_come_back_with_their_ids_pixels_and_keys(root, tmp_path):
    src = labelled(tmp_path / "m.json", [RING, None, RING, RING * 0], info={"a": 1})
    result = to_labelme(src, tmp_path / "out", images=root)
    assert (result.records_out, result.left_out) == (4, 0)
    assert result.lost == {
        "header 'info'": 1, "key 'area'": 4, "empty masks, which become boxes": 1,
    }  # fmt: skip
    assert (tmp_path / "out/a.jpg").resolve() == root / "a.jpg"
    made = json.loads((tmp_path / "out/a.json").read_text())
    assert (made["imagePath"], made["imageData"]) == ("a.jpg", None)
    kinds = [(one["malcli_id"], one["shape_type"], one["group_id"]) for one in made["shapes"]]
    parts = [(5, "polygon", 5)] * 2, [(7, "polygon", 7)] * 2
    assert kinds == [*parts[0], (6, "rectangle", None), *parts[1], (8, "rectangle", None)]
    assert made["shapes"][2]["points"] == [[20, 10], [80, 60]]
    back = open_boxes(tmp_path / "out")
    assert not back.problems.counts.keys() - {"equal-box"}
    for old, new in zip(records_of(open_boxes(src)), records_of(back), strict=True):
        mask, empty = new.pop("segmentation", None), not (old["id"] % 2)
        given = old.pop("segmentation", None)
        del old["area"]
        assert new == old
        assert (mask is None) == empty
        if mask:
            polygons = coco_mask.merge(coco_mask.frPyObjects(mask, 120, 160))
            assert coco_mask.decode(polygons).tolist() == coco_mask.decode(given).tolist()
    assert to_labelme(src, tmp_path / "out", images=root).unchanged


def test_what_the_tool_added_gets_new_ids_and_a_copy_does_not_stop_the_job(root, tmp_path):
    to_labelme(labelled(tmp_path / "m.json", [RING, None]), tmp_path / "out")
    file = tmp_path / "out/a.json"
    value = json.loads(file.read_text())
    copy = value["shapes"][-1] | {"points": [[1, 1], [7, 8]]}
    value["shapes"] = [shape([[1, 1], [4, 4]]), *value["shapes"], copy]
    file.write_text(json.dumps(value))
    table = open_boxes(tmp_path / "out")
    assert [one["id"] for one in records_of(table)] == [7, 5, 6, 8]
    assert table.problems.counts["new-id"] == 1
    assert table.problems.examples["new-id"] == [
        "malcli_id 6 ('a.jpg') stands twice; it gets another"
    ]


def test_a_tool_s_folder_goes_round_unchanged(root, tmp_path):
    circle = shape([[5, 5], [9, 9]], kind="circle", description="")
    rectangle = shape([[1, 1], [5.25, 5]], kie_linking=[], score=None, id="x", group_id=3)
    write(root / "a.json", circle, rectangle, flags={"sunny": True}, checked=True, id=4)
    to_labelme(root, tmp_path / "out")
    made = json.loads((tmp_path / "out/a.json").read_text())
    assert made.pop("made_by") == "malcli"
    assert [one.pop("malcli_id") for one in made["shapes"]] == [1, 2]
    assert made == json.loads((root / "a.json").read_text())


def test_polygons_drawn_by_hand_stay_as_drawn(root, tmp_path):
    points = [[0.5, 0.5], [10, 0], [10.5, 20]]
    write(root / "a.json", shape(points, kind="polygon"))
    to_labelme(root, tmp_path / "out")
    assert json.loads((tmp_path / "out/a.json").read_text())["shapes"][0]["points"] == points


def test_ids_that_are_text_go_round(root, tmp_path):
    src = labelled(tmp_path / "m.json", [RING, None])
    value = json.loads(src.read_text())
    value["annotations"][0]["id"] = "five"
    src.write_text(json.dumps(value))
    to_labelme(src, tmp_path / "out")
    assert [one["id"] for one in records_of(open_boxes(tmp_path / "out"))] == ["five", 6]


def test_two_photographs_never_share_a_file(root, tmp_path):
    value = json.loads(labelled(tmp_path / "m.json", []).read_text())
    value["images"].append(value["images"][0] | {"id": 2, "file_name": "A.png"})
    (tmp_path / "m.json").write_text(json.dumps(value))
    with pytest.raises(OutputError, match="would both be"):
        to_labelme(tmp_path / "m.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_tool_has_saved_since_is_not_replaced(root, tmp_path):
    src = labelled(tmp_path / "m.json", [RING])
    to_labelme(src, tmp_path / "out", images=root)
    other = labelled(tmp_path / "n.json", [None])
    to_labelme(other, tmp_path / "out", images=root, overwrite=True)
    file = tmp_path / "out/a.json"
    value = json.loads(file.read_text())
    value["made_by"] = value.pop("made_by")  # as the tools do: their own keys first
    file.write_text(json.dumps(value))
    with pytest.raises(OutputError, match="did not make"):
        to_labelme(src, tmp_path / "out", images=root, overwrite=True)
    with pytest.raises(OutputError, match="did not make"):
        to_labelme(src, root, overwrite=True)


def test_polygons_of_one_group_with_different_ids_stay_apart(root):
    points = [[0, 0], [10, 0], [10, 20]]
    given = {"kind": "polygon", "group_id": 1}
    shapes = [shape(points, malcli_id=3, **given), shape(points, malcli_id=4, **given)]
    records = records_of(open_boxes(write(root / "a.json", *shapes)))
    assert [one["id"] for one in records] == [3, 4]


def test_a_box_that_becomes_its_mask_s_and_a_category_without_boxes_are_counted(root, tmp_path):
    value = json.loads(labelled(tmp_path / "m.json", [RING]).read_text())
    value["annotations"][0]["bbox"] = [15, 10, 65, 50]
    value["categories"].append({"id": 2, "name": "nobody"})
    (tmp_path / "m.json").write_text(json.dumps(value))
    lost = to_labelme(tmp_path / "m.json", tmp_path / "out").lost
    assert lost["boxes, which become those of their masks"] == 1
    assert lost["categories without boxes"] == 1
