"""Conversions between formats, and what the readers that people use make of the outputs."""

import contextlib
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.data.formats.open import open_boxes
from malcli.engine.convert import record_changes
from malcli.engine.convert.command import convert
from malcli.engine.eval.masks import evaluate
from malcli.errors import ConfigError, DataFormatError, MissingImageError, OutputError
from malcli.geometry.rle import encode_crop, from_segmentation
from malcli.records import records_of

HW = (40, 60)


def ring():
    rows, columns = np.mgrid[-9:10, -9:10]
    distance = rows**2 + columns**2
    mask = np.zeros(HW, np.uint8)
    mask[4:23, 10:29] = (distance <= 81) & (distance >= 16)
    mask[30:33, 40:50] = 1  # a second part
    return mask


def rle(mask):
    return encode_crop(mask, 0, 0, HW)


def value_of():
    images = [
        {"id": n, "file_name": f"{n}.png", "height": 40, "width": 60, "license": 1} for n in (1, 2)
    ]
    mask = ring()
    boxes = [
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [10, 4, 40, 29], "iscrowd": 0}
        | {"segmentation": rle(mask), "area": int(mask.sum()), "malcli_score": 0.9}
        | {"malcli_status": "ok"},
        {"id": 3, "image_id": 1, "category_id": 4, "bbox": [1, 2, 10, 12], "iscrowd": 0}
        | {"segmentation": [[1, 2, 11, 2, 11, 14, 1, 14]], "area": 120, "malcli_score": 0.25},
        {"id": 8, "image_id": 1, "category_id": 9, "bbox": [50, 30, 20, 20], "iscrowd": 0}
        | {"malcli_status": "skipped:memory", "area": 400},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 30, 30], "iscrowd": 1}
        | {"segmentation": {"size": [40, 60], "counts": [0, 1200, 1200]}, "area": 1200},
    ]
    categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat: big"}]
    return {"info": {}, "images": images, "annotations": boxes, "categories": categories}


@pytest.fixture
def src(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "instances_val.json").write_text(json.dumps(value_of()))
    for n in (1, 2):
        Image.new("RGB", HW[::-1], (n, 0, 0)).save(folder / f"{n}.png")
    return folder / "instances_val.json"


def run(src, dst, **options):
    result = convert(ConvertConfig(src=src, dst=dst, **options))
    assert result.records_in == result.records_out + result.dropped + result.left_out
    return result


def load(path):
    return json.loads(path.read_text())


def pycoco(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


@pytest.mark.parametrize("form", ["compressed", "uncompressed", "polygon"])
def test_masks_change_form_and_pycocotools_reads_the_same_pixels(src, tmp_path, form):
    result = run(src, tmp_path / "b.json", rle=form)
    made = pycoco(str(tmp_path / "b.json"))
    before = pycoco(str(src))
    for record in made.loadAnns([5, 3, 2]):
        assert (made.annToMask(record) == before.annToMask(before.anns[record["id"]])).all()
    ring_form = made.anns[5]["segmentation"]
    assert isinstance(ring_form if form == "polygon" else ring_form["counts"], str | list)
    if form == "polygon":
        assert result.polygon_iou == {"mean": 1.0, "min": 1.0, "masks": 1}
        assert len(ring_form) == 2
        assert made.anns[3]["segmentation"] == value_of()["annotations"][1]["segmentation"]
        assert made.anns[2]["segmentation"]["counts"] == [0, 1200, 1200]  # a crowd stays RLE
    else:
        assert result.polygon_iou is None
        kind = str if form == "compressed" else list
        assert isinstance(made.anns[3]["segmentation"]["counts"], kind)
    assert "segmentation" not in made.anns[8]


def test_torchvision_s_wrapper_reads_the_output(src, tmp_path):
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    run(src, tmp_path / "b.json", rle="compressed", drop_unlabelled=True)
    with contextlib.redirect_stdout(io.StringIO()):
        data = CocoDetection(str(src.parent), str(tmp_path / "b.json"))
    data = wrap_dataset_for_transforms_v2(data, target_keys=["masks", "labels", "boxes"])
    _, target = data[1]
    assert (target["masks"][0].numpy() == ring()).all()
    assert target["boxes"].tolist() == [[10, 4, 50, 33]]
    assert target["labels"].tolist() == [9]


def test_records_are_dropped_as_asked_and_counted(src, tmp_path):
    result = run(src, tmp_path / "b.json", drop_unlabelled=True)
    assert [each["id"] for each in load(tmp_path / "b.json")["annotations"]] == [5, 3, 2]
    assert (result.dropped, result.records_out) == (1, 3)
    result = run(src, tmp_path / "c.json", min_score=0.5)
    assert [each["id"] for each in load(tmp_path / "c.json")["annotations"]] == [5, 8, 2]
    assert run(src, tmp_path / "d.json", min_score=0.25).dropped == 0  # 3 has just that score


def test_the_worst_polygon_of_all_batches_is_told(src, monkeypatch):
    box = value_of()["annotations"][0]
    src.write_text(json.dumps(value_of() | {"annotations": [box | {"id": n} for n in (1, 2, 3)]}))
    table = open_boxes(src)
    parts = [table.boxes.slice(0, 1), table.boxes.slice(1)]
    ious = iter([np.array([0.5]), np.array([1.0, 0.9])])
    monkeypatch.setattr(record_changes, "paired_iou", lambda a, b: next(ious))
    config = ConvertConfig(src=src, dst=src, rle="polygon")
    made = record_changes.Changes(config, replace(table, boxes=pa.concat_tables(parts)), Counter())
    assert [len(batch) for batch in made.batches()] == [1, 2]
    assert made.polygon_iou() == {"mean": pytest.approx(0.8), "min": 0.5, "masks": 3}


def test_boxes_only_leaves_no_trace_of_masks(src, tmp_path):
    run(src, tmp_path / "b.json", boxes_only=True)
    assert not set(load(tmp_path / "b.json")["annotations"][0]) & {
        "segmentation", "area", "malcli_score", "malcli_status",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--boxes-only"):
        run(src, tmp_path / "c.json", boxes_only=True, rle="polygon")


def test_contiguous_ids_follow_the_order_of_ids_also_in_the_lists_of_lvis(tmp_path):
    value = value_of()
    value["images"][0] |= {"neg_category_ids": [9, 77], "not_exhaustive_category_ids": [4]}
    value["images"][0]["coco_url"] = value["images"][1]["coco_url"] = "http://x/val2017/1.jpg"
    value["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]})
    (tmp_path / "a.json").write_text(json.dumps(value))
    result = run(tmp_path / "a.json", tmp_path / "b.json", contiguous_ids=True, to="lvis")
    made = load(tmp_path / "b.json")
    assert result.from_ == "lvis"
    assert made["categories"] == [{"id": 1, "name": "cat: big"}, {"id": 2, "name": "dog"}]
    assert [each["category_id"] for each in made["annotations"]] == [2, 1, 2, 2, 3]  # 3: none
    assert made["images"][0]["neg_category_ids"] == [2, 77]
    assert made["images"][0]["not_exhaustive_category_ids"] == [1]
    assert result.lost == {
        "RLE masks, which loaders of LVIS refuse (try --rle polygon)": 2,
        "images without neg_category_ids, which LVIS needs": 1,
        "images without not_exhaustive_category_ids, which LVIS needs": 1,
    }


@pytest.mark.parametrize("dst", ["yolo", "yolo/data.yaml"])
def test_yolo_polygons_come_back_as_the_same_masks(src, tmp_path, dst):
    result = run(src, tmp_path / dst, to="yolo")
    assert (tmp_path / "yolo/labels/val/2.txt").read_text().startswith("1 ")
    assert result.lost["annotations without a mask"] == 1
    assert result.lost["annotations of crowds"] == 1
    assert result.lost["key 'area'"] == 4
    assert result.lost["other keys of images"] == 2
    assert result.lost["masks of several parts, joined by bridges"] == 1
    assert result.lost["ids of categories, which get others"] == 2
    assert "boxes, which become those of their masks" not in result.lost
    assert result.records_out == 2
    table = open_boxes(tmp_path / "yolo")
    assert [each["name"] for each in table.header["categories"]] == ["cat: big", "dog"]
    first, second = records_of(table)
    assert (first["category_id"], second["category_id"]) == (0, 1)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(second["segmentation"], *HW)))
    assert (drawn == ring()).all()
    assert Image.open(tmp_path / "yolo/images/val/2.png").getpixel((0, 0)) == (2, 0, 0)
    assert run(src, tmp_path / dst, to="yolo").unchanged


def test_what_a_list_of_names_cannot_say_is_counted(src, tmp_path):
    value = value_of()
    value["categories"][0]["supercategory"] = "animal"
    value["annotations"][1]["bbox"] = [0, 0, 60, 40]  # its polygon is smaller
    src.write_text(json.dumps(value))
    lost = run(src, tmp_path / "yolo", to="yolo").lost
    assert lost["other keys of categories"] == 1
    assert lost["boxes, which become those of their masks"] == 1
    assert "ids of images, which get others" not in lost  # 1 and 2, as YOLO's reader counts
    lost = run(src, tmp_path / "a.csv").lost
    assert lost["other keys of categories"] == 1
    assert lost["ids of categories, which get others"] == 2  # 9 and 4, of lines 1 and 2
    assert lost["ids of images, which get others"] == 2  # 1 becomes "1"


@pytest.mark.parametrize(("width", "count"), [(11, 0), (11.5, 1)])
def test_a_box_a_pixel_off_its_mask_counts_as_that_of_the_mask(src, tmp_path, width, count):
    value = value_of()
    value["annotations"][1]["bbox"] = [1, 2, width, 12]  # the polygon's is [1, 2, 10, 12]
    src.write_text(json.dumps(value))
    lost = run(src, tmp_path / "yolo", to="yolo").lost
    assert lost.get("boxes, which become those of their masks", 0) == count


def test_what_comes_from_a_format_goes_back_without_loss_of_ids(src, tmp_path):
    for to, place in (("yolo", "yolo"), ("openimages", "in/a.csv")):
        run(src, tmp_path / place, to=to)
        run(tmp_path / place, tmp_path / f"in/{to}.json", from_=to)
        again = run(tmp_path / f"in/{to}.json", tmp_path / f"again-{place[-3:]}", to=to)
        assert not [what for what in again.lost if "ids" in what or "categories" in what]


def test_yolo_boxes_come_back_clipped(src, tmp_path):
    result = run(src, tmp_path / "yolo", to="yolo", boxes_only=True)
    assert result.records_out == 3
    assert result.lost["parts of boxes outside their image"] == 1
    boxes = [each["bbox"] for each in records_of(open_boxes(tmp_path / "yolo"))]
    expected = [[1, 2, 10, 12], [50, 30, 10, 10], [10, 4, 40, 29]]
    assert boxes == [pytest.approx(box, abs=1e-5) for box in expected]


def test_yolo_needs_no_images_to_be_written(src, tmp_path):
    (src.parent / "1.png").unlink()
    (src.parent / "2.png").unlink()
    result = run(src, tmp_path / "yolo", to="yolo")
    assert result.lost["images that were not found, so not linked"] == 2
    with pytest.raises(MissingImageError):
        run(src, tmp_path / "other", to="yolo", images=tmp_path / "nowhere")
    assert not (tmp_path / "other").exists()


def test_a_folder_with_anything_else_is_never_replaced(src, tmp_path):
    root = tmp_path / "yolo"
    root.mkdir()  # an empty folder may be taken
    run(src, root, to="yolo")
    run(src, root, to="yolo", boxes_only=True, overwrite=True)
    with pytest.raises(OutputError, match="--overwrite"):
        run(src, root, to="yolo")
    (root / "images/val/mine.png").touch()
    with pytest.raises(OutputError, match=r"mine\.png"):
        run(src, root, to="yolo", overwrite=True)
    assert (root / "images/val/mine.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "yolo"]


def test_hostile_names_write_nothing_outside(src, tmp_path):
    value = value_of()
    value["images"][0]["file_name"] = "../../evil.png"
    value["images"][1]["file_name"] = "/tmp/evil.png"
    src.write_text(json.dumps(value))
    for dst, to in ((tmp_path / "yolo", "yolo"), (tmp_path / "oi.csv", "openimages")):
        with pytest.raises(DataFormatError, match="none of its annotations can be written: 4"):
            run(src, dst, to=to)
        assert not dst.exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_open_images_come_back_with_boxes_names_and_masks(src, tmp_path):
    result = run(src, tmp_path / "oi/boxes.csv")
    assert result.to == "openimages"
    table = open_boxes(tmp_path / "oi/boxes.csv", None, src.parent)
    assert [each["name"] for each in table.header["categories"]] == ["dog", "cat: big"]
    assert [each["bbox"] for each in records_of(table)] == [
        pytest.approx(each["bbox"]) for each in value_of()["annotations"]
    ]
    assert table.boxes["status"].to_pylist() == ["ok", "ok", "ok", "skipped:group"]
    mask = Image.open(tmp_path / "oi/boxes-masks/2_dog_5.png")
    assert (np.asarray(mask) == ring()).all()
    lines = (tmp_path / "oi/boxes-masks.csv").read_text().splitlines()
    assert lines[0].startswith("MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax")
    assert lines[1].startswith("2_dog_5.png,2,dog,5,0.1666")
    assert len(lines) == 4
    assert run(src, tmp_path / "oi/boxes.csv").unchanged


def test_open_images_to_coco_and_back_is_the_same_rows(src, tmp_path):
    run(src, tmp_path / "in/a.csv", boxes_only=True)
    run(tmp_path / "in/a.csv", tmp_path / "in/b.json")
    run(tmp_path / "in/b.json", tmp_path / "in/c.csv")
    there, back = ((tmp_path / "in" / name).read_text().splitlines() for name in ("a.csv", "c.csv"))
    assert [line.split(",")[:3] for line in there] == [line.split(",")[:3] for line in back]
    numbers = [[float(x) for x in line.split(",")[4:]] for line in there[1:]]
    assert [[float(x) for x in line.split(",")[4:]] for line in back[1:]] == [
        pytest.approx(row) for row in numbers
    ]
    assert load(tmp_path / "in/b.json")["annotations"][3]["iscrowd"] == 1


def test_masks_come_back_from_open_images_exactly(src, tmp_path):
    run(src, tmp_path / "in/boxes.csv")
    result = run(tmp_path / "in/boxes.csv", tmp_path / "in/back.json")
    assert result.problems == {"box-without-mask": 1}
    coco = {str(record["id"]): record for record in value_of()["annotations"]}
    back = load(tmp_path / "in/back.json")["annotations"]
    assert [record.get("BoxID") for record in back] == [5, 3, None, 2]
    assert "segmentation" not in back[2]
    for record in (back[0], back[1], back[3]):
        there = from_segmentation(coco[str(record["BoxID"])]["segmentation"], HW)
        assert record["segmentation"] == there
        assert record["area"] == coco_mask.area(there)
    assert back[0]["PredictedIoU"] == 0.9
    human = tmp_path / "in/instances_val.json"
    same = evaluate(EvalConfig(gt=tmp_path / "in/boxes.csv", pred=tmp_path / "in/back.json"))
    assert same.metrics.miou["all"] == 1
    assert evaluate(EvalConfig(gt=human, pred=human)).counts == same.counts
    again = run(tmp_path / "in/back.json", tmp_path / "in/again.csv")
    assert not [key for key in again.lost if "Predicted" in key]
    there, back = (
        [line.split(",")[8] for line in (tmp_path / "in" / name).read_text().splitlines()]
        for name in ("boxes-masks.csv", "again-masks.csv")
    )
    assert there == back == ["PredictedIoU", "0.9", "0.25", ""]


def test_boxes_written_over_masks_leave_none_of_them(src, tmp_path):
    run(src, tmp_path / "in/a.csv")
    run(src, tmp_path / "in/a.csv", boxes_only=True, overwrite=True)
    assert not list(tmp_path.glob("in/a-masks*"))
    assert open_boxes(tmp_path / "in/a.csv").boxes["segmentation"].null_count == 4
    assert run(src, tmp_path / "in/a.csv", boxes_only=True).unchanged


def test_the_masks_that_are_read_are_never_written_over(src, tmp_path):
    run(src, tmp_path / "in/train-annotations-bbox.csv")
    official = "train-annotations-object-segmentation.csv"
    masks = tmp_path / "in/train-annotations-bbox-masks.csv"
    masks.rename(masks.with_name(official))
    (tmp_path / "in/train-annotations-bbox-masks").rename(tmp_path / "in/train-masks")
    for dst in (tmp_path / "in" / official, tmp_path / "in/train.csv"):
        with pytest.raises(OutputError, match="also the input"):
            run(tmp_path / "in/train-annotations-bbox.csv", dst, overwrite=True)
    assert len(list(tmp_path.glob("in/train-masks/*.png"))) == 3


@pytest.mark.parametrize("to", ["coco", "lvis", "objects365", "parquet"])
def test_every_lossless_format_gives_the_same_data_back(src, tmp_path, to):
    run(src, tmp_path / "b", to=to)
    run(tmp_path / "b", tmp_path / "c.json", from_=to)
    assert load(tmp_path / "c.json") == value_of()


NO_MASKS = [[], {}, [[]], None, [[], []], "absent"]


def box_file(folder, segmentations, names=("1.png", "2.png"), **more):
    """Write a file of one annotation for each segmentation, on the first image."""
    images = [
        {"id": n, "file_name": name, "height": 40, "width": 60} for n, name in enumerate(names, 1)
    ]
    boxes = []
    for n, value in enumerate(segmentations, 1):
        box = {"id": n, "image_id": 1 + n % len(names), "category_id": 1, "bbox": [n, 2, 10, 12]}
        boxes.append(box if value == "absent" else box | {"segmentation": value})
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", HW[::-1]).save(folder / name)
    value = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (folder / "boxes_train.json").write_text(json.dumps(value | more))
    return folder / "boxes_train.json"


@pytest.mark.parametrize("values", [*([value] * 3 for value in NO_MASKS), NO_MASKS])
def test_boxes_without_masks_are_box_lines_however_a_tool_says_none(tmp_path, values):
    src = box_file(tmp_path / "in", values)
    result = run(src, tmp_path / "yolo", to="yolo")
    assert result.records_out == len(values)
    boxes = sorted(each["bbox"] for each in records_of(open_boxes(tmp_path / "yolo")))
    assert boxes == [pytest.approx([n, 2, 10, 12]) for n in range(1, len(values) + 1)]


MASK = [[1, 2, 11, 2, 11, 14, 1, 14]]


@pytest.mark.parametrize(
    ("values", "widths", "said"),
    [
        ([MASK, MASK, []], [4, 8, 8], "boxes without a mask among polygons"),
        ([MASK, [], {}], [4, 4, 4], "masks, since most records have none"),
        ([MASK, MASK, {"size": [1, 1], "counts": "0"}], [4, 8, 8], "masks that cannot be read"),
        ([MASK, [*MASK, [3, 4, 5, 6]]], [8, 8], None),
    ],
)
def test_a_folder_of_boxes_and_polygons_is_said_and_loses_no_object(tmp_path, values, widths, said):
    result = run(box_file(tmp_path / "in", values), tmp_path / "yolo", to="yolo")
    assert result.records_out == len(values)
    lines = "".join(p.read_text() for p in (tmp_path / "yolo/labels").rglob("*.txt")).splitlines()
    assert sorted(len(line.split()) - 1 for line in lines) == widths
    assert said is None or [what for what in result.lost if what.startswith(said)]


@pytest.mark.parametrize(
    ("names", "second"),
    [
        (("a.png", "a.bmp"), "images/train/a-bmp.bmp"),
        (("cam/a.b.png", "cam/a.b.bmp"), "images/train/cam/a.b-bmp.bmp"),
        (("images/train/a.png", "a.bmp"), "images/train/a-bmp.bmp"),
    ],
)
def test_images_of_one_stem_get_label_files_of_their_own(tmp_path, names, second):
    src = box_file(tmp_path / "in", [[]] * 5, names)
    result = run(src, tmp_path / "yolo", to="yolo", images=src.parent)
    assert [what for what in result.lost if "whose stem another has" in what]
    table = open_boxes(tmp_path / "yolo")
    assert second in table.images["file_name"].to_pylist()
    found = dict.fromkeys(table.images["file_name"].to_pylist(), 0)
    for row in table.boxes["image"].to_pylist():
        found[table.images["file_name"][row].as_py()] += 1
    assert found.pop(second) == 3
    assert [*found.values()] == [2]
    for name in names:
        (src.parent / name).unlink()
    with pytest.raises(OutputError, match=r"would share one label file.*--images"):
        run(src, tmp_path / "other", to="yolo")
    assert not (tmp_path / "other").exists()
