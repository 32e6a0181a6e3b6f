import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from malcli.data.crops.augment import ViewOdds
from malcli.data.crops.box_mask import box_profiles, profile_mask, rectangle_mask
from malcli.data.crops.composites import Composites
from malcli.data.crops.epoch_order import EpochOrder
from malcli.data.crops.training_crops import (
    CropRule,
    TrainingCrops,
    box_size,
    collate,
    training_rows,
)
from malcli.data.formats.open import open_boxes
from malcli.data.images.find import find_images
from malcli.records import BEHIND, NOTHING_PASTED, PASTED


def keys(order):
    return [key for batch in order for key in batch]


def test_processes_together_see_the_global_batches_of_one_process():
    rows = np.arange(100, 123)
    one = EpochOrder(rows, 4, rank=0, world=1, seed=5)
    halves = [EpochOrder(rows, 2, rank=rank, world=2, seed=5) for rank in (0, 1)]
    for epoch in (0, 1):
        for order in (one, *halves):
            order.start(epoch, 0)
        joined = [left + right for left, right in zip(*halves, strict=True)]
        assert joined == list(one)


def test_an_epoch_visits_every_row_and_differs_from_the_next():
    rows = np.arange(23)
    order = EpochOrder(rows, 4, rank=0, world=1, seed=0)
    order.start(0, 0)
    first = keys(order)
    order.start(1, 0)
    second = keys(order)
    assert {row for _, row in first} == set(range(23))
    assert len(first) == 24  # the last batch is filled from the start
    assert [row for _, row in first] != [row for _, row in second]


def test_a_resumed_epoch_goes_on_where_it_stopped():
    order = EpochOrder(np.arange(23), 4, rank=0, world=1, seed=0)
    order.start(3, 0)
    whole = list(order)
    order.start(3, 4)
    assert list(order) == whole[4:]
    assert len(order) == len(whole) - 4


@pytest.mark.parametrize(("rows", "batch", "world", "group"), [(23, 2, 1, 3), (5, 2, 2, 2)])
def test_an_epoch_is_whole_optimiser_steps(rows, batch, world, group):
    orders = [EpochOrder(np.arange(rows), batch, rank, world, 7, group) for rank in range(world)]
    assert orders[0].batches % group == 0
    share = batch * world * group
    assert orders[0].batches // group == -(-rows // share)
    # The steps' crops are those of one process with one large batch.
    large = list(EpochOrder(np.arange(rows), share, 0, 1, 7))
    parts = [list(order) for order in orders]
    for step, wanted in enumerate(large):
        found = [
            key
            for number in range(step * group, (step + 1) * group)
            for part in parts
            for key in part[number]
        ]
        assert found == wanted


def literal_mask(xyxy, roi, image_hw, size, wrap):
    """mal.md 1.7 and 1.8 in two dimensions, with Pillow's own resize: (size, size) uint8."""
    height, width = image_hw
    mask = np.zeros((height, width), np.uint8)
    x0, y0, x1, y1 = (int(value) for value in xyxy)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    left, top, right, bottom = roi
    crop = np.zeros((bottom - top, right - left), np.uint8)
    for r in range(top, bottom):
        for c in range(left, right):
            if wrap:
                crop[r - top, c - left] = mask[r % height, c % width]
            elif 0 <= r < height and 0 <= c < width:
                crop[r - top, c - left] = mask[r, c]
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), wrap=st.booleans(), size=st.sampled_from([7, 16, 40, 64]))
def test_profiles_are_the_released_mask_of_two_dimensions_rounding_included(data, wrap, size):
    height, width = data.draw(st.integers(3, 40)), data.draw(st.integers(3, 40))
    sides = []
    for length in (width, height):
        low = data.draw(st.floats(0, length - 1.5))
        high = data.draw(st.floats(low + 1, length))
        before, after = data.draw(st.integers(0, length)), data.draw(st.integers(1, length))
        sides.append((low, high, int(low) - before, int(np.ceil(high)) + after))
    (x0, x1, left, right), (y0, y1, top, bottom) = sides
    xyxy, roi = np.array([x0, y0, x1, y1]), np.array([left, top, right, bottom])
    rows, columns = box_profiles(xyxy, roi, (height, width), size, wrap=wrap)
    assert set(np.unique(rows)) | set(np.unique(columns)) <= {0, 1}
    wanted = literal_mask(xyxy, roi, (height, width), size, wrap)
    assert np.array_equal(np.outer(rows, columns), wanted)


def test_a_box_as_wide_as_its_image_shows_up_again_at_the_far_side():
    xyxy, roi = np.array([0.0, 2.0, 9.5, 6.0]), np.array([-3, 0, 14, 9])
    wrapped = box_profiles(xyxy, roi, (9, 10), 17, wrap=True)[1]
    bounded = box_profiles(xyxy, roi, (9, 10), 17, wrap=False)[1]
    assert wrapped.tolist() == [1] * 17
    assert bounded.tolist() == [0] * 3 + [1] * 10 + [0] * 4


def test_a_whole_number_box_is_one_pixel_larger_each_way():
    rows, columns = box_profiles(
        np.array([2.0, 3.0, 5.0, 6.0]), np.array([0, 0, 10, 10]), (10, 10), 10, wrap=True
    )
    assert np.flatnonzero(columns).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(rows).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("side", [16, 64, 48])
def test_the_profiles_mask_is_the_mask_resized_bilinearly(side):
    rng = np.random.default_rng(0)
    profiles = torch.from_numpy((rng.random((3, 2, 64)) > 0.4).astype(np.uint8))
    mask = profiles[:, 0, :, None] * profiles[:, 1, None, :]
    wanted = F.interpolate(mask[:, None].float(), (side, side), mode="bilinear")[:, 0]
    found = profile_mask(profiles, side)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    if side == 16:  # the mean of the middle 2x2 pixels of each 4x4 block (mal.md 5)
        assert set(found.unique().tolist()) <= {0, 0.25, 0.5, 1}


def test_an_area_of_exactly_a_border_has_no_size_under_the_strict_law():
    square = np.array([3.0, 4.0, 35.0, 36.0])
    assert int(box_size(square, "strict")) == 3
    assert int(box_size(square, "half-open")) == 1
    # 1024.0000001 square pixels are 1024 in float32.
    nearly = square + np.array([0, 0, 0, 1e-9])
    assert int(box_size(nearly, "strict")) == 3
    assert int(box_size(square + np.array([0, 0, 1.0, 0]), "strict")) == 1


def rule_of(**changes):
    settings = {
        "crop_size": 32, "theta": 1.2, "expansion": "paper", "border": "reflect",
        "box_mask": "exact", "size_classes": "half-open", "max_pixels": 10**6, "seed": 0,
        "odds": ViewOdds(),
    }  # fmt: skip
    return CropRule(**settings | changes)


@pytest.fixture
def crops_of(train_scenes):
    table = open_boxes(train_scenes.boxes, None, train_scenes.images)
    folder = find_images(train_scenes.boxes, table, train_scenes.images)
    return lambda **changes: TrainingCrops(table, folder, rule_of(**changes))


def test_a_sample_carries_profiles_only_where_they_are_wanted(crops_of):
    exact = collate([crops_of()[(0, row)] for row in range(3)])
    inclusive = crops_of(box_mask="inclusive", border="wrap")
    released = collate([inclusive[(0, row)] for row in range(3)])
    assert exact.profile_B2S.shape == (3, 2, 0)
    assert released.profile_B2S.shape == (3, 2, 32)
    assert released.profile_B2S.dtype == torch.uint8
    # Both say the same box, but for the released rule's pixel at its ends.
    shares = rectangle_mask(released.box_B4, 32), profile_mask(released.profile_B2S, 32)
    assert ((shares[0] > 0.5) == (shares[1] > 0.5)).float().mean() > 0.85


def test_a_box_is_cropped_anew_in_each_epoch_and_equally_within_one(crops_of):
    crops = crops_of()
    for row in range(3):
        first, again, later = crops[(0, row)], crops_of()[(0, row)], crops[(1, row)]
        other_seed = crops_of(seed=1)[(0, row)]
        assert all(np.array_equal(value, again[key]) for key, value in first.items())
        for other in (later, other_seed):
            assert not np.array_equal(first["box_B4"], other["box_B4"])
            assert not np.array_equal(first["crop_BCHW"], other["crop_BCHW"])
            assert not np.array_equal(first["views_BN"], other["views_BN"])
    drawn = crops_of(theta=0.0)  # no margin: what is left to differ are the views
    assert not np.array_equal(drawn[(0, 0)]["views_BN"], drawn[(0, 1)]["views_BN"])


def test_a_sample_says_what_was_pasted_into_its_crop(crops_of, train_scenes):
    masks = open_boxes(train_scenes.instances, None, train_scenes.images)
    crops = crops_of(theta=0.0)
    crops.composites = Composites(masks, masks, crops.folder, 0.8, 10**6)
    kinds = set()
    for row in range(12):
        sample = crops[(0, row)]
        pasted, kind = sample["pasted_BSS"], int(sample["kind_B"])
        assert pasted.shape == (32, 32)
        kinds.add(kind)
        assert pasted.any() == (kind != NOTHING_PASTED)
        if kind == PASTED:  # the crop is the box of what was pasted
            columns, rows = ((pasted > 100).any(axis=axis) for axis in (0, 1))
            assert columns.mean() > 0.9
            assert rows.mean() > 0.9
    assert kinds == {NOTHING_PASTED, BEHIND, PASTED}


def test_a_box_that_leaves_its_image_is_cut_at_the_border_and_keeps_its_size_class(crops_of):
    crops = crops_of(theta=0.0)
    crops.xyxy[0] = [50.0, 40.0, 296.0, 240.0]  # in an image of 96 x 96
    sample = crops[(0, 0)]
    np.testing.assert_allclose(sample["box_B4"], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(sample["image_B4"][2:], [1, 1], atol=1e-6)
    assert sample["size_B"] == 2  # 246 x 200 pixels are large, the 46 x 56 inside are medium


def test_rows_to_train_on_are_usable_and_larger_than_asked(tmp_path):
    boxes = [
        ([1, 1, 10, 10], 0), ([1, 1, 10, 10.1], 0), ([1, 1, 2, 90], 0), ([1, 1, 90, 2], 0),
        ([1, 1, 20, 20], 1), ([1, 1, 0, 20], 0), (None, 0), ([1, 1, 3, 90], 0),
    ]  # fmt: skip
    path = tmp_path / "boxes.json"
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 96, "width": 96}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd,
             "area": 1}
            for number, (box, crowd) in enumerate(boxes)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    table = open_boxes(path, None, tmp_path)
    ids = np.asarray(table.boxes["id"])

    def chosen(*settings):
        return sorted(int(number) for number in ids[training_rows(table, *settings)])

    assert chosen(100.0, False) == [1, 7]  # above, not at, the least area
    assert chosen(99.0, False) == [0, 1, 7]
    assert chosen(100.0, True) == [1, 4, 7]


def test_the_released_expansion_has_a_further_pixel_right_and_below(crops_of):
    paper, released = crops_of(theta=0.0), crops_of(theta=0.0, expansion="released")
    for row in range(3):
        box = paper.xyxy[row]
        frame = released[(0, row)]["box_B4"]
        x0, x1 = np.floor(box[0]), np.ceil(box[2] + 1)
        assert frame[2] == pytest.approx((box[2] - x0) / (x1 - x0), abs=1e-5)
        assert frame[2] < paper[(0, row)]["box_B4"][2] + 1e-6


def test_a_batch_on_a_device_is_the_batch(crops_of):
    batch = collate([crops_of()[(0, 0)]])
    moved = batch.to(torch.device("cpu"))
    for item in dataclasses.fields(batch):
        assert torch.equal(getattr(moved, item.name), getattr(batch, item.name))


def covered_by_counting(rectangle, side, samples=200):
    ticks = (np.arange(side * samples) + 0.5) / (side * samples)
    x0, y0, x1, y1 = rectangle
    along = [
        ((ticks > low) & (ticks < high)).reshape(side, samples).mean(1)
        for low, high in ((y0, y1), (x0, x1))
    ]
    return np.outer(*along)


@pytest.mark.parametrize(
    "rectangle", [(0.1, 0.2, 0.8, 0.9), (-0.3, -0.1, 0.5, 1.4), (0.26, 0.26, 0.3, 0.3)]
)
def test_rectangle_mask_is_the_share_of_each_cell_that_is_covered(rectangle):
    found = rectangle_mask(torch.tensor([rectangle]), 6)[0].numpy()
    np.testing.assert_allclose(found, covered_by_counting(rectangle, 6), atol=2e-2)
