import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from malcli.data.crops.label_crops import crop_batch, image_rois
from malcli.geometry.boxes import NO_SIZE
from malcli.geometry.crops import crop_roi

H, W = 40, 60
IMAGE = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)


def rois_of(*boxes, margin=0.6, **laws):
    xywh = np.array(boxes, dtype=np.float64)
    return image_rois(IMAGE, np.arange(len(boxes)) + 7, xywh, margin, **laws)


def test_the_window_is_the_box_rounded_outward_and_clipped():
    inside, over = rois_of([10.2, 5.5, 20.1, 9.9], [-3.5, 30.0, 10.0, 99.0])
    assert inside.window.tolist() == [10, 5, 31, 16]
    assert over.window.tolist() == [0, 30, 7, 40]


def test_the_crop_is_the_clipped_box_and_the_margin_on_each_side():
    # The clipped box is 20 x 10 at (40, 20): 0.3 of its half sides are 3 and 1.5 pixels.
    (roi,) = rois_of([40.0, 20.0, 500.0, 10.0])
    assert roi.roi.tolist() == [37, 18, 63, 32]


def test_size_classes_come_from_the_box_as_given():
    sizes = [roi.size for roi in rois_of([0, 0, 31.9, 32], [0, 0, 32, 32], [50, 0, 96, 96])]
    assert sizes == [0, 1, 2]


@pytest.mark.parametrize("geometry", ["exact", "released"])
def test_the_network_s_size_class_follows_its_own_law(geometry):
    boxes = [0, 0, 32, 32], [0, 0, 96, 96], [0, 0, 33, 32]
    half_open = rois_of(*boxes, geometry=geometry)
    strict = rois_of(*boxes, geometry=geometry, size_classes="strict")
    assert [roi.network_size for roi in half_open] == [1, 2, 1]
    assert [roi.network_size for roi in strict] == [NO_SIZE, NO_SIZE, 1]
    of_thresholds = [1, 2, 1] if geometry == "exact" else [0, 1, 1]
    assert [roi.size for roi in strict + half_open] == of_thresholds * 2


def test_released_windows_are_rois_cut_to_the_image_and_boxes_whole_pixels():
    # Centre 50, 25; halves 10, 5, times 1.3: 37, 18.5, 63 + 1, 31.5 + 1.
    inside, over = rois_of([40.0, 20.0, 20.0, 10.0], [-3.5, 30.0, 10.0, 8.0], geometry="released")
    assert inside.roi.tolist() == [37, 18, 64, 33]
    assert inside.window.tolist() == [37, 18, 60, 33]
    assert inside.pixels.tolist() == [40, 20, 60, 31]
    # Centre 1.5, 34; halves 5, 4: -5, 28.8, 8 + 1, 39.2 + 1.
    assert over.roi.tolist() == [-5, 28, 9, 41]
    assert over.window.tolist() == [0, 28, 9, 40]
    assert over.pixels.tolist() == [0, 30, 7, 39]


def test_wrapped_crops_are_made_of_the_roi_s_pixels_modulo_the_image():
    rois = rois_of([-5, -5, 40, 30], [30, 10, 60, 50], geometry="released")
    for crop, roi in zip(crop_batch(rois, 24, "wrap"), rois, strict=True):
        x0, y0, x1, y1 = roi.roi
        patch = IMAGE[np.arange(y0, y1)[:, None] % H, np.arange(x0, x1) % W]
        wanted = Image.fromarray(patch).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.array_equal(crop, np.asarray(wanted))


def test_rows_and_image_stay_with_their_boxes():
    rois = rois_of([1, 1, 5, 5], [2, 2, 6, 6])
    assert [roi.row for roi in rois] == [7, 8]
    assert all(roi.image is IMAGE and roi.image_hw == (H, W) for roi in rois)


@given(
    x=st.floats(-W, W - 1e-9),
    y=st.floats(-H, H - 1e-9),
    w=st.one_of(st.floats(1e-300, 3 * W), st.just(1e300)),
    h=st.floats(1e-300, 3 * H),
    margin=st.floats(0, 3),
)
def test_windows_have_pixels_inside_image_and_roi(x, y, w, h, margin):
    if not (x + w > 0 and y + h > 0):
        return  # the reader has told that this box lies outside
    (roi,) = rois_of([x, y, w, h], margin=margin)
    x0, y0, x1, y1 = roi.window.tolist()
    assert 0 <= x0 < x1 <= W
    assert 0 <= y0 < y1 <= H
    assert x0 <= max(x, 0)
    assert y0 <= max(y, 0)
    assert x1 >= min(x + w, W)
    assert y1 >= min(y + h, H)
    assert x1 - x0 <= math.ceil(min(x + w, W)) - math.floor(max(x, 0)) or x1 - x0 == 1
    assert (roi.roi[:2] <= roi.window[:2]).all()
    assert (roi.roi[2:] >= roi.window[2:]).all()


@pytest.mark.parametrize("box", [[5.0, 6.0, 1e-20, 4.0], [0.0, 0.0, 60.0, 1e-300]])
def test_a_side_too_thin_for_float64_keeps_one_pixel(box):
    (roi,) = rois_of(box)
    assert (roi.window[2:] - roi.window[:2] >= 1).all()
    assert crop_batch([roi], 32).shape == (1, 32, 32, 3)


def test_a_batch_holds_each_roi_s_own_crop():
    rois = rois_of([1, 1, 20, 20], [30, 10, 50, 50], [0, 0, 60, 40])
    batch = crop_batch(rois, 24)
    assert (batch.dtype, batch.shape) == (np.uint8, (3, 24, 24, 3))
    for crop, roi in zip(batch, rois, strict=True):
        assert np.array_equal(crop, crop_roi(IMAGE, roi.roi, 24))


def test_rois_say_how_much_their_boxes_overlap_inside_the_image():
    alone, left, right = rois_of([30, 20, 5, 5], [-10, 0, 20, 8], [5, 0, 10, 8])
    assert alone.overlap == 0
    # Clipped, [0, 10] and [5, 15] share 5 of 15 columns.
    assert left.overlap == right.overlap == pytest.approx(1 / 3)
