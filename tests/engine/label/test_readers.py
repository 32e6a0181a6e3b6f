"""What the readers that people use make of our outputs; each is skipped where it is not installed.

Masks as `label` writes them: compressed run lengths, and a skipped box without a mask.
"""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.convert import ConvertConfig
from malcli.engine.convert.command import convert
from malcli.geometry.rle import encode_crop

HW = (40, 60)
SLOW = pytest.mark.slow  # they import pandas, matplotlib or torch
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def disc(side):
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return x**2 + y**2 < 0.8


@pytest.fixture
def labelled(tmp_path):
    """Masks of two images, two of them each, and a box that was skipped."""
    records = []
    for n, (image, side, x, y) in enumerate([(1, 9, 2, 3), (1, 20, 30, 10), (2, 30, 5, 5)]):
        mask = disc(side)
        records.append(
            {"id": n + 1, "image_id": image, "category_id": 3 + 4 * n, "iscrowd": 0}
            | {"bbox": [x, y, side, side], "area": int(mask.sum()), "malcli_score": 0.5 + n / 10}
            | {"segmentation": encode_crop(mask, x, y, HW), "malcli_status": "ok"}
        )
    records.append(
        {"id": 9, "image_id": 2, "category_id": 3, "bbox": [1, 1, 4, 4], "iscrowd": 0, "area": 16}
        | {"malcli_status": "skipped:memory"}
    )
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (1, 2)]
    categories = [{"id": n, "name": f"c{n}"} for n in (3, 7, 11)]
    for n in (1, 2):
        Image.new("RGB", HW[::-1]).save(tmp_path / f"{n}.png")
    value = {"images": images, "annotations": records, "categories": categories}
    (tmp_path / "masks.json").write_text(json.dumps(value))
    return tmp_path / "masks.json"


def converted(src, name, **options):
    convert(ConvertConfig(src=src, dst=src.parent / name, **options))
    return src.parent / name


def masks_of(path):
    records = json.loads(path.read_text())["annotations"]
    masks = [each["segmentation"] for each in records if "segmentation" in each]
    return [coco_mask.decode(mask).astype(bool) for mask in masks]


def grown(mask):
    """A mask as supervision fills its polygon: with its border, a pixel more right and below."""
    padded = np.pad(mask, ((1, 0), (1, 0)))
    return padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]


@SLOW
def test_faster_coco_eval_scores_the_masks(labelled):
    faster = pytest.importorskip("faster_coco_eval")
    path = converted(labelled, "b.json", drop_unlabelled=True)
    results = [
        {key: each[key] for key in ("image_id", "category_id", "segmentation")}
        | {"score": each["malcli_score"]}
        for each in json.loads(path.read_text())["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster.COCO(str(path))
        run = faster.COCOeval_faster(truth, truth.loadRes(results), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert run.stats[0] == 1


@SLOW
@pytest.mark.parametrize("form", ["compressed", "uncompressed", "polygon"])
def test_supervision_reads_coco(labelled, form):
    supervision = pytest.importorskip("supervision")
    path = converted(labelled, "b.json", rle=form)
    data = supervision.DetectionDataset.from_coco(str(path.parent), str(path), force_masks=True)
    found = [mask for _, _, each in data for mask in each.mask if mask.any()]
    assert len(data) == 2
    assert len(found) == 3
    for mask, expected in zip(found, masks_of(labelled), strict=True):
        assert not (expected & ~mask).any()
        assert not (mask & ~(grown(expected) if form == "polygon" else expected)).any()


@SLOW
def test_supervision_reads_yolo(labelled):
    supervision = pytest.importorskip("supervision")
    root = converted(labelled, "yolo", to="yolo", images=labelled.parent)
    data = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(root / "labels/train"), str(root / "data.yaml"), True
    )
    assert data.classes == ["c3", "c7", "c11"]
    read = [each for _, _, each in sorted(data, key=lambda item: item[0])]
    assert [each.class_id.tolist() for each in read] == [[0, 1], [2]]
    found = [mask for each in read for mask in each.mask]
    for mask, expected in zip(found, masks_of(labelled), strict=True):
        assert not (expected & ~mask).any()
        assert not (mask & ~grown(expected)).any()


@SLOW
def test_datasets_reads_parquet(labelled, tmp_path):
    datasets = pytest.importorskip("datasets")
    path = converted(labelled, "b.parquet")
    data = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    records = json.loads(labelled.read_text())["annotations"]
    assert [row["id"] for row in data] == [1, 2, 3, 9]
    assert [row["bbox"] for row in data] == [each["bbox"] for each in records]
    assert [row["segmentation"] for row in data][:3] == [r["segmentation"] for r in records[:3]]
    assert [row["status"] for row in data] == ["ok"] * 3 + ["skipped:memory"]
