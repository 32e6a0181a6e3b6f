"""The released geometry against literal transcriptions of mal.md 1 and 8, Pillow and torch."""

import math

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import from_numpy

from malcli.geometry.released import (
    box_lines,
    box_pixels,
    image_part,
    nearby_roi,
    paste_bilinear,
    released_area,
    released_roi,
)

corner = st.floats(-500, 500)
side = st.floats(1e-3, 900)
margin = st.floats(0, 1.2)


def literal_roi(x, y, w, h, margins):
    """mal.md 1.1 and 1.2, one number at a time."""
    x0, y0, x1, y1 = (np.float32(value) for value in (x, y, x + w, y + h))
    left, top, right, bottom = margins
    cx, cy = (x1 + x0) / np.float32(2), (y1 + y0) / np.float32(2)
    assert cx.dtype == (cx - x0).dtype == np.float32
    return [
        math.floor(float(cx) - float(cx - x0) * (1.0 + left)),
        math.floor(float(cy) - float(cy - y0) * (1.0 + top)),
        math.ceil(float(cx) + float(x1 - cx) * (1.0 + right) + 1.0),
        math.ceil(float(cy) + float(y1 - cy) * (1.0 + bottom) + 1.0),
    ]


@given(corner, corner, side, side, st.tuples(margin, margin, margin, margin))
@example(10.0, 20.0, 30.0, 40.0, (0.3, 0.3, 0.3, 0.3))
@example(0.1, 0.2, 20.0, 20.0, (0.0, 0.0, 0.0, 0.0))  # float32 sides beside whole pixels
def test_rois_are_the_literal_formula_s_in_float32_and_float64(x, y, w, h, margins):
    found = released_roi(np.array([x, y, x + w, y + h]), np.array(margins))
    assert found.dtype == np.int64
    assert found.tolist() == literal_roi(x, y, w, h, margins)


def test_a_roi_counted_by_hand_has_one_pixel_more_at_the_right_and_the_bottom():
    # Centre 25, 40; halves 15, 20; 1.3 of them are 19.5, 26: 5.5, 14, 44.5 + 1, 66 + 1.
    boxes = np.array([[10.0, 20.0, 40.0, 60.0], [0.0, 0.0, 1.0, 1.0]])
    rois = nearby_roi(boxes, 0.6, (100, 100))
    assert rois.tolist() == [[5, 14, 46, 67], [-1, -1, 3, 3]]


@given(
    x=st.floats(-1e300, 59.9),
    y=st.floats(-1e300, 39.9),
    w=st.floats(1e-300, 1e300),
    h=st.floats(1e-300, 1e300),
)
@example(x=59.9999999999, y=39.9999999999, w=1e-12, h=1e-12)  # on the edge in float32
@example(x=-1e9, y=-1e9, w=2e9, h=2e9)
def test_rois_have_pixels_and_stay_within_an_image_of_the_image(x, y, w, h):
    if not (x + w > 0 and y + h > 0):
        return  # the reader has told that this box lies outside
    xyxy = np.array([x, y, x + w, y + h])
    x0, y0, x1, y1 = nearby_roi(xyxy, 0.6, (40, 60)).tolist()
    assert -60 <= x0 < x1 <= 120
    assert -40 <= y0 < y1 <= 80
    assert (image_part(np.array([x0, y0, x1, y1]), (40, 60)) >= 0).all()
    left, top, right, bottom = box_pixels(xyxy, (40, 60)).tolist()
    assert 0 <= left < right <= 60
    assert 0 <= top < bottom <= 40


@given(st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 30), st.floats(0.1, 30))
def test_boxes_that_reach_no_further_than_an_image_keep_their_roi(x, y, w, h):
    found = nearby_roi(np.array([x, y, x + w, y + h]), 0.6, (80, 80)).tolist()
    assert found == literal_roi(x, y, w, h, (0.3,) * 4)


def full_mask(x, y, w, h, height, width):
    """mal.md 1.7: both truncated corners belong to the box; clipped where it begins outside."""
    mask = np.zeros((height, width), np.uint8)
    mask[max(int(y), 0) : int(y + h) + 1, max(int(x), 0) : int(x + w) + 1] = 1
    return mask


def zero_padded(mask, roi):
    """Return the RoI's pixels of a mask, 0 outside, pixel by pixel."""
    height, width = mask.shape
    x0, y0, x1, y1 = roi
    cut = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for row in range(y0, y1):
        for column in range(x0, x1):
            if 0 <= row < height and 0 <= column < width:
                cut[row - y0, column - x0] = mask[row, column]
    return cut


def test_a_box_of_three_pixels_takes_four():
    assert box_pixels(np.array([5.0, 6.0, 8.0, 9.0]), (20, 20)).tolist() == [5, 6, 9, 10]


def test_truncation_is_that_of_the_doubles_not_of_float32():
    just_below = np.nextafter(8.0, 0)
    assert np.float32(just_below) == 8
    assert box_pixels(np.array([5.0, 5.0, just_below, 8.0]), (20, 20)).tolist() == [5, 5, 8, 9]


@pytest.mark.parametrize("size", [16, 33, 64])
@given(
    x=st.floats(-10, 24.9),
    y=st.floats(-10, 17.9),
    w=st.floats(0.01, 40),
    h=st.floats(0.01, 40),
)
@example(x=-0.5, y=-3.0, w=9.0, h=9.0)
@example(x=0.0, y=0.0, w=25.0, h=18.0)
def test_the_box_mask_is_pillow_s_resize_of_the_zero_padded_rectangle(size, x, y, w, h):
    if x + w <= 0 or y + h <= 0:
        return
    height, width = 18, 25
    xyxy = np.array([x, y, x + w, y + h])
    roi = nearby_roi(xyxy, 0.6, (height, width))
    cut = Image.fromarray(zero_padded(full_mask(x, y, w, h, height, width), roi.tolist()))
    wanted = np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))
    rows, columns = box_lines(box_pixels(xyxy, (height, width)), roi, size)
    assert np.array_equal(np.outer(rows, columns), wanted)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([1, 5, 32, 47]),
    st.integers(0, 2**32 - 1),
)
def test_pasting_is_torch_s_bilinear_interpolation_cut_to_the_window(height, width, size, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((size, size), dtype=np.float32)
    grown = F.interpolate(from_numpy(values)[None, None], (height, width), mode="bilinear")
    left, right = np.sort(rng.integers(0, width + 1, 2))
    top, bottom = np.sort(rng.integers(0, height + 1, 2))
    offset = np.array([-7, 3, -7, 3])
    roi = np.array([0, 0, width, height]) + offset
    found = paste_bilinear(values, roi, np.array([left, top, right, bottom]) + offset)
    assert (found.dtype, found.shape) == (np.float32, (bottom - top, right - left))
    wanted = grown[0, 0].numpy()[top:bottom, left:right]
    # torch's float32 positions hang on the processor's instructions, by one last bit of 47.
    assert found == pytest.approx(wanted, abs=1e-5)


def test_pasting_a_smooth_map_equals_torch_to_a_millionth():
    coarse = from_numpy(np.random.default_rng(0).random((1, 1, 16, 16), dtype=np.float32))
    values = F.interpolate(coarse, (512, 512), mode="bilinear")[0, 0].numpy()
    grown = F.interpolate(from_numpy(values)[None, None], (700, 1501), mode="bilinear")
    roi = np.array([0, 0, 1501, 700])
    assert np.abs(paste_bilinear(values, roi, roi) - grown[0, 0].numpy()).max() < 1e-6


def test_areas_are_products_of_float32_sides():
    # 0.1 + 32 is above 32.1 in float64; the side of the float32 corners is another number again.
    boxes = np.array([[0.0, 0.0, 32.0, 32.0], [0.1, 0.0, 32.1, 32.0], [0.0, 0.0, 1e300, 1e300]])
    wanted = [
        np.float32(1024),
        (np.float32(32.1) - np.float32(0.1)) * np.float32(32),
        np.float32(np.inf),
    ]
    assert released_area(boxes).tolist() == wanted
    assert released_area(boxes).dtype == np.float32
