import csv
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from malcli.data.formats.openimages.boxes import read_openimages
from malcli.data.images import sizes
from malcli.data.images.find import find_images
from malcli.errors import DataFormatError, MalcliError, MissingImageError
from malcli.records import records_of

COLUMNS = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"]
COLUMNS += ["IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"]
ONE, TWO = "0001eeaf4aed83f9", "f0a1b2c3d4e5f607"
ROWS = [
    [ONE, "xclick", "/m/0cmf2", "1", "0.25", "0.75", "0.1", "0.5", "0", "-1", "0", "1", "0"],
    [TWO, "activemil", "/m/015p6", "0.5", "0", "1", "0", "1", "0", "0", "0", "0", "1"],
    [ONE, "xclick", "/m/0cmf2", "1", "0.1", "0.3", "0.2", "0.4", "0", "0", "1", "0", "0"],
]
NAMES = '/m/011k07,Tortoise\n/m/0cmf2,"Airplane, fixed"\n'


def write(path, rows, columns=COLUMNS, order=None):
    with path.open("w", newline="") as file:
        order = order or columns
        writer = csv.writer(file)
        writer.writerow(order)
        for row in rows:
            by_name = dict(zip(columns, row, strict=False))
            writer.writerow([by_name[name] for name in order])
    return path


def put(path, size=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "class-descriptions-boxable.csv").write_text(NAMES)
    put(tmp_path / f"images/{ONE}.jpg")
    put(tmp_path / f"images/{TWO}.jpg", (10, 20))
    return write(tmp_path / "train-annotations-bbox.csv", ROWS)


def test_relative_boxes_become_pixels_and_other_columns_stay(path):
    table = read_openimages(path)
    first, second, third = records_of(table)
    assert first.pop("bbox") == pytest.approx([25, 5, 50, 20])
    assert second["bbox"] == [0, 0, 10, 20]
    assert third["bbox"] == pytest.approx([10, 10, 20, 10])
    assert first == {
        "id": 1, "image_id": ONE, "category_id": 2, "iscrowd": 0, "Source": "xclick",
        "Confidence": 1, "IsOccluded": 0, "IsTruncated": -1, "IsGroupOf": 0, "IsDepiction": 1,
        "IsInside": 0,
    }  # fmt: skip
    assert second["Confidence"] == 0.5
    assert third["iscrowd"] == 1
    assert table.boxes["status"].to_pylist() == ["ok", "skipped:inside", "skipped:group"]
    assert table.header["categories"] == [
        {"id": 1, "name": "Tortoise", "mid": "/m/011k07"},
        {"id": 2, "name": "Airplane, fixed", "mid": "/m/0cmf2"},
        {"id": 3, "name": "/m/015p6", "mid": "/m/015p6"},
    ]
    assert table.images.select(["id", "file_name", "height", "width"]).to_pylist() == [
        {"id": ONE, "file_name": f"{ONE}.jpg", "height": 50, "width": 100},
        {"id": TWO, "file_name": f"{TWO}.jpg", "height": 20, "width": 10},
    ]
    assert find_images(path, table, None).found == 2


def test_columns_are_found_by_name_in_any_order(path):
    expected = [record["bbox"] for record in records_of(read_openimages(path))]
    write(path, ROWS, order=sorted(COLUMNS, reverse=True))
    assert [record["bbox"] for record in records_of(read_openimages(path))] == expected
    few = ["ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax"]
    write(path, ROWS, order=few)
    table = read_openimages(path)
    assert [record["bbox"] for record in records_of(table)] == expected
    assert table.boxes["status"].to_pylist() == ["ok"] * 3


def test_further_columns_of_later_versions_are_kept(path):
    columns = [*COLUMNS, "XClick1X", "Note"]
    rows = [[*row, "0.0125", note] for row, note in zip(ROWS, ['"q"\n', "", "é"], strict=True)]
    write(path, rows, columns)
    records = records_of(read_openimages(path))
    assert [record["XClick1X"] for record in records] == [0.0125] * 3
    assert [record.get("Note") for record in records] == ['"q"\n', None, "é"]


@pytest.mark.parametrize("place", ["{0}/{0}.jpg", "train_{1}/{0}.jpg", "{1}/{0}.jpg", "{0}.png"])
def test_images_lie_in_hex_digit_folders_too(path, tmp_path, place):
    for name in (ONE, TWO):
        (tmp_path / f"images/{name}.jpg").unlink()
        put(tmp_path / "elsewhere" / place.replace("{0}/", "").format(name, name[0]))
    table = read_openimages(path, tmp_path / "elsewhere")
    assert None not in table.images["height"].to_pylist()
    assert find_images(path, table, tmp_path / "elsewhere").found == 2


def test_a_missing_image_and_a_broken_one_are_told_apart(path, tmp_path):
    other = "00000000000000aa"
    write(path, [*ROWS, [other, *ROWS[0][1:]]])
    (tmp_path / f"images/{TWO}.jpg").write_bytes(b"broken")
    table = read_openimages(path)
    assert table.boxes["status"].to_pylist() == [
        "ok", "skipped:bad-image", "skipped:group", "skipped:no-image",
    ]  # fmt: skip
    record = records_of(table)[3]
    assert "bbox" not in record
    assert [record[side] for side in ("XMin", "XMax", "YMin", "YMax")] == [0.25, 0.75, 0.1, 0.5]


def test_images_to_be_turned_are_counted_and_keep_the_angle(path, tmp_path):
    other = "00000000000000aa"  # of no box
    turned = "ImageID,Subset,Rotation\n{},train,90.0\n{},train,{}\n" + f"{other},train,180\n"
    csv_file = tmp_path / "train-images-boxable-with-rotation.csv"
    for angle, count in (("270", 2), ("0.0", 1), ("inf", 1), ("", 1)):
        csv_file.write_text(turned.format(ONE, TWO, angle))
        table = read_openimages(path)
        assert table.problems.counts == {"rotated-image": count}
    assert [json.loads(text) for text in table.images["extra"].drop_null().to_pylist()] == [
        {"Rotation": 90.0}
    ]
    assert f"image '{ONE}'" in table.problems.examples["rotated-image"][0]
    assert table.boxes["status"][0].as_py() == "ok"
    csv_file.rename(tmp_path / "test-images-with-rotation.csv")
    assert read_openimages(path).problems.counts == {}
    csv_file.write_text("broken")
    assert read_openimages(path).problems.counts == {"no-rotations": 1}


def test_no_image_at_all_names_the_places(path, tmp_path):
    with pytest.raises(MissingImageError, match="--images"):
        read_openimages(path, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "side", ["", "nan", "inf", "x", "1e999", "0.1", "2.5"], ids=lambda side: side or "empty"
)
def test_a_bad_side_is_a_bad_box_that_is_kept(path, side):
    rows = [[*ROWS[0][:4], "0.25", side, *ROWS[0][6:]], ROWS[0]]
    table = read_openimages(write(path, rows))
    fine = side == "2.5"  # partly outside: clipped for labelling
    assert table.boxes["status"].to_pylist() == ["ok" if fine else "skipped:bad-box", "ok"]
    assert table.boxes.num_rows == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"ImageID,LabelName,XMin,XMax,YMin\n", "YMax"),
        (b"x1,y1\n", "ImageID"),
        (b"ImageID,ImageID,LabelName,XMin,XMax,YMin,YMax\n", "same name"),
        (b"ImageID,LabelName,XMin,XMax,YMin,YMax\na,b\n", "CSV"),
        (b"ImageID,LabelName,XMin,XMax,YMin,YMax\n\xff,b,0,1,0,1\n", "CSV"),
        (b"\xff\xfeImageID", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "lfs"),
        (b"\x1f\x8b\x08", "compressed"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line(path, content, said):
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=said) as caught:
        read_openimages(path)
    assert "\n" not in str(caught.value)


def test_a_csv_without_rows_is_an_empty_table(path):
    write(path, [])
    assert read_openimages(path).boxes.num_rows == 0


def test_sizes_are_kept_and_looked_at_again_when_the_image_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MALCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sizes, "WORTH", 2)
    for name in "ab":
        put(tmp_path / f"{name}.png")
    first = sizes.read_sizes(tmp_path, ["a.png", "b.png", "c.png"])
    assert first == [("a.png", 50, 100), ("b.png", 50, 100), (None, None, None)]
    opened = []
    read = sizes.read_size
    monkeypatch.setattr(
        sizes, "read_size", lambda path, frame: opened.append(path.name) or read(path, frame)
    )
    assert sizes.read_sizes(tmp_path, ["a.png", "b.png", "c.png"]) == first
    assert opened == []
    put(tmp_path / "b.png", (7, 9))
    assert sizes.read_sizes(tmp_path, ["a.png", "b.png"])[1] == ("b.png", 9, 7)
    assert opened == ["b.png"]
    assert sizes.read_sizes(tmp_path, ["a.png", "b.png"])[0] == first[0]
    assert opened == ["b.png"]  # that of a.png is kept, too
    for file in (tmp_path / "cache/sizes").iterdir():
        file.write_bytes(b"damaged")
    assert sizes.read_sizes(tmp_path, ["a.png", "b.png"])[1] == ("b.png", 9, 7)


def test_another_image_of_as_many_bytes_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MALCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sizes, "WORTH", 1)
    for second, size in enumerate([(30, 20), (20, 30)]):
        put(tmp_path / "a.ppm", size)
        os.utime(tmp_path / "a.ppm", (second, second))
        assert sizes.read_sizes(tmp_path, ["a.ppm"]) == [("a.ppm", *size[::-1])]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 30))
def test_any_damage_gives_a_table_or_one_line(path, data, place, cut):
    write(path, ROWS)
    text = path.read_bytes()
    path.write_bytes(text[:place] + data + text[place + cut :])
    try:
        table = read_openimages(path)
    except MalcliError as error:
        message = str(error)
    else:
        message = ""
        assert len(json.loads(json.dumps(records_of(table)))) == table.boxes.num_rows
    assert "\n" not in message


def test_values_of_other_columns_lose_nothing(path):
    kept = {
        "007": "007", "-0": "-0", "1.0e999": "1.0e999", "0.12345678901234567890123": ...,
        "١٢": "١٢", "12345678901234567890": ..., "00.5": "00.5", "1_0": "1_0", "nan": "nan",
        "-Infinity": ..., "1e5": ..., "0": 0, "-7": -7, "0.50000": 0.5, "-0.25": -0.25,
        "1.5e-3": 0.0015, "123456789012345": 123456789012345,
    }  # fmt: skip
    write(path, [[*ROWS[0], text] for text in kept], [*COLUMNS, "Note"])
    notes = [record["Note"] for record in records_of(read_openimages(path))]
    assert notes == [text if value is ... else value for text, value in kept.items()]
    assert [type(note) for note in notes] == [
        str if value is ... else type(value) for value in kept.values()
    ]
