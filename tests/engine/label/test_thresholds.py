import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes
from malcli.data.images.find import find_images
from malcli.engine.fit.command import save_thresholds
from malcli.engine.label import thresholds
from malcli.engine.label.command import label
from malcli.engine.label.thresholds import (
    CANDIDATES,
    auto_thresholds,
    best_thresholds,
    box_fit,
    sample_rows,
)
from malcli.model.checkpoint import load_checkpoint, save_checkpoint


def slow_iou(mask, box):
    """IoU of the tight box of a mask and a box, or 0 without a pixel."""
    places = np.argwhere(mask)
    if not len(places):
        return 0.0
    (y0, x0), (y1, x1) = places.min(axis=0), places.max(axis=0) + 1
    wide = max(0, min(x1, box[2]) - max(x0, box[0]))
    high = max(0, min(y1, box[3]) - max(y0, box[1]))
    areas = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1])
    return wide * high / (areas - wide * high)


@given(st.integers(0, 10**6))
def test_the_fit_is_the_iou_of_the_tight_box_at_each_candidate(seed):
    rng = np.random.default_rng(seed)
    prob = rng.random((9, 13)).astype(np.float32) ** rng.integers(1, 12)
    low, side = rng.random(2) * (6, 4), 0.5 + rng.random(2) * (6, 4)
    box = np.array([*low, *(low + side)])
    wanted = [slow_iou(prob > threshold, box) for threshold in CANDIDATES]
    assert box_fit(prob, box) == pytest.approx(wanted, abs=1e-12)


def peak(*places):
    """Fits that are largest at some candidates."""
    return np.where(np.isin(np.arange(len(CANDIDATES)), places), 0.9, 0.4)


def test_each_size_class_takes_its_own_best_candidate():
    size = np.repeat([0, 1, 2], 100)
    fits = np.concatenate([np.tile(peak(place), (100, 1)) for place in (3, 9, 15)])
    assert best_thresholds(size, fits) == (CANDIDATES[3], CANDIDATES[9], CANDIDATES[15])


def test_of_equal_candidates_the_lowest_is_taken():
    fits = np.tile(peak(6, 7, 8), (30, 1))
    assert best_thresholds(np.arange(30) % 3, fits) == (CANDIDATES[6],) * 3


def test_a_class_of_few_boxes_follows_the_others():
    size = np.array([0] * 200 + [2])
    fits = np.stack([peak(5)] * 200 + [peak(18)])
    assert best_thresholds(size, fits) == (CANDIDATES[5],) * 3


def test_no_box_means_no_choice():
    assert best_thresholds(np.zeros(0, np.int64), np.zeros((0, len(CANDIDATES)))) is None


def test_the_sample_is_of_boxes_that_can_be_labelled_image_by_image(data):
    table = open_boxes(data)
    status = table.boxes["status"].to_pylist()
    image = np.asarray(table.boxes["image"])
    every = sample_rows(table)
    assert sorted(every.tolist()) == [row for row, text in enumerate(status) if text == "ok"]
    assert (np.diff(image[every]) >= 0).all()
    some = sample_rows(table, 5)
    assert len(set(some.tolist())) == 5
    assert set(some.tolist()) < set(every.tolist())
    assert some.tolist() == sample_rows(open_boxes(data), 5).tolist()


def test_a_small_sample_is_drawn_from_the_whole_file(data):
    table = open_boxes(data)
    size = len(sample_rows(table))
    assert sample_rows(table, 6).max() > size / 2


def thresholds_of(path):
    return json.loads(path.read_text())["info"]["malcli"]["threshold"]


def test_auto_is_decided_once_for_all_shards_and_restarts(job, tmp_path):
    label(job(threshold="auto"))
    whole = (tmp_path / "masks.json").read_bytes()
    out = tmp_path / "shards.json"
    for shard in ("1/2", "0/2"):
        label(job(threshold="auto", out=out, shard=shard))
    assert out.read_bytes() == whole
    assert set(thresholds_of(out)) <= set(CANDIDATES)


def test_auto_gives_the_masks_of_its_numbers_given_by_hand(job, tmp_path):
    label(job(threshold="auto"))
    numbers = thresholds_of(tmp_path / "masks.json")
    label(job(threshold=",".join(map(str, numbers)), out=tmp_path / "given.json"))
    made, given_ = (
        json.loads((tmp_path / name).read_text()) for name in ("masks.json", "given.json")
    )
    assert made["annotations"] == given_["annotations"]
    assert made["info"]["malcli"]["settings"]["threshold"] == "auto"


def test_unreadable_images_are_counted_once(job):
    assert (
        label(job(threshold="auto")).problems.counts
        == label(job(threshold="0.5", overwrite=True)).problems.counts
    )


def test_want_of_memory_halves_the_batch(job, data, tiny, monkeypatch):
    table = open_boxes(data)
    folder = find_images(data, table, None)
    fixed = {"precision": "fp32", "crop_size": 64}
    few = auto_thresholds(job(), load_checkpoint(tiny), table, folder, batch_size=1, **fixed)
    measure, seen = thresholds._measure, []

    def too_small(pipeline, rows, batch_size):
        seen.append(batch_size)
        return measure(pipeline, rows, batch_size) if batch_size == 1 else None

    monkeypatch.setattr(thresholds, "_measure", too_small)
    found = auto_thresholds(job(), load_checkpoint(tiny), table, folder, batch_size=5, **fixed)
    assert (found, seen) == (few, [5, 2, 1])


def test_boxes_that_cannot_be_read_leave_the_checkpoints_thresholds(job, data, tiny):
    table = open_boxes(data)
    nothing = dataclasses.replace(
        table, boxes=table.boxes.slice(0, 0), order=table.order[:0], starts=table.starts * 0
    )
    loaded = dataclasses.replace(load_checkpoint(tiny), threshold=(0.1, 0.2, 0.3))
    folder = find_images(data, table, None)
    found = auto_thresholds(
        job(), loaded, nothing, folder, batch_size=4, precision="fp32", crop_size=64
    )
    assert found == (0.1, 0.2, 0.3)


def test_a_fit_keeps_the_thresholds_in_its_checkpoint(data, tiny, tmp_path):
    from malcli.config.fit import FitConfig

    path = tmp_path / "checkpoint.safetensors"
    before = dataclasses.replace(load_checkpoint(tiny), threshold=(0.01, 0.02, 0.03))
    save_checkpoint(before, path)
    table = open_boxes(data)
    folder = find_images(data, table, None)
    save_thresholds(FitConfig(data=data, device="cpu"), path, table, folder)
    after = load_checkpoint(path)
    assert set(after.threshold) <= set(CANDIDATES)
    for name, value in before.student.state_dict().items():
        assert (after.student.state_dict()[name] == value).all()
    config = LabelConfig(boxes=data, device="cpu")
    again = auto_thresholds(
        config, load_checkpoint(path), table, folder, batch_size=16, precision="fp32", crop_size=64
    )
    assert again == after.threshold
