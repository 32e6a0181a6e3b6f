"""Boxes against literal loops and the laws of mal.md 1 and 12."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.geometry import boxes as boxes_module
from malcli.geometry.boxes import (
    NO_SIZE,
    clip_xyxy,
    expand_box,
    largest_overlaps,
    random_margins,
    roi_frame,
    round_outward,
    size_class,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

# Multiples of 1/16 below 2^20: sums and differences are exact in float64.
exact = st.integers(-(2**20), 2**20).map(lambda value: value / 16)
positive = st.integers(1, 2**20).map(lambda value: value / 16)
boxes = st.tuples(exact, exact, positive, positive).map(
    lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]]
)


@given(st.lists(st.tuples(exact, exact, positive, positive), min_size=1, max_size=5))
def test_corner_forms_are_inverses(rows):
    xywh = np.array(rows)
    xyxy = xywh_to_xyxy(xywh)
    assert xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h in rows]
    assert xyxy_to_xywh(xyxy).tolist() == xywh.tolist()


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 2, 4)])
def test_corner_forms_index_the_last_axis(shape):
    xywh = np.arange(math.prod(shape), dtype=float).reshape(shape)
    xyxy = xywh_to_xyxy(xywh)
    assert xyxy.shape == shape
    assert (xyxy[..., 2] == xywh[..., 0] + xywh[..., 2]).all()
    assert (xyxy_to_xywh(xyxy) == xywh).all()


@given(boxes, st.integers(1, 5000), st.integers(1, 5000))
def test_clip_keeps_exactly_what_lies_in_the_image(box, height, width):
    x0, y0, x1, y1 = clip_xyxy(np.array(box), (height, width)).tolist()
    assert [x0, x1] == [min(max(x, 0), width) for x in box[0::2]]
    assert [y0, y1] == [min(max(y, 0), height) for y in box[1::2]]


@given(boxes)
def test_round_outward_is_the_smallest_integer_rectangle_that_holds_the_box(box):
    rounded = round_outward(np.array(box))
    assert rounded.dtype == np.int64
    for side, (value, whole) in enumerate(zip(box, rounded.tolist(), strict=True)):
        outward = -1 if side < 2 else 1
        assert outward * (whole - value) >= 0  # holds the box
        assert outward * (whole - outward - value) < 0  # one pixel less would not


def expand_literally(box, margins):
    """Sec. 3.1 with `1 +`, one side at a time, written from the centre."""
    x0, y0, x1, y1 = box
    left, top, right, bottom = margins
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    return [
        math.floor(centre_x - (centre_x - x0) * (1 + left)),
        math.floor(centre_y - (centre_y - y0) * (1 + top)),
        math.ceil(centre_x + (x1 - centre_x) * (1 + right)),
        math.ceil(centre_y + (y1 - centre_y) * (1 + bottom)),
    ]


# Multiples of 1/8 up to 2: the products stay exact, so floor and ceil are decided equally.
@given(boxes, st.lists(st.integers(0, 16).map(lambda value: value / 8), min_size=4, max_size=4))
def test_expand_box_follows_the_formula_side_by_side(box, margins):
    assert expand_box(np.array(box), np.array(margins)).tolist() == expand_literally(box, margins)


def test_expand_box_takes_many_boxes_at_once():
    xyxy = np.array([[10.0, 20.0, 30.0, 60.0], [0.5, 0.5, 1.5, 9.5]])
    margins = np.array([[0.5, 0.25, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3]])
    # halves of box 1: 10 and 20, so 10 - 5, 20 - 5, 30 + 10, 60; box 2: .5 - .15, .5 - 1.35 ...
    assert expand_box(xyxy, margins).tolist() == [[5, 15, 40, 60], [0, -1, 2, 11]]


def test_the_released_law_adds_a_pixel_at_the_right_and_the_bottom():
    xyxy = np.array([[10.0, 20.0, 30.0, 60.0], [0.5, 0.5, 1.5, 9.5]])
    margins = np.array([[0.5, 0.25, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3]])
    found = expand_box(xyxy, margins, "released")
    assert (found - expand_box(xyxy, margins)).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("law", ["paper", "released"])
@pytest.mark.parametrize("theta", [0.0, 0.6, 1.2])
def test_margins_are_never_negative_and_never_sum_above_theta(law, theta):
    margins = random_margins(np.random.default_rng(0), 20_000, theta, law)
    assert margins.shape == (20_000, 4)
    assert margins.min() >= 0
    for axis in (0, 1):
        total = margins[:, axis] + margins[:, axis + 2]
        assert total.max() <= theta + 1e-12
        if theta:
            assert total.max() > 0.95 * theta  # the bound is reached
            assert total.min() < 0.05 * theta


@pytest.mark.parametrize(("law", "p5", "p95"), [("paper", 1.03, 1.57), ("released", 1.07, 1.53)])
def test_crop_over_box_has_the_published_mean_and_quantiles(law, p5, p95):
    margins = random_margins(np.random.default_rng(1), 200_000, 1.2, law)
    for axis in (0, 1):
        ratio = 1 + (margins[:, axis] + margins[:, axis + 2]) / 2
        assert ratio.mean() == pytest.approx(1.30, abs=0.002)
        assert np.quantile(ratio, 0.05) == pytest.approx(p5, abs=0.01)
        assert np.quantile(ratio, 0.95) == pytest.approx(p95, abs=0.01)


@pytest.mark.parametrize("law", ["paper", "released"])
def test_both_axes_and_both_sides_are_drawn_alike(law):
    margins = random_margins(np.random.default_rng(2), 100_000, 1.2, law)
    assert margins.mean(axis=0) == pytest.approx([0.3] * 4, abs=0.004)
    assert abs(np.corrcoef(margins[:, 0], margins[:, 1])[0, 1]) < 0.02  # the axes are strangers


def test_released_sides_are_gated_against_each_other():
    margins = random_margins(np.random.default_rng(3), 100_000, 1.2, "released")
    # u1 g and u2 (1 - g): covariance 1.44 * 0.25 * (E[g(1-g)] - 0.25) = 0.36 * (1/6 - 1/4) = -0.03
    assert np.cov(margins[:, 0], margins[:, 2])[0, 1] == pytest.approx(-0.03, abs=0.002)


def test_paper_total_is_uniform():
    margins = random_margins(np.random.default_rng(4), 100_000, 1.2, "paper")
    total = margins[:, 1] + margins[:, 3]
    for share in (0.1, 0.5, 0.9):
        assert (total < 1.2 * share).mean() == pytest.approx(share, abs=0.01)


def test_margins_repeat_with_the_seed():
    first, again, other = (
        random_margins(np.random.default_rng(seed), 5, 1.2, "paper") for seed in (7, 7, 8)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("area", "size"),
    [(0, 0), (1023.999, 0), (1024, 1), (1024.001, 1), (9215.999, 1), (9216, 2), (1e9, 2)],
)
def test_size_classes_are_half_open(area, size):
    assert size_class(np.array([area])).tolist() == [size]
    assert size_class(np.array(area, dtype=np.float32)).item() == size_class(np.float32(area))


@pytest.mark.parametrize(
    ("area", "strict", "closed"),
    [
        (0, 0, 0),
        (1023.999, 0, 0),
        (1024, NO_SIZE, 0),
        (1024.001, 1, 1),
        (9216, NO_SIZE, 1),
        (9216.001, 2, 2),
    ],
)
def test_the_released_laws_differ_where_an_area_is_exactly_a_border(area, strict, closed):
    assert size_class(np.array([area]), "strict").tolist() == [strict]
    assert size_class(np.array([area]), "closed").tolist() == [closed]


def test_roi_frame_maps_the_roi_to_the_unit_square():
    roi = np.array([[10, 20, 30, 60], [-5, 0, 5, 4]])
    xyxy = np.array([[10.0, 20.0, 30.0, 60.0], [0.0, 1.0, 2.5, 5.0]])
    # second: (0 + 5) / 10, 1 / 4, 7.5 / 10, 5 / 4
    assert roi_frame(xyxy, roi).tolist() == [[0, 0, 1, 1], [0.5, 0.25, 0.75, 1.25]]


@given(st.lists(boxes, max_size=6))
def test_the_largest_overlap_is_that_of_all_pairs(found):
    def iou(a, b):
        wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return wide * high / (areas - wide * high)

    wanted = [
        max((iou(one, other) for place, other in enumerate(found) if place != row), default=0)
        for row, one in enumerate(found)
    ]
    overlaps = largest_overlaps(np.array(found, dtype=np.float64).reshape(-1, 4))
    assert overlaps.tolist() == pytest.approx(wanted, abs=1e-12)


def test_boxes_without_area_overlap_nothing():
    flat = np.array([[1.0, 1, 1, 5], [1, 1, 1, 5], [0, 0, 9, 9]])
    assert largest_overlaps(flat).tolist() == [0, 0, 0]


def all_pairs(xyxy):
    """The largest IoU of each box, every pair looked at."""
    area = np.prod(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0), axis=1)
    found = np.zeros(len(xyxy))
    for row, (box, own) in enumerate(zip(xyxy, area, strict=True)):
        sides = np.minimum(xyxy[:, 2:], box[2:]) - np.maximum(xyxy[:, :2], box[:2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        iou = shared / np.maximum(area + own - shared, np.finfo(np.float64).tiny)
        iou[row] = 0
        found[row] = iou.max()
    return found


def crowd(kind, count, rng):
    """Boxes of one image of 4,000 pixels, crowded in different ways."""
    centre = rng.uniform(0, 4000, (count, 2))
    if kind == "cells":
        side = rng.uniform(5, 40, (count, 2))
    elif kind == "any size":
        side = np.exp(rng.uniform(0, 8, (count, 2)))
    elif kind == "one on the other":
        centre, side = 500 + rng.normal(0, 3, (count, 2)), 300 + rng.normal(0, 3, (count, 2))
    elif kind == "equal":
        centre, side = np.full((count, 2), 50.1), np.full((count, 2), 20.3)
    elif kind == "nested":
        centre, side = np.full((count, 2), 2000.0), np.linspace(1, 4000, count)[:, None] * [1, 1]
    elif kind == "strips":
        side = np.where(rng.random(count)[:, None] < 0.5, [4000.0, 2.0], [2.0, 4000.0])
    else:
        side = rng.integers(0, 2, (count, 2)) * 9.0
    return np.clip(np.concatenate([centre - side / 2, centre + side / 2], axis=1), 0, 4000)


@pytest.mark.parametrize("count", [127, 128, 129, 700])
@pytest.mark.parametrize(
    "kind", ["cells", "any size", "one on the other", "equal", "nested", "strips", "flat"]
)
def test_the_largest_overlap_of_a_crowd_is_bit_for_bit_that_of_all_pairs(kind, count):
    xyxy = crowd(kind, count, np.random.default_rng(count))
    assert largest_overlaps(xyxy).tobytes() == all_pairs(xyxy).tobytes()


@pytest.mark.parametrize("kind", ["cells", "equal", "nested"])
def test_a_crowd_of_boxes_costs_far_less_than_its_pairs(kind, monkeypatch):
    compared = 0

    def counted(xyxy, area, others, their, same=False):
        nonlocal compared
        compared += len(xyxy) * len(others)
        return largest(xyxy, area, others, their, same)

    largest = boxes_module._largest_iou
    monkeypatch.setattr(boxes_module, "_largest_iou", counted)
    count = 8000
    largest_overlaps(crowd(kind, count, np.random.default_rng(1)))
    assert compared < count**2 / 4
