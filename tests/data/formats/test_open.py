import json

import pytest

from malcli.data.formats.open import open_boxes, recognise, select
from malcli.data.formats.registry import writer_of
from malcli.errors import ConfigError, DataFormatError
from malcli.records import records_of

IMAGES = [{"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in (3, 1, 2)]
CATEGORIES = [
    {"id": 4, "name": "cat"},
    {"id": 7, "name": "Table Tennis "},
    {"id": 9, "name": "dog"},
]
ANNOTATIONS = [
    {"id": n, "image_id": image, "category_id": category, "bbox": [n, 0, 1, 1]}
    for n, (image, category) in enumerate([(1, 4), (2, 7), (3, 9), (8, 4), (1, 7), (3, 4)])
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "boxes.json"
    value = {"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}
    path.write_text(json.dumps(value))
    return path


def ids(table):
    return [record["id"] for record in records_of(table)]


def test_formats_are_recognised_from_content(path, tmp_path):
    assert recognise(path) == "coco"
    out = tmp_path / "renamed.json"
    table = open_boxes(path)
    writer_of("parquet")(out, table, [records_of(table)])
    assert recognise(out) == "parquet"
    assert ids(open_boxes(out)) == ids(table)
    (tmp_path / "boxes.csv").write_text("ImageID,Source,LabelName,Confidence,XMin,XMax\n")
    assert recognise(tmp_path / "boxes.csv") == "openimages"
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert recognise(tmp_path / "data.yaml") == recognise(tmp_path) == "yolo"


@pytest.mark.parametrize(
    ("image", "annotation", "expected"),
    [
        ({"coco_url": "http://x/val2017/1.jpg", "file_name": "1.jpg"}, {}, "coco"),  # COCO 2017
        ({"coco_url": "http://x/val2017/1.jpg"}, {}, "lvis"),
        ({"neg_category_ids": [], "file_name": "a"}, {}, "lvis"),
        ({"file_name": "images/v1/patch8/objects365_v1_00420917.jpg"}, {}, "objects365"),
        ({"file_name": "a.jpg"}, {"isfake": 0}, "objects365"),
        ({"file_name": "a.jpg"}, {"note": "isfake"}, "coco"),
    ],
)
@pytest.mark.parametrize("fill", [0, 200_000])
def test_the_kinds_of_coco_json_are_told_apart(tmp_path, image, annotation, expected, fill):
    image = {"id": 1, "height": 9, "width": 9} | image
    annotation = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [1, 1, 2, 2]} | annotation
    value = {"info": "x" * fill, "annotations": [annotation], "images": [image], "categories": []}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert recognise(tmp_path / "a.json") == expected
    table = open_boxes(tmp_path / "a.json")
    assert table.format == expected
    assert ids(table) == [1]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"hello"), ("a.txt", b""), ("a.jpg", b"\xff\xd8\xff\xe0")]
)
def test_what_is_no_annotation_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFormatError):
        open_boxes(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"   ", b"hello", b"3", b"[]", b"{", b"\xff\xfe{\0}\0"])
def test_broken_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"a\.json: ") as caught:
        open_boxes(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_wrong_forced_format_is_a_format_error(path):
    with pytest.raises(DataFormatError):
        open_boxes(path, "parquet")


def test_select_without_wishes_is_the_same_table(path):
    table = open_boxes(path)
    assert select(table) is table


def test_limit_keeps_the_first_images_and_their_boxes_only(path):
    table = select(open_boxes(path), limit=2)
    assert table.images["id"].to_pylist() == [3, 1]
    assert ids(table) == [0, 2, 4, 5]
    assert [ids_of.tolist() for _, ids_of in table.by_image()] == [[1, 3], [0, 2]]
    assert table.problems.counts == {}  # the unknown image of box 3 is out of the limit


def test_a_limit_above_the_images_keeps_them_all(path):
    assert ids(select(open_boxes(path), limit=99)) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("wish", "kept"),
    [
        ("cat", [0, 3, 5]),
        ("4", [0, 3, 5]),
        ("dog, 7", [1, 2, 4]),
        ("Table Tennis", [1, 4]),
        ("cat,4,", [0, 3, 5]),
    ],
)
def test_categories_are_given_by_name_or_id(path, wish, kept):
    table = select(open_boxes(path), categories=wish)
    assert ids(table) == kept
    assert table.images.num_rows == 3
    assert table.boxes["status"].to_pylist().count("skipped:no-image") == (3 in kept)


@pytest.mark.parametrize(("wish", "said"), [("dgo", "'dog'"), ("5", "'5'"), (" , ", "no category")])
def test_an_unknown_category_is_an_error(path, wish, said):
    with pytest.raises(ConfigError, match=said):
        select(open_boxes(path), categories=wish)


def test_selection_joins_categories_and_limit(path):
    assert ids(select(open_boxes(path), categories="cat", limit=1)) == [5]
