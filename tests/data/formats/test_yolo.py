import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from malcli.data.formats.yolo_read import read_yolo
from malcli.data.images.find import find_images
from malcli.errors import DataFormatError, MalcliError, MissingImageError
from malcli.records import records_of

YAML = "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: 'Table Tennis '\n"


def put(root, name, labels=None, size=(60, 40)):
    """Write an image and, beside it as YOLO wants it, its labels."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    if labels is not None:
        text = root / name.replace("images/", "labels/").replace(".png", ".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_bytes(labels if isinstance(labels, bytes) else labels.encode())


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data.yaml").write_text(YAML)
    put(tmp_path, "images/val/v.png", "1 0.5 0.5 0.5 0.5\n", (100, 80))
    put(tmp_path, "images/train/b.png", "0 0.1 0.2 0.5 0.2 0.5 0.7\n\n1 0.25 0.5 0.5 1 0.875\n")
    put(tmp_path, "images/train/a.png")  # no labels: no objects
    return tmp_path


@pytest.mark.parametrize("name", ["", "data.yaml"])
def test_boxes_and_polygons_become_pixels(root, name):
    table = read_yolo(root / name)
    assert table.images.select(["id", "file_name", "height", "width"]).to_pylist() == [
        {"id": 1, "file_name": "images/train/a.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "images/train/b.png", "height": 40, "width": 60},
        {"id": 3, "file_name": "images/val/v.png", "height": 80, "width": 100},
    ]
    polygon, box, other = records_of(table)
    assert polygon.pop("segmentation")[0] == pytest.approx([6, 8, 30, 8, 30, 28])
    assert polygon.pop("bbox") == pytest.approx([6, 8, 24, 20])
    assert polygon == {"id": 1, "image_id": 2, "category_id": 0}
    assert box == {"id": 2, "image_id": 2, "category_id": 1, "score": 0.875} | {
        "bbox": [0, 0, 30, 40]
    }
    assert other["bbox"] == [25, 20, 50, 40]
    assert table.header["categories"] == [
        {"id": 0, "name": "cat"},
        {"id": 1, "name": "Table Tennis "},
    ]
    assert table.boxes["status"].to_pylist() == ["ok"] * 3
    assert find_images(root / name, table, None).root == root.resolve()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("0 0.5 0.5 0.1", "bad-box"),
        ("0 0.5 0.5 0.1 nan", "bad-box"),
        ("0 0.5 0.5 0.1 1e400", "bad-box"),
        ("0 0.5 0.5 0 0.1", "bad-box"),
        ("0 2.5 0.5 0.1 0.1", "bad-box"),
        ("cat 0.5 0.5 0.1 0.1", "bad-box"),
        ("0.5 0.5 0.5 0.1 0.1", "bad-box"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "bad-box"),
        ("[1, 2]", "bad-box"),
        ("5 0.5 0.5 0.1 0.1", "ok"),  # unknown category: labelled and reported
    ],
)
def test_a_bad_line_is_a_counted_record(root, line, status):
    put(root, "images/train/a.png", line + "\n0 0.5 0.5 0.5 0.5")
    table = read_yolo(root)
    expected = status if status == "ok" else f"skipped:{status}"
    assert table.boxes["status"].to_pylist() == [expected, "ok", "ok", "ok", "ok"]
    assert set(table.problems.counts) == {status if status != "ok" else "unknown-category"} | (
        {"unknown-category"} if "line" in records_of(table)[0] else set()
    )
    if "line" in records_of(table)[0]:
        assert table.problems.examples["bad-box"] == [
            f"annotation 1: the line {line!r} for image 'images/train/a.png' is no box"
        ]


def test_an_unreadable_image_keeps_its_lines(root):
    (root / "images/train/b.png").write_bytes(b"broken")
    table = read_yolo(root)
    assert table.boxes["status"].to_pylist() == ["skipped:bad-image"] * 2 + ["ok"]
    assert records_of(table)[0]["line"] == "0 0.1 0.2 0.5 0.2 0.5 0.7"


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, dog]\ntrain: ../images/train\n",  # as Roboflow exports
        "names: [cat, dog]\npath: .\ntrain: [images/train]\nval: images/val\n",
        "names: {'0': cat, '1': dog}\npath: /nowhere\n",
        "names: [cat, dog]\ntrain: list.txt\n",
    ],
)
def test_the_habits_of_other_tools_are_understood(root, text):
    (root / "data.yaml").write_text(text)
    (root / "list.txt").write_text(f"./images/train/a.png\n{root}/images/train/b.png\n")
    assert read_yolo(root).boxes.num_rows in (2, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("[1]", "names"),
        ("train: images\n", "names"),
        ("names: 5\n", "names"),
        ("names: {a: b}\n", "names"),
        ("names: [[a]]\n", "names"),
        ("names: [a\n", "YAML"),
        ("names: !!python/object/apply:os.system ['true']\n", "YAML"),
        ("names: [a]\ntrain: 5\n", "train"),
        ("names: [a]\ntrain: /etc\n", "leaves"),
        ("names: [a]\ntrain: a/../../b\n", "leaves"),
        ("names: [a]\ntrain: https://x/y\n", "leaves"),
        ("[" * 5000, "YAML"),
        ("a: \x00", "YAML"),
        ("version https://git-lfs.github.com/spec/v1\n", "lfs"),
    ],
)
def test_a_wrong_yaml_is_refused_in_one_line(root, text, said):
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataFormatError, match=said) as caught:
        read_yolo(root / "data.yaml")
    assert "\n" not in str(caught.value)


def test_labels_that_are_no_text_are_refused(root):
    put(root, "images/train/a.png", b"\xff\xfe0\0")
    with pytest.raises(DataFormatError, match=r"a\.txt: not UTF-8"):
        read_yolo(root)


def test_a_set_without_images_names_the_places(root):
    (root / "data.yaml").write_text("names: [a]\ntrain: images/nowhere\n")
    with pytest.raises(MissingImageError, match=r"nowhere.*--images"):
        read_yolo(root)


def test_a_list_that_leaves_the_folder_opens_nothing(root):
    (root / "data.yaml").write_text("names: [a]\ntrain: list.txt\n")
    (root / "list.txt").write_text("../x.png\n/etc/passwd.png\nimages/train/b.png\n")
    table = read_yolo(root)
    assert table.images["height"].to_pylist() == [None, None, 40]
    assert table.boxes.num_rows == 2


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.integers(0, len(YAML)), st.booleans())
def test_any_bytes_give_a_table_or_one_line(root, data, place, in_yaml):
    text = YAML.encode()
    (root / "data.yaml").write_bytes(text[:place] + data + text[place:] if in_yaml else text)
    (root / "labels/train/b.txt").write_bytes(text if in_yaml else data)
    try:
        table = read_yolo(root)
    except MalcliError as error:
        message = str(error)
    else:
        message = ""
        assert len(records_of(table)) == table.boxes.num_rows
        json.dumps(table.header)
    assert "\n" not in message


def billion(value):
    """YAML whose last alias stands for ten to the ninth values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join([*lines, value])


@pytest.mark.parametrize(
    "text",
    [
        billion("names: [*a8, b]"),
        billion("names: {0: a, 1: *a8}"),
        billion("names: [a]\ntrain: [*a8]"),
        "names: &n [*n]",
        "names: [&a '" + "x" * 10_000 + "'" + ", *a" * 10_000 + "]",
        "names:\n  0x" + "f" * 5000 + ": a",
        "names: [0x" + "f" * 5000 + "]",
        "names: [a]\ntrain: 0x" + "f" * 5000,
        "names: [1" + ":1" * 100_000 + "]",
        "names: [1" + ":1" * 100_000 + ".5]",
        "names: [1" + "_0" * 5000 + "]",
        "names: [!!int '']",
        "names: [!!bool maybe]",
        "names: [!!timestamp soon]",
        "names: [!!set {a, b}]",
        "names: [!!binary aGFsbG8=]",
        "names: [2000-99-99]",
        "names: {[a]: b}",
    ],
    ids=range(18),
)
def test_a_yaml_that_grows_when_it_is_read_is_refused_in_one_short_line(root, text):
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataFormatError) as caught:
        read_yolo(root / "data.yaml")
    message = str(caught.value).removeprefix(str(root))
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("shape", "numbers", "extra"),
    [
        ("[2, 2]", "0.25 0.5 0 0", {"keypoints": [15, 20, 2, 0, 0, 0]}),
        ("[2, 3]", "0.25 0.5 1 0.5 0.25 0", {"keypoints": [15, 20, 1, 30, 10, 0]}),
        ("[12, 2]", " ".join(["0.5"] * 24), {"keypoints": [30, 20, 2] * 12}),
        ("[17, 3]", " ".join(["0.5"] * 51), {"keypoints": [30, 20, 0.5] * 17}),
        ("[1, 2]", "0.5 0.5 0.75", {"keypoints": [30, 20, 2], "score": 0.75}),
        ("[17, 3]", "", {}),
        ("[2, 2]", "0.625", {"score": 0.625}),
    ],
)
def test_pose_lines_are_boxes_with_key_points_and_never_polygons(root, shape, numbers, extra):
    (root / "data.yaml").write_text(f"{YAML}kpt_shape: {shape}\n")
    put(root, "images/train/b.png", f"1 0.5 0.5 0.5 0.5 {numbers}\n")
    record, _ = records_of(read_yolo(root))
    assert record.pop("bbox") == [15, 10, 30, 20]
    assert record == {"id": 1, "image_id": 2, "category_id": 1} | extra


def test_a_polygon_in_a_set_of_poses_is_no_box(root):
    (root / "data.yaml").write_text(f"{YAML}kpt_shape: [2, 2]\n")
    assert read_yolo(root).boxes["status"].to_pylist() == ["skipped:bad-box", "ok", "ok"]


@pytest.mark.parametrize("shape", ["5", "[2]", "[0, 2]", "[2, 4]", "[a, 2]", "[true, 2]", "{}"])
def test_a_wrong_shape_of_key_points_is_named(root, shape):
    (root / "data.yaml").write_text(f"{YAML}kpt_shape: {shape}\n")
    with pytest.raises(DataFormatError, match="kpt_shape"):
        read_yolo(root)


def test_images_that_share_a_label_file_are_counted_and_named(root):
    put(root, "images/train/b.bmp")
    table = read_yolo(root)
    assert table.problems.counts == {"shared-labels": 1}
    (said,) = table.problems.examples["shared-labels"]
    assert "'images/train/b.png' and 'images/train/b.bmp' share 'b.txt'" in said


def test_a_set_without_any_label_file_is_refused_one_with_an_empty_one_is_not(root):
    for path in root.glob("labels/*/*.txt"):
        path.unlink()
    with pytest.raises(DataFormatError, match=r"none of its 3 images has a label file.*a\.txt"):
        read_yolo(root)
    put(root, "images/train/a.png", "")
    assert read_yolo(root).boxes.num_rows == 0
