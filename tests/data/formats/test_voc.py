import json
from collections import Counter

import pytest
from PIL import Image

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.engine.label.job import hash_input
from malcli.errors import DataFormatError, OutputError
from malcli.records import records_of, to_records

SIZE = "<size><width>160</width><height>120</height><depth>3</depth></size>"


def bndbox(*corners):
    names = ("xmin", "ymin", "xmax", "ymax")
    sides = (f"<{key}>{side}</{key}>" for key, side in zip(names, corners, strict=True))
    return f"<bndbox>{''.join(sides)}</bndbox>"


def thing(name, *corners, more=""):
    return f"<object><name>{name}</name>{more}{bndbox(*corners)}</object>"


def annotation(*objects, filename="a.jpg", size=SIZE, more=""):
    name = f"<filename>{filename}</filename>"
    return f"<annotation>{name}{more}{size}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path):
    """A data set of two images; b has no box."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (160, 120)).save(root / f"JPEGImages/{name}.jpg")
    objects = thing("dog", 1, 1, 160, 120), thing("cat", "10.5", "2e1", " 30 ", 40)
    (root / "Annotations/a.xml").write_text(annotation(*objects))
    (root / "Annotations/b.xml").write_text(annotation(filename="b.jpg"))
    (root / "ImageSets/Main/val.txt").write_text("b -1\n")
    return root


def read(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return open_boxes(path)


def test_the_whole_image_is_a_box_of_its_size_and_categories_are_sorted(root):
    table = open_boxes(root)
    assert table.header == {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 160, 120]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [9.5, 19, 20.5, 21]},
    ]
    size = {"height": 120, "width": 160}
    assert to_records(table.images) == [
        {"id": 1, "file_name": "a.jpg", **size},
        {"id": 2, "file_name": "b.jpg", "split": "val", **size},
    ]


def test_every_way_to_name_the_data_set_gives_the_same_boxes(root, tmp_path):
    expected = records_of(open_boxes(root))
    for place in ("Annotations", "Annotations/a.xml"):
        assert recognise(root / place) == "voc"
        assert records_of(open_boxes(root / place)) == expected
        assert open_boxes(root / place).path == root / "JPEGImages"
    flat = tmp_path / "flat/train"
    flat.mkdir(parents=True)
    for path in root.rglob("*.*"):
        (flat / path.name).write_bytes(path.read_bytes())
    assert records_of(open_boxes(flat)) == expected
    names = open_boxes(tmp_path / "flat").images["file_name"].to_pylist()
    assert names == ["train/a.jpg", "train/b.jpg"]
    assert open_boxes(tmp_path).images["file_name"][0].as_py() == "VOC2007/JPEGImages/a.jpg"


@pytest.mark.parametrize(
    ("filename", "more"),
    [("a", ""), ("C:\\x\\a.jpg", ""), ("", "<path>/home/me/a.jpg</path>"), ("a.png", "")],
)
def test_an_image_is_found_under_another_name(root, filename, more):
    table = read(root / "Annotations/a.xml", annotation(filename=filename, more=more))
    assert table.images["file_name"].to_pylist() == ["a.jpg"]


@pytest.mark.parametrize("size", ["", SIZE.replace("160", "0"), SIZE.replace("120", "x")])
def test_a_size_that_is_not_stated_is_the_header_s(root, size):
    table = read(root / "Annotations/a.xml", annotation(thing("cat", 1, 1, 2, 2), size=size))
    assert to_records(table.images)[0] == {
        "id": 1, "file_name": "a.jpg", "height": 120, "width": 160,
    }  # fmt: skip


def test_other_keys_stay_and_parts_are_no_boxes(root):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    more = (
        f"<pose>Left</pose><difficult>1</difficult><truncated>0</truncated>{part}{part}<id>7</id>"
    )
    table = read(root / "Annotations/a.xml", annotation(thing("cat", 1, 1, 2, 2, more=more)))
    head = {"name": "head", "bndbox": {"xmin": "1"}}
    kept = {"pose": "Left", "difficult": 1, "truncated": 0, "part": [head, head], "xml_id": "7"}
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], **kept}
    ]


def test_what_is_no_box_stays_in_its_place_and_is_named(root):
    polygon = "<object><name>cat</name><polygon><x1>3</x1></polygon></object>"
    objects = [
        polygon,
        thing("cat", "a", 1, 2, 3),
        thing("dog", 1, 1, 9, 9),
        thing("dog", 9, 1, 3, 2),
    ]
    table = read(root / "Annotations/a.xml", annotation(*objects))
    status = table.boxes["status"].to_pylist()
    assert status == ["skipped:bad-box", "skipped:bad-box", "ok", "skipped:bad-box"]
    records = records_of(table)
    assert [one["id"] for one in records] == [1, 2, 3, 4]
    assert records[0]["polygon"] == {"x1": "3"}
    assert records[1]["bndbox"]["xmin"] == "a"
    assert table.problems.counts["no-bndbox"] == 1
    assert table.problems.examples["no-bndbox"] == [
        "annotation 1 ('a.xml') has polygon in place of bndbox"
    ]


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-16", "cp1252", "utf-8"])
def test_a_declared_encoding_is_read(root, encoding):
    name = "猫" if encoding in ("gbk", "utf-16", "utf-8") else "é"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + annotation(thing(name, 1, 1, 2, 2))
    table = read(root / "Annotations/a.xml", text, encoding)
    assert table.header["categories"] == [{"id": 1, "name": name}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation>\n<object>\n</annotation>", "line 3: not well-formed XML"),
        ("<annotation>", "line 1: not well-formed XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "DOCTYPE"),
        ("<annotations/>", "holds <annotations>"),
        ('<?xml version="1.0" encoding="gbk"?><annotation>\xff\xff</annotation>', "'gbk'"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "'none'"),
        ("<annotation>" + "<a>" * 9000 + "</a>" * 9000 + "</annotation>", "nested too deeply"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_annotation_is_refused_in_one_line(root, text, said):
    (root / "Annotations/c.xml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataFormatError, match=r"c\.xml: ") as caught:
        open_boxes(root)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_xml_and_other_folders_are_not_taken(tmp_path):
    (tmp_path / "a.xml").write_text("<!-- <annotation> --><annotated/>")
    for path in (tmp_path, tmp_path / "a.xml"):
        with pytest.raises(DataFormatError):
            recognise(path)


def test_a_folder_s_hash_follows_its_xml(root):
    before = hash_input(root)
    (root / "JPEGImages/c.jpg").write_bytes(b"")
    assert hash_input(root) == before
    (root / "Annotations/c.xml").write_text(annotation())
    assert hash_input(root) != before


def coco(path, names=("s/a.jpg", "s/b.jpg"), **more):
    images = [
        {"id": n, "file_name": name, "height": 90, "width": 80} for n, name in enumerate(names, 1)
    ]
    box = {"image_id": 1, "bbox": [-0.5, 0.1, 10.25, 3.333333], "category_id": 5}
    boxes = [
        box | {"id": 1, "difficult": 1},
        box | {"id": 2, "image_id": 2, "category_id": 3} | more,
    ]
    categories = [{"id": 3, "name": "a<&"}, {"id": 5, "name": "b"}]
    value = {"images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(value))
    return path


def to_voc(src, dst, **options):
    return convert(ConvertConfig(src=src, dst=dst, to="voc", **options))


def test_what_is_written_comes_back(tmp_path):
    mask = {"size": [90, 80], "counts": "PQ3"}
    more = {"segmentation": mask, "malcli_score": 0.5, "malcli_status": "ok", "area": 2}
    src = coco(tmp_path / "x_val.json", **more)
    result = to_voc(src, tmp_path / "voc")
    assert result.records_out == 2
    assert result.lost == {
        "masks, which VOC's XML cannot say": 1, "key 'area'": 1, "key 'id'": 2,
        "ids of categories, which get others": 2,
    }  # fmt: skip
    table = open_boxes(tmp_path / "voc")
    box = {"bbox": [-0.5, 0.1, 10.25, 3.333333]}
    score = {"malcli_score": 0.5, "malcli_status": "ok"}
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 2, "difficult": 1} | box,
        {"id": 2, "image_id": 2, "category_id": 1} | box | score,
    ]
    assert [one["name"] for one in table.header["categories"]] == ["a<&", "b"]
    assert table.images["file_name"].to_pylist() == ["s/a.jpg", "s/b.jpg"]
    assert (tmp_path / "voc/ImageSets/Main/val.txt").read_text() == "s/a\ns/b\n"
    assert to_voc(src, tmp_path / "voc").unchanged
    again = to_voc(tmp_path / "voc", tmp_path / "again")
    assert again.left_out == 0
    for path in (tmp_path / "voc/Annotations").rglob("*.xml"):
        name = path.relative_to(tmp_path / "voc")
        assert (tmp_path / "again" / name).read_text() == path.read_text()


def test_what_xml_cannot_say_is_left_out_and_counted(tmp_path):
    src = coco(tmp_path / "x.json", bbox=[1, 1, 0, 5])
    result = to_voc(src, tmp_path / "voc")
    assert (result.records_out, result.left_out) == (1, 1)
    assert result.lost["annotations without a usable box"] == 1
    assert Counter(open_boxes(tmp_path / "voc").boxes["image_id"].to_pylist()) == {1: 1}


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "a.jpg"), ("a.jpg", "A.jpg")])
def test_two_images_never_share_a_file(tmp_path, names):
    with pytest.raises(OutputError, match="would both be"):
        to_voc(coco(tmp_path / "x.json", names), tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


def test_a_data_set_made_by_others_is_not_replaced(root, tmp_path):
    src = coco(tmp_path / "x.json")
    with pytest.raises(OutputError, match="did not make"):
        to_voc(src, root, overwrite=True)
    to_voc(src, tmp_path / "voc")
    assert to_voc(coco(tmp_path / "y.json", ("c.jpg", "d.jpg")), tmp_path / "voc", overwrite=True)
    with pytest.raises(OutputError, match="is also the input"):
        to_voc(tmp_path / "voc", tmp_path / "voc", overwrite=True)
