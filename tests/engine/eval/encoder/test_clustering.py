"""`eval --clustering` on drawn scenes: numbers against plain loops, and records that are bad."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.encoder import clustering
from malcli.engine.eval.encoder.clustering import measure_clustering
from malcli.errors import CheckpointError, ConfigError, DataFormatError, MissingImageError
from malcli.geometry.crops import crop_roi
from malcli.model.encoders import build_encoder

TINY = "timm/test_vit.r160_in1k"
SIDE = 64


@pytest.fixture
def truth(scenes):
    """The drawn annotations, as a fresh copy."""
    return json.loads(scenes.instances.read_text())


@pytest.fixture
def measured(scenes, tmp_path):
    """Measure a random encoder on the scenes, or on changed annotations."""

    def run(gt=None, **options):
        path = scenes.instances
        if gt is not None:
            path = tmp_path / "gt.json"
            path.write_text(json.dumps(gt))
        options = {"images": scenes.images, "bootstrap": 0, "crop_size": str(SIDE)} | options
        if "checkpoint" not in options:
            options = {"encoder": TINY, "weights": "none"} | options
        return measure_clustering(EvalConfig(gt=path, device="cpu", **options))

    return run


def roi_of(bbox, image_hw, margin):
    """The box clipped to the image, grown by a share of its half sides, rounded outward."""
    x, y, w, h = bbox
    x0, y0, x1, y1 = max(0, x), max(0, y), min(image_hw[1], x + w), min(image_hw[0], y + h)
    grow_x, grow_y = margin / 2 * (x1 - x0) / 2, margin / 2 * (y1 - y0) / 2
    low, high = (x0 - grow_x, y0 - grow_y), (x1 + grow_x, y1 + grow_y)
    return [*map(math.floor, low), *map(math.ceil, high)]


def score_by_hand(encoder, scenes, record, file_name, margin=0.4):
    """Eq. 6 of one instance, with decoded masks and loops over tokens; None without both sides."""
    photo = np.array(Image.open(scenes.images / file_name).convert("RGB"))
    polygons = record["segmentation"]
    if isinstance(polygons, list):
        polygons = coco_mask.merge(coco_mask.frPyObjects(polygons, *photo.shape[:2]))
    mask = coco_mask.decode(polygons)
    roi = roi_of(record["bbox"], photo.shape[:2], margin)
    crop = crop_roi(photo, np.array(roi), SIDE).astype(np.float32) / 255
    image = (crop - np.array(encoder.mean)) / np.array(encoder.std)
    with torch.no_grad():
        feature = encoder(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None])[
            0
        ].numpy()
    sides = {0: [], 1: []}
    cells = feature.shape[1]
    for i in range(cells):
        for j in range(cells):
            y = math.floor(roi[1] + (i + 0.5) / cells * (roi[3] - roi[1]))
            x = math.floor(roi[0] + (j + 0.5) / cells * (roi[2] - roi[0]))
            if 0 <= y < photo.shape[0] and 0 <= x < photo.shape[1]:
                sides[int(mask[y, x])].append(feature[:, i, j].astype(np.float64))
    if not sides[0] or not sides[1]:
        return None
    total = 0.0
    for members in sides.values():
        centre = np.mean(members, axis=0)
        centre /= np.linalg.norm(centre)
        total += sum(np.sum((f / np.linalg.norm(f) - centre) ** 2) for f in members)
    return total / (len(sides[0]) + len(sides[1]))


def test_the_score_equals_plain_loops_over_tokens(truth, scenes, measured):
    result = measured().to_json()
    torch.manual_seed(0)
    encoder = build_encoder(TINY, SIDE).eval()
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    wanted = [
        score_by_hand(encoder, scenes, record, names[record["image_id"]])
        for record in truth["annotations"]
    ]
    usable = [score for score in wanted if score is not None]
    assert len(usable) > 10
    assert result["clustering"]["all"] == pytest.approx(np.mean(usable), abs=1e-5)
    assert result["counts"] == {
        "instances": len(wanted),
        "used": len(usable),
        "without_both_sides": len(wanted) - len(usable),
        "skipped": 0,
    }
    assert result["intervals"] is None
    assert (result["encoder"], result["weights"], result["stride"]) == (TINY, "none", 16)
    assert result["gt"] == str(scenes.instances)


def test_sizes_are_those_of_the_boxes(truth, measured):
    medium, large, *small = truth["annotations"]
    medium["bbox"] = [0.0, 0.0, 90.0, 70.0]
    large["bbox"] = [0.0, 0.0, 96.0, 96.0]  # as given, with its part below the image
    whole = measured(truth).clustering
    for name, records in (("small", small), ("medium", [medium]), ("large", [large])):
        alone = measured({**truth, "annotations": records}).clustering
        assert whole[name] == pytest.approx(alone["all"], abs=1e-6)
        assert [size for size in alone if alone[size] is not None] == ["all", name]


def test_features_that_follow_the_mask_beat_chance(measured, monkeypatch):
    """An encoder that sees colours alone: the drawn objects differ from their background."""

    def colours(self, crops_BSS3):
        batch, side = len(crops_BSS3), SIDE // 16
        cells = crops_BSS3.reshape(batch, side, 16, side, 16, 3)[:, :, 8, :, 8]
        return cells.astype(np.float32) + 1

    monkeypatch.setattr(clustering.OpenEncoder, "features", colours)
    result = measured()
    assert result.clustering["all"] < 0.7 * result.chance["all"]


def test_results_repeat_and_do_not_depend_on_the_batch(measured, monkeypatch):
    whole = measured(bootstrap=50).to_json()
    assert measured(bootstrap=50).to_json() == whole
    low, high = whole["intervals"]["clustering"]["all"]
    assert low <= whole["clustering"]["all"] <= high
    assert whole["intervals"]["clustering"]["large"] is None
    monkeypatch.setattr(clustering, "auto_batch", lambda device, crop_size: 1)
    single = measured(bootstrap=50).to_json()
    assert single["clustering"]["all"] == pytest.approx(whole["clustering"]["all"], abs=1e-6)
    assert single["chance"]["all"] == pytest.approx(whole["chance"]["all"], abs=1e-6)
    json.dumps(whole, allow_nan=False)


def test_crowd_is_no_instance_and_the_limit_holds(truth, measured):
    truth["annotations"][0]["iscrowd"] = 1
    assert measured(truth).counts["instances"] == len(truth["annotations"]) - 1
    first = truth["images"][0]["id"]
    kept = [record for record in truth["annotations"] if record["image_id"] == first]
    assert measured(truth, limit=1).counts["instances"] == len(kept) - 1


def test_a_mask_that_fills_its_crop_has_one_side_only(truth, measured):
    record = truth["annotations"][0]
    x, y, w, h = 20, 20, 30, 20
    record["bbox"], record["segmentation"] = [x, y, w, h], [[0, 0, 96, 0, 96, 72, 0, 72]]
    result = measured({**truth, "annotations": [record]})
    assert result.counts == {"instances": 1, "used": 0, "without_both_sides": 1, "skipped": 0}
    assert set(result.clustering.values()) == {None}


def test_bad_boxes_and_images_are_counted_and_reported(truth, scenes, measured, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(scenes.images, folder)
    lost = truth["images"][0]
    (folder / lost["file_name"]).write_bytes(b"no image")
    gone = sum(record["image_id"] == lost["id"] for record in truth["annotations"])
    outside = next(one for one in truth["annotations"] if one["image_id"] != lost["id"])
    outside["bbox"] = [500, 500, 9, 9]
    result = measured(truth, images=folder)
    assert result.counts["skipped"] == gone + 1
    assert sorted(result.problems.counts.values()) == sorted([1, gone])
    assert lost["file_name"] in capsys.readouterr().err
    with pytest.raises(DataFormatError, match=r"gt\.json.*--strict.*box"):
        measured(truth, images=folder, strict=True)
    truth["annotations"].remove(outside)
    with pytest.raises(DataFormatError, match=r"gt\.json.*--strict.*image"):
        measured(truth, images=folder, strict=True)


def test_nothing_to_measure_is_an_error_with_the_reason(truth, scenes, measured, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(scenes.images, folder)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataFormatError, match=r"no instance can be measured.*image"):
        measured(truth, images=folder)
    with pytest.raises(MissingImageError):
        measured(truth, images=tmp_path / "empty")
    for record in truth["annotations"]:
        del record["segmentation"]
    with pytest.raises(DataFormatError, match="--gt needs annotations with segmentation"):
        measured(truth)


def test_an_unknown_encoder_or_checkpoint_is_refused(measured, tmp_path):
    with pytest.raises(ConfigError, match="did you mean vit_deit_tiny"):
        measured(encoder="vit_deit_tin")
    with pytest.raises(CheckpointError, match="no such file"):
        measured(checkpoint=tmp_path / "gone.safetensors")
