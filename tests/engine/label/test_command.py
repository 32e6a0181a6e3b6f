"""What `label` writes, against a plain loop over the boxes."""

import hashlib
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.data.formats.open import open_boxes
from malcli.engine.label import pipeline
from malcli.engine.label.command import label
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.errors import (
    DataFormatError,
    RunError,
)
from malcli.geometry.crops import resize_crop
from malcli.metrics.confidence import evidence, predict_iou
from malcli.model.checkpoint import load_checkpoint, with_quality
from malcli.records import records_of

H, W = 72, 96


def annotations_of(path):
    return json.loads(path.read_text())["annotations"]


SKIPPED = {
    1001: "crowd",
    1002: "no-image",
    1003: "bad-box",
    1004: "bad-box",
    1005: "bad-box",
    1006: "bad-box",
    1007: "no-image",
    1008: "bad-image",
    1009: "bad-image",
    1010: "no-image",
}


def test_every_annotation_comes_back_in_order_with_its_keys(data, reference):
    given, made = annotations_of(data), annotations_of(reference[".json"])
    assert [one["id"] for one in made] == [one["id"] for one in given]
    ours = {"segmentation", "area", "malcli_score", "malcli_status"}
    for before, after in zip(given, made, strict=True):
        assert {k: v for k, v in after.items() if k not in ours} == {
            k: v for k, v in before.items() if k not in ours
        }


def test_skipped_boxes_have_a_reason_and_nothing_else(data, reference):
    given = {one["id"]: one for one in annotations_of(data)}
    made = {one["id"]: one for one in annotations_of(reference[".json"])}
    found = {
        i: one["malcli_status"] for i, one in made.items() if "skipped" in one["malcli_status"]
    }
    assert found == {number: f"skipped:{why}" for number, why in SKIPPED.items()}
    for number in SKIPPED:
        assert not {"segmentation", "malcli_score"} & made[number].keys()
        assert made[number].get("area") == given[number].get("area")


def test_labelled_boxes_have_mask_area_and_score_inside_their_box(reference):
    made = annotations_of(reference[".json"])
    labelled = [one for one in made if one["malcli_status"] == "ok"]
    assert len(labelled) > 12
    for one in labelled:
        mask = coco_mask.decode(one["segmentation"])
        assert mask.shape == (H, W)
        assert one["area"] == mask.sum() > 0
        assert isinstance(one["segmentation"]["counts"], str)
        assert 0 < one["malcli_score"] <= 1
        x, y, w, h = one["bbox"]
        rows, columns = np.nonzero(mask)
        assert np.floor(x) <= columns.min() <= columns.max() < np.ceil(x + w)
        assert np.floor(y) <= rows.min() <= rows.max() < np.ceil(y + h)


def test_masks_equal_a_plain_loop_over_boxes(data, tiny, job, tmp_path):
    label(job(refine="none"))
    labeler = load_checkpoint(tiny).teacher
    names = {one["id"]: one["file_name"] for one in json.loads(data.read_text())["images"]}
    for one in annotations_of(tmp_path / "masks.json"):
        if "segmentation" not in one:
            continue
        image = np.asarray(Image.open(data.parent / "images" / names[one["image_id"]]))
        x, y, w, h = one["bbox"]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, W), min(y + h, H)
        left, right = int(np.floor(x0 - 0.1 * (x1 - x0))), int(np.ceil(x1 + 0.1 * (x1 - x0)))
        top, bottom = int(np.floor(y0 - 0.1 * (y1 - y0))), int(np.ceil(y1 + 0.1 * (y1 - y0)))
        padded = cv2.copyMakeBorder(image, 99, 99, 99, 99, cv2.BORDER_REFLECT_101)
        patch = padded[top + 99 : bottom + 99, left + 99 : right + 99]
        crop = resize_crop(patch, 64)  # checked in tests/geometry
        tensor = torch.from_numpy(crop).permute(2, 0, 1)[None]
        size = torch.tensor([0 if w * h < 1024 else 1 if w * h < 9216 else 2])
        with torch.no_grad():
            image_BCSS = labeler.normalise(tensor)
            logits = (labeler(image_BCSS, size) + labeler(image_BCSS.flip(-1), size).flip(-1)) / 2
            prob = logits.sigmoid()[0].numpy()
        full = np.zeros((H + 198, W + 198), np.float32)
        pasted = resized(prob, bottom - top, right - left)
        full[top + 99 : bottom + 99, left + 99 : right + 99] = pasted
        full = full[99:-99, 99:-99].copy()
        inside = np.zeros((H, W), bool)
        inside[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
        expected = (full > 0.5) & inside
        mask = coco_mask.decode(one["segmentation"]).astype(bool)
        # A batch of another size may round a probability at the threshold differently.
        assert (mask != expected).sum() <= 2, one
        if expected.any() and (mask == expected).all():
            begin, side = np.array([left, top]), np.array([right - left, bottom - top])
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            low, high = (np.array([columns[k], rows[k]]) for k in (0, -1))
            frame = np.concatenate([(low - begin) / side, (high + 1 - begin) / side])
            others = [
                clipped(other["bbox"])
                for other in annotations_of(tmp_path / "masks.json")
                if other["id"] != one["id"]
                and other["image_id"] == one["image_id"]
                and other["malcli_status"] in ("ok", "empty")
            ]
            overlaps = coco_mask.iou([clipped(one["bbox"])], others, [0] * len(others))
            coarse = resized(prob, min(32, len(prob)), min(32, len(prob)))
            of_one = coarse, frame, float(np.max(overlaps, initial=0))
            score = float(predict_iou(evidence(*(np.asarray(value)[None] for value in of_one)))[0])
            assert one["malcli_score"] == pytest.approx(score, abs=1e-4)


def clipped(bbox):
    """The part of a box inside the image, xywh."""
    x, y, w, h = bbox
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, W), min(y + h, H)
    return [x0, y0, x1 - x0, y1 - y0]


def resized(values, height, width):
    """Area mean where it shrinks, first; linear where it grows."""
    if height < values.shape[0] or width < values.shape[1]:
        size = min(width, values.shape[1]), min(height, values.shape[0])
        values = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)


def test_the_output_says_what_made_it(reference, data, tiny):
    info = json.loads(reference[".json"].read_text())["info"]
    assert info["by"] == "hand"
    stamp = info["malcli"]
    assert stamp["checkpoint"] == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert stamp["boxes"] == hashlib.sha256(data.read_bytes()).hexdigest()
    statuses = [one["malcli_status"] for one in annotations_of(reference[".json"])]
    assert stamp["counts"] == {one: statuses.count(one) for one in sorted(set(statuses))}
    words = json.dumps(stamp)
    assert not any(word in words for word in ("cpu", "batch", "shard", "worker", str(data.parent)))


def test_parquet_says_the_same_as_json(reference):
    table = open_boxes(reference[".parquet"])
    made = {one["id"]: one for one in records_of(table)}
    assert list(made) == [one["id"] for one in annotations_of(reference[".json"])]
    for one in annotations_of(reference[".json"]):
        assert made[one["id"]] == one
    assert table.header["info"] == json.loads(reference[".json"].read_text())["info"]


def test_batch_size_changes_no_more_than_a_pixel(job, reference, tmp_path):
    label(job(batch_size="1"))
    made = annotations_of(tmp_path / "masks.json")
    for one, other in zip(made, annotations_of(reference[".json"]), strict=True):
        assert one["malcli_status"] == other["malcli_status"]
        if "segmentation" in one:
            masks = [coco_mask.decode(each["segmentation"]) for each in (one, other)]
            assert (masks[0] != masks[1]).sum() <= 2


def test_limit_leaves_only_the_first_images(job, data, tmp_path):
    label(job(limit=2))
    made = json.loads((tmp_path / "masks.json").read_text())
    kept = [one["id"] for one in json.loads(data.read_text())["images"][:2]]
    assert [one["id"] for one in made["images"]] == kept
    wanted = [one["id"] for one in annotations_of(data) if one["image_id"] in kept]
    assert [one["id"] for one in made["annotations"]] == wanted


def test_no_boxes_at_all_give_an_empty_list(job, data, tmp_path):
    empty = tmp_path / "none.json"
    empty.write_text(json.dumps(json.loads(data.read_text()) | {"annotations": []}))
    result = label(job(boxes=empty, images=data.parent / "images"))
    assert (result.merged, result.counts) == (True, {})
    assert annotations_of(tmp_path / "masks.json") == []


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 99},
        {"bbox": None},
        {"bbox": [5000, 5000, 10, 10]},
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_boxes_of_which_none_can_be_labelled_are_refused(job, data, tmp_path, change, dry):
    value = json.loads(data.read_text())
    value["annotations"] = [one | change for one in value["annotations"]]
    (tmp_path / "bad.json").write_text(json.dumps(value))
    options = job(boxes=tmp_path / "bad.json", images=data.parent / "images", dry_run=dry)
    with pytest.raises(DataFormatError, match=r"none of its boxes can be labelled.*first: annot"):
        label(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


def test_images_of_another_size_alone_are_refused_and_leave_nothing(job, data, tmp_path):
    value = json.loads(data.read_text())
    for image in value["images"]:
        image["width"] += 500
    (tmp_path / "bad.json").write_text(json.dumps(value))
    options = job(boxes=tmp_path / "bad.json", images=data.parent / "images")
    with pytest.raises(DataFormatError, match=r"none of its boxes can be labelled"):
        label(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


@pytest.mark.parametrize("size", [{"height": 0, "width": 0}, {"height": None, "width": 5}, {}])
def test_sizes_that_a_file_lacks_are_those_of_its_images(job, data, reference, tmp_path, size):
    value = json.loads(data.read_text())
    for image in value["images"]:
        del image["height"], image["width"]
        image |= size
    (tmp_path / "sizeless.json").write_text(json.dumps(value))
    label(job(boxes=tmp_path / "sizeless.json", images=data.parent / "images"))
    made = {each["id"]: each for each in annotations_of(tmp_path / "masks.json")}
    whole = [one for one in annotations_of(reference[".json"]) if one["malcli_status"] == "ok"]
    assert whole
    assert [made[one["id"]] for one in whole] == whole


def test_the_labeler_and_its_quality_are_part_of_the_result(job, tiny, tmp_path):
    result = label(job()).to_json()
    assert (result["checkpoint"], result["quality"]) == (str(tiny), None)
    again = label(job()).to_json()  # finished before
    assert (again["checkpoint"], again["quality"]) == (str(tiny), None)
    quality = {"data": "val.json", "miou": {"all": 0.75}}
    measured = tmp_path / "measured.safetensors"
    measured.write_bytes(tiny.read_bytes())
    with_quality(measured, quality)
    assert label(job(checkpoint=measured, overwrite=True)).quality == quality


def test_a_network_without_numbers_stops_the_run(job, monkeypatch):
    predict = pipeline.Predictor.__call__
    monkeypatch.setattr(
        pipeline.Predictor, "__call__", lambda *args: [predict(*args)[0] * float("nan")]
    )
    with pytest.raises(RunError, match="no numbers"):
        label(job())


def test_a_score_below_the_least_leaves_the_mask_empty(job, tmp_path):
    label(job(min_score=0.99))
    made = [one for one in annotations_of(tmp_path / "masks.json") if "segmentation" in one]
    empty = [one for one in made if one["malcli_status"] == "empty"]
    assert len(empty) > 5
    for one in empty:
        assert (one["area"], one["malcli_score"]) == (0, 0.0)
        assert coco_mask.decode(one["segmentation"]).shape == (H, W)
        assert coco_mask.area(one["segmentation"]) == 0


@pytest.mark.parametrize("refine", ["none", "crf"])  # each applies the threshold elsewhere
def test_thresholds_go_by_the_size_of_the_box_as_given(job, tmp_path, refine):
    label(job(threshold="0,0.999,0.999", refine=refine))
    for one in annotations_of(tmp_path / "masks.json"):
        if "segmentation" in one:
            small = one["bbox"][2] * one["bbox"][3] < 1024
            assert one["malcli_status"] == ("ok" if small else "empty")


def test_the_mean_of_networks_and_views_is_taken_over_logits(job, tiny, data, tmp_path):
    loaded = load_checkpoint(tiny)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    rois = [
        pipeline.Roi(0, crops[0], np.array([0, 0, 64, 64]), np.array([4, 4, 60, 60]), size)
        for size in (0, 2)
    ]
    base = LabelRule("mean", "flip", "none", (0.5,) * 3, 64, 0.6, 0.0, 10**6)
    found = Predictor(loaded, base, torch.device("cpu"), "fp32")(crops, rois)[0]
    image = torch.from_numpy(crops).permute(0, 3, 1, 2)
    size = torch.tensor([0, 2])
    logits = []
    for network in (loaded.student, loaded.teacher):
        normal = network.normalise(image)
        logits += [network(normal, size), network(normal.flip(-1), size).flip(-1)]
    assert torch.allclose(found, (sum(logits) / 4).sigmoid(), atol=1e-5)


@pytest.mark.parametrize("refine", ["crf", "colour"])
def test_refining_keeps_masks_in_their_boxes_and_changes_them(job, tmp_path, refine):
    label(job(refine=refine))
    label(job(refine="none", out=tmp_path / "plain.json"))
    changed = 0
    plain = annotations_of(tmp_path / "plain.json")
    for one, other in zip(annotations_of(tmp_path / "masks.json"), plain, strict=True):
        if one["malcli_status"] == "ok":
            mask = coco_mask.decode(one["segmentation"])
            x, y, w, h = one["bbox"]
            outside = mask.copy()
            outside[
                max(int(np.floor(y)), 0) : int(np.ceil(y + h)),
                max(int(np.floor(x)), 0) : int(np.ceil(x + w)),
            ] = 0
            assert not outside.any()
            changed += one["segmentation"] != other["segmentation"]
    assert changed > 5


@pytest.mark.parametrize("rule", ["smaller", "score"])
def test_without_overlaps_no_pixel_has_two_masks_and_none_is_lost(job, tmp_path, rule):
    label(job(overlaps=rule))
    label(job(out=tmp_path / "all.json"))
    sums = []
    for name in ("masks.json", "all.json"):
        by_image = {}
        for one in annotations_of(tmp_path / name):
            if "segmentation" in one:
                mask = coco_mask.decode(one["segmentation"]).astype(int)
                assert one["area"] == mask.sum()
                by_image[one["image_id"]] = by_image.get(one["image_id"], 0) + mask
        sums.append(by_image)
    apart, shared = sums
    assert any((count > 1).any() for count in shared.values())
    assert all((count <= 1).all() for count in apart.values())
    assert all(((apart[key] > 0) == (shared[key] > 0)).all() for key in shared)


def test_another_crop_size_and_bf16_work(job, tmp_path):
    result = label(job(crop_size="32", precision="bf16"))
    stamp = json.loads((tmp_path / "masks.json").read_text())["info"]["malcli"]
    assert (stamp["crop_size"], stamp["precision"]) == (32, "bf16")
    assert result.counts["ok"] > 10


def test_the_result_is_plain_values(reference, job):
    result = label(job())
    plain = json.loads(json.dumps(result.to_json()))
    stages = ["read", "decode", "crop", "network", "paste", "encode", "write", "wait"]
    assert list(plain["seconds"]) == stages
    # Before rounding: of so few boxes some stages take less than a millisecond.
    assert all(result.seconds[stage] > 0 for stage in stages if stage != "wait")
    assert plain["boxes_per_s"] > 0
    assert plain["peak_memory_mb"] > 10
    assert plain["out"] == str(job().out)
    assert plain["counts"]["ok"] > 12


def test_images_that_cannot_be_read_are_named_with_their_number(job):
    problems = label(job()).to_json()["problems"]
    assert problems["no-image-file"]["count"] == 2
    assert problems["bad-image-file"]["count"] == 2
    assert any("cut.png" in text for text in problems["bad-image-file"]["examples"])
