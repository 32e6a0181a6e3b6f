"""Masks beside a CSV of boxes: Open Images' own layout, malcli's, and whatever goes wrong."""

import csv
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.data.formats.openimages import boxes as openimages
from malcli.data.formats.openimages import masks as openimages_masks
from malcli.data.formats.openimages.boxes import read_openimages
from malcli.data.formats.openimages.masks import read_mask
from malcli.data.formats.registry import inputs_of
from malcli.errors import BadImage, DataFormatError, MalcliError
from malcli.records import records_of

ONE, TWO = "0001eeaf4aed83f9", "f0a1b2c3d4e5f607"
SIZES = {ONE: (100, 50), TWO: (40, 60)}  # width, height
BOXES = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"]
MASKS = ["MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax"]
MASKS += ["PredictedIoU", "Clicks"]
DOG, CAT = "/m/0bt9lr", "/m/01yrx"
ROWS = [
    [ONE, DOG, "0.25", "0.75", "0.1", "0.5"],
    [TWO, CAT, "0.000000", "0.998438", "0.089062", "0.770312"],
    [ONE, CAT, "0.25", "0.75", "0.1", "0.5"],
]
NAMES = [f"{ONE}_m0bt9lr_8423020c.png", f"{TWO}_m01yrx_00000001.png", f"{ONE}_m01yrx_aa.png"]
MASK_ROWS = [  # in another order, the sides as other programs may write them
    [NAMES[1], *ROWS[1][:2], "00000001", "0", "0.9984380001", "0.0890621", "0.770312", "0.9", ""],
    [NAMES[0], *ROWS[0][:2], "8423020c", ".25", "7.5e-1", "0.10", "0.500", "0.62821", "0.1 0.2 1"],
    [NAMES[2], *ROWS[2][:2], "aa", "0.25", "0.75", "0.1", "0.5", "", ""],
]


def write(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def drawn(seed, size):
    """Return a grey picture of noise in two levels."""
    random = np.random.default_rng(seed).random(size[::-1])
    return Image.fromarray(np.where(random > 0.5, 255, 0).astype(np.uint8))


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


@pytest.fixture
def path(tmp_path):
    """Return a CSV of boxes in Open Images' own layout: masks of other sizes, by first digit."""
    for name, size in SIZES.items():
        put(tmp_path / f"images/{name}.jpg", Image.new("RGB", size))
    for number, name in enumerate(NAMES):
        put(tmp_path / f"train-masks-{name[0]}/{name}", drawn(number, (70, 30)))
    write(tmp_path / "train-annotations-object-segmentation.csv", MASKS, MASK_ROWS)
    write(tmp_path / "validation-annotations-object-segmentation.csv", MASKS, [])
    return write(tmp_path / "train-annotations-bbox.csv", BOXES, ROWS)


def masks_csv(path):
    return path.with_name("train-annotations-object-segmentation.csv")


def test_masks_join_their_boxes_by_image_label_and_sides(path):
    table = read_openimages(path)
    assert table.problems.counts == {"equal-box": 1}
    for number, record in enumerate(records_of(table)):
        size = SIZES[record["image_id"]]
        wanted = np.asarray(drawn(number, (70, 30)).resize(size, Image.Resampling.NEAREST)) > 0
        expected = coco_mask.encode(np.asfortranarray(wanted, dtype=np.uint8))
        assert record["segmentation"]["counts"] == expected["counts"].decode()
        assert record["segmentation"]["size"] == [size[1], size[0]]
        assert record["area"] == wanted.sum()
    first, second, third = records_of(table)
    assert first["PredictedIoU"] == 0.62821
    assert (first["BoxID"], first["Clicks"]) == ("8423020c", "0.1 0.2 1")
    assert "Clicks" not in second
    assert (third["BoxID"], third["category_id"]) == ("aa", 1)
    assert first["bbox"] == pytest.approx([25, 5, 50, 20])


@pytest.mark.parametrize(
    "place", ["train-masks", "masks", "masks/train", "../train-masks", "masks/f", "train-masks/0"]
)
def test_the_folders_that_people_unpack_masks_to_are_found(path, place):
    if place[-1] in "0f":
        folders = {name: path.parent / place[:-1] / name[0] for name in NAMES}
    else:
        folders = dict.fromkeys(NAMES, path.parent / place)
    inner = write(path.parent / "csv" / path.name, BOXES, ROWS) if ".." in place else path
    if inner != path:
        write(masks_csv(inner), MASKS, MASK_ROWS)
        folders = dict.fromkeys(NAMES, path.parent / "train-masks")
    for name in NAMES:
        folders[name].mkdir(parents=True, exist_ok=True)
        (path.parent / f"train-masks-{name[0]}" / name).rename(folders[name] / name)
    table = read_openimages(inner, path.parent / "images")
    assert table.boxes["segmentation"].null_count == 0
    assert {folders[name].resolve() for name in NAMES} & {
        folder.resolve() for folder in inputs_of(inner, "openimages")
    }


def test_batches_of_any_size_give_the_same_masks(path, monkeypatch):
    expected = records_of(read_openimages(path))
    monkeypatch.setattr(openimages, "ROWS", 1)
    assert records_of(read_openimages(path)) == expected


def test_equal_boxes_take_their_masks_in_turn(path):
    write(path, BOXES, [ROWS[0]] * 3)
    rows = [[name, *MASK_ROWS[1][1:]] for name in (NAMES[2], NAMES[0])]
    write(masks_csv(path), MASKS, rows)
    table = read_openimages(path)
    assert table.boxes["segmentation"].is_null().to_pylist() == [False, False, True]
    one, other, _ = records_of(table)
    assert one["segmentation"] != other["segmentation"]
    assert table.problems.counts["box-without-mask"] == 1
    assert table.problems.examples["box-without-mask"] == ["annotation 3"]


def test_a_box_without_mask_and_a_mask_without_box_are_counted(path):
    write(masks_csv(path), MASKS, [[*MASK_ROWS[0][:4], "0.1", *MASK_ROWS[0][5:]], MASK_ROWS[1]])
    table = read_openimages(path)
    assert table.boxes["segmentation"].is_null().to_pylist() == [False, True, True]
    assert table.problems.counts["box-without-mask"] == 2
    assert table.problems.counts["mask-without-box"] == 1
    assert NAMES[1] in table.problems.examples["mask-without-box"][0]
    assert table.boxes["status"].to_pylist() == ["ok"] * 3


def bomb(path):
    """Write a PNG whose header says that it has ten thousand million pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize(
    "named", ["../outside.png", "/etc/hostname", "http://a/b.png", "", "a\0b", "x" * 5000, "."]
)
def test_a_mask_outside_its_folder_is_never_opened(path, named):
    put(path.parent.parent / "outside.png", drawn(0, (9, 9)))
    write(masks_csv(path), MASKS, [[named, *MASK_ROWS[1][1:]], MASK_ROWS[0]])
    table = read_openimages(path)
    assert table.boxes["segmentation"].is_null().to_pylist() == [True, False, True]
    assert table.problems.counts["bad-mask"] == 1


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "bomb", "empty", "folder"])
def test_a_mask_that_cannot_be_read_is_counted_and_its_box_stays(path, kind):
    mask = path.parent / f"train-masks-{NAMES[0][0]}" / NAMES[0]
    data = mask.read_bytes()
    mask.unlink()
    if kind == "bomb":
        bomb(mask)
    elif kind == "folder":
        mask.mkdir()
    elif kind != "missing":
        mask.write_bytes({"text": b"no picture", "cut": data[: len(data) // 2], "empty": b""}[kind])
    table = read_openimages(path)
    assert table.boxes["segmentation"].is_null().to_pylist() == [True, False, False]
    assert table.problems.counts["bad-mask"] == 1
    assert NAMES[0] in table.problems.examples["bad-mask"][0]
    assert "area" not in records_of(table)[0]


def test_noise_whose_outline_never_ends_is_refused(path, monkeypatch):
    monkeypatch.setattr(openimages_masks, "LONGEST", 500)
    table = read_openimages(path)
    assert table.problems.counts["bad-mask"] == 3
    assert "outline" in table.problems.examples["bad-mask"][0]


def test_the_mask_of_an_image_that_is_not_there_is_not_read(path):
    (path.parent / f"images/{TWO}.jpg").unlink()
    table = read_openimages(path)
    assert table.boxes["status"].to_pylist() == ["ok", "skipped:no-image", "ok"]
    assert table.problems.counts["bad-mask"] == 1


def test_an_image_too_large_for_a_mask_is_refused(path):
    with pytest.raises(BadImage, match="more than"):
        read_mask(path.parent / f"train-masks-{NAMES[0][0]}" / NAMES[0], (100_000, 100_000))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_what_is_not_black_is_foreground_in_any_kind_of_picture(tmp_path, mode):
    wanted = np.asarray(drawn(5, (31, 17))) > 0
    if mode == "I;16":
        image = Image.fromarray(wanted.astype(np.uint16) * 65535)
    else:
        image = Image.fromarray(wanted.astype(np.uint8) * 255).convert(mode)
    put(tmp_path / "a.png", image)
    assert (read_mask(tmp_path / "a.png", (17, 31)) == wanted).all()


def test_without_any_png_there_is_one_problem_and_no_mask(path):
    for number, name in enumerate(NAMES):
        (path.parent / f"train-masks-{name[0]}" / name).rename(path.parent / f"{number}.png")
    table = read_openimages(path)
    assert table.boxes["segmentation"].null_count == 3
    assert table.problems.counts == {"no-mask-files": 1, "equal-box": 1}
    assert NAMES[1] in table.problems.examples["no-mask-files"][0]


def test_masks_are_not_looked_at_when_only_boxes_are_wanted(path):
    masks_csv(path).write_text("broken")
    table = read_openimages(path, with_masks=False)
    assert table.boxes["segmentation"].null_count == 3
    assert table.problems.counts == {"equal-box": 1}


def test_masks_of_another_split_are_not_taken(path):
    test = write(path.with_name("test-annotations-bbox.csv"), BOXES, ROWS)
    assert read_openimages(test).problems.counts == {"equal-box": 1}
    other = write(path.with_name("mine.csv"), BOXES, ROWS)  # of two, none is nearer
    assert read_openimages(other).boxes["segmentation"].null_count == 3
    path.with_name("validation-annotations-object-segmentation.csv").unlink()
    assert read_openimages(other).boxes["segmentation"].null_count == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"MaskPath,ImageID\n", "BoxXMin"),
        (",".join(MASKS).encode() + b"\na,b\n", "CSV"),
        (",".join(MASKS).encode() + b"\n\xff,,,,,,,,,\n", "CSV"),
    ],
)
def test_a_wrong_csv_of_masks_is_refused_in_one_line(path, content, said):
    masks_csv(path).write_bytes(content)
    with pytest.raises(DataFormatError, match=said) as caught:
        read_openimages(path)
    assert "\n" not in str(caught.value)
    assert masks_csv(path).name in str(caught.value)


def test_the_csv_of_masks_in_place_of_that_of_boxes_is_told(path):
    with pytest.raises(DataFormatError, match="name the CSV of boxes"):
        read_openimages(masks_csv(path))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 30))
def test_any_damage_gives_a_table_or_one_line(path, data, place, cut):
    write(masks_csv(path), MASKS, MASK_ROWS)
    text = masks_csv(path).read_bytes()
    masks_csv(path).write_bytes(text[:place] + data + text[place + cut :])
    try:
        table = read_openimages(path)
    except MalcliError as error:
        message = str(error)
    else:
        message = ""
        assert len(json.loads(json.dumps(records_of(table)))) == 3
    assert "\n" not in message


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12), st.integers(1, 5))
def test_each_mask_is_used_once_as_a_plain_loop_does(tmp_path_factory, picks, rows):
    """Boxes of few places, so that many are equal, and as few masks, against lists in turn."""
    folder = tmp_path_factory.mktemp("join")
    put(folder / f"images/{ONE}.jpg", Image.new("RGB", (8, 8)))
    boxes, masks, waiting = [], [], {}
    for number, (kind, place) in enumerate(picks):
        sides = [str(place / 10), "0.9", "0.2", "0.8"]
        if kind != 1:
            boxes.append([ONE, DOG, *sides])
        if kind != 0:
            name = f"{number}.png"
            put(folder / "b-masks" / name, Image.fromarray(np.eye(8, k=number % 7, dtype=bool)))
            masks.append([name, ONE, DOG, str(number), *sides, "", ""])
            waiting.setdefault(place / 10, []).append(number)
    write(folder / "b.csv", BOXES, boxes)
    write(folder / "b-masks.csv", MASKS, masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openimages, "ROWS", rows)
        table = read_openimages(folder / "b.csv")
    expected = []
    for box in boxes:
        left = waiting.get(float(box[2]), [])
        expected.append(left.pop(0) if left else None)
    assert [record.get("BoxID") for record in records_of(table)] == expected
    unused = sum(map(len, waiting.values()))
    assert table.problems.counts.get("mask-without-box", 0) == unused
    assert table.problems.counts.get("box-without-mask", 0) == expected.count(None)
