"""IoU, Dice, boundary IoU and their means, against literal definitions on whole images."""

import cv2
import numpy as np
import pytest

from malcli.geometry.rle import empty_rle, encode_crop
from malcli.metrics.miou import (
    category_means,
    group_instances,
    instance_scores,
    interval,
    intervals,
    resample_images,
    scores_of_all,
    summarise,
)
from malcli.metrics.shapes import box_shapes, ellipse_shapes


def encode(image):
    return encode_crop(image, 0, 0, image.shape)


def blob(rng, image_hw):
    """A smooth random mask, often touching the border."""
    noise = cv2.GaussianBlur(rng.standard_normal(image_hw), (0, 0), 6)
    return noise > np.quantile(noise, rng.uniform(0.2, 0.9))


def literal_boundary(image):
    """Mask minus d erosions by a 3x3 square, the outside of the image being background."""
    height, width = image.shape
    steps = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    padded = np.pad(image.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
    return image & (inner == 0)


@pytest.mark.parametrize("image_hw", [(40, 60), (90, 120), (200, 150)])
def test_boundary_iou_equals_the_definition_on_whole_images(image_hw):
    rng = np.random.default_rng(5)
    a = [blob(rng, image_hw) for _ in range(12)]
    b = [blob(rng, image_hw) for _ in range(12)]
    expected = []
    for one, other in zip(a, b, strict=True):
        edges = literal_boundary(one), literal_boundary(other)
        expected.append((edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum())
    found = instance_scores([encode(one) for one in a], [encode(one) for one in b])["boundary_iou"]
    assert found == pytest.approx(expected)


def test_a_mask_at_the_image_border_has_its_boundary_there():
    image = np.ones((100, 100), dtype=bool)  # reach: round(0.02 * 141.4) = 3
    inner = np.zeros_like(image)
    inner[3:-3, 3:-3] = True
    frame = image & ~inner
    assert instance_scores([encode(image)], [encode(frame)])["boundary_iou"] == pytest.approx(1.0)


def test_iou_and_dice_equal_counting_pixels():
    rng = np.random.default_rng(1)
    a, b = [blob(rng, (50, 70)) for _ in range(8)], [blob(rng, (50, 70)) for _ in range(8)]
    scores = instance_scores([encode(one) for one in a], [encode(one) for one in b])
    for n, (one, other) in enumerate(zip(a, b, strict=True)):
        both = (one & other).sum()
        assert scores["iou"][n] == pytest.approx(both / (one | other).sum())
        assert scores["dice"][n] == pytest.approx(2 * both / (one.sum() + other.sum()))


def test_missing_and_empty_predictions_count_zero():
    human = encode(np.eye(20, dtype=bool))
    scores = instance_scores([human] * 3, [None, empty_rle((20, 20)), human])
    for name in ("iou", "dice", "boundary_iou"):
        assert scores[name].tolist() == [0, 0, 1]


def test_two_empty_masks_count_zero_and_no_instances_count_nothing():
    empty = empty_rle((20, 20))
    assert {float(values[0]) for values in instance_scores([empty], [None]).values()} == {0.0}
    assert {values.size for values in instance_scores([], []).values()} == {0}


def test_baselines_score_as_their_masks_would():
    rng = np.random.default_rng(4)
    human = [encode(blob(rng, (90, 120))) for _ in range(10)]
    side = rng.uniform(-10, 90, (10, 2))
    xywh = np.concatenate([side, rng.uniform(2, 80, (10, 2))], axis=1)
    found = scores_of_all(human, {}, xywh)
    assert list(found) == ["box", "ellipse"]
    for name, draw in (("box", box_shapes), ("ellipse", ellipse_shapes)):
        masks = [
            encode_crop(shape.mask, shape.x, shape.y, (90, 120)) if shape.mask.size else None
            for shape in draw(xywh, [(90, 120)] * 10)
        ]
        expected = instance_scores(human, masks)
        for key, values in found[name].items():
            assert values == pytest.approx(expected[key], abs=1e-12)


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    side = rng.uniform(5, 150, (count, 2))
    xywh = np.concatenate([np.zeros((count, 2)), side], axis=1)
    image, category = rng.integers(0, 6, count), rng.integers(3, 7, count)
    iou = rng.random(count)
    scores = {"iou": iou, "dice": 2 * iou / (1 + iou), "boundary_iou": iou / 2}
    return scores, image, category, xywh


def test_means_equal_plain_loops():
    scores, image, category, xywh = data(60)
    found = summarise(scores, group_instances(image, category, xywh))
    area = xywh[:, 2] * xywh[:, 3]
    limits = {"all": (0, 1e9), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e9)}
    for name, (low, high) in limits.items():
        rows = [n for n in range(60) if low <= area[n] < high]
        for key in ("dice", "boundary_iou"):
            assert getattr(found, key)[name] == pytest.approx(
                np.mean([scores[key][n] for n in rows])
            )
        assert found.miou[name] == pytest.approx(np.mean([scores["iou"][n] for n in rows]))
        means = [
            np.mean([scores["iou"][n] for n in rows if category[n] == kind])
            for kind in {int(category[n]) for n in rows}
        ]
        assert found.category_miou[name] == pytest.approx(np.mean(means))
    for level in ("0.5", "0.75", "0.9"):
        assert found.iou_over[level] == np.mean(scores["iou"] >= float(level))


def test_size_classes_are_half_open():
    xywh = np.array([[0, 0, 32, 31.999], [0, 0, 32, 32], [0, 0, 96, 96]])
    assert group_instances(np.zeros(3, int), np.zeros(3, int), xywh).size.tolist() == [0, 1, 2]


def test_what_has_no_instances_is_null():
    scores = {name: np.zeros(0) for name in ("iou", "dice", "boundary_iou")}
    groups = group_instances(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)))
    for tree in (summarise(scores, groups), intervals(scores, groups, resample_images(3, 5, 0))):
        assert tree.miou == {"all": None, "small": None, "medium": None, "large": None}
        assert tree.iou_over == {"0.5": None, "0.75": None, "0.9": None}


def test_intervals_equal_resampling_the_instances_by_hand():
    scores, image, category, xywh = data(40, seed=2)
    draws = resample_images(6, 300, seed=9)
    found = intervals(scores, group_instances(image, category, xywh), draws)
    plain, by_category = [], []
    for draw in draws:
        rows = [
            n
            for place, times in enumerate(draw)
            for n in np.flatnonzero(image == place).repeat(times)
        ]
        if rows:
            plain.append(scores["iou"][rows].mean())
            kinds = np.unique(category[rows])
            means = [
                scores["iou"][[n for n in rows if category[n] == kind]].mean() for kind in kinds
            ]
            by_category.append(np.mean(means))
    assert found.miou["all"] == pytest.approx(np.percentile(plain, [2.5, 97.5]))
    assert found.category_miou["all"] == pytest.approx(np.percentile(by_category, [2.5, 97.5]))


def test_resamples_hold_as_many_images_and_repeat_with_their_seed():
    draws = resample_images(50, 20, seed=3)
    assert (draws.sum(axis=1) == 50).all()
    assert np.array_equal(draws, resample_images(50, 20, seed=3))
    assert not np.array_equal(draws, resample_images(50, 20, seed=4))
    assert resample_images(0, 4, seed=0).shape == (4, 0)


def test_intervals_leave_undefined_resamples_out():
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([0.5, np.nan])) == [0.5, 0.5]


def test_category_means_say_mean_and_number():
    means = category_means(np.array([0.2, 0.4, 1.0]), np.array([7, 7, 3]))
    assert means == {7: (pytest.approx(0.3), 2), 3: (1.0, 1)}
    assert category_means(np.zeros(0), np.zeros(0, dtype=int)) == {}
