"""Crops and pastes against numpy's padding, Pillow and coordinate ramps."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from malcli.geometry.crops import crop_roi, cut_roi, paste_mask, resize


def draw_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pad_reflected(image, left, top, right, bottom):
    """np.pad's reflection; it has no word for a side of one pixel, which repeats."""
    for axis, widths in ((0, (top, bottom)), (1, (left, right))):
        mode = "reflect" if image.shape[axis] > 1 else "edge"
        pads = [(0, 0)] * 3
        pads[axis] = widths
        image = np.pad(image, pads, mode=mode)
    return image


def cut_reflected(image, roi):
    """Return the RoI's pixels: pad on all sides as far as needed, then slice."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = roi
    left, top = max(0, -x0), max(0, -y0)
    padded = pad_reflected(image, left, top, max(0, x1 - width), max(0, y1 - height))
    return padded[y0 + top : y1 + top, x0 + left : x1 + left]


def cut_wrapped(image, roi):
    x0, y0, x1, y1 = roi
    rows = np.take(image, range(y0, y1), axis=0, mode="wrap")
    return np.take(rows, range(x0, x1), axis=1, mode="wrap")


begin = st.integers(-40, 40)
side = st.integers(1, 50)
rois = st.tuples(begin, begin, side, side).map(
    lambda roi: (roi[0], roi[1], roi[0] + roi[2], roi[1] + roi[3])
)
shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=200)
@given(shapes, rois)
@example((1, 1), (-7, -7, 9, 9))
@example((1, 5), (-30, -3, 31, 3))
@example((3, 4), (50, 60, 70, 62))  # wholly outside
@pytest.mark.parametrize(
    ("border", "reference"), [("reflect", cut_reflected), ("wrap", cut_wrapped)]
)
def test_pixels_outside_the_image_match_numpy(border, reference, shape, roi):
    image = draw_image(*shape)
    assert np.array_equal(cut_roi(image, np.array(roi), border), reference(image, roi))


@pytest.mark.parametrize(
    "roi", [(-40, -33, 60, 70), (-1, 0, 7, 5), (6, 4, 9, 8), (-900, 5, -880, 9)]
)
def test_a_wrapped_pixel_is_that_of_the_remainder(roi):
    image = draw_image(5, 7)
    cut = cut_roi(image, np.array(roi), "wrap")
    x0, y0, x1, y1 = roi
    assert cut.shape == (y1 - y0, x1 - x0, 3)
    for row in range(y1 - y0):
        for column in range(x1 - x0):
            assert (cut[row, column] == image[(y0 + row) % 5, (x0 + column) % 7]).all()


@given(shapes, begin, begin, side)
@pytest.mark.parametrize("border", ["reflect", "wrap"])
def test_paste_inverts_crop_where_no_resizing_happens(border, shape, x, y, size):
    height, width = shape
    image = draw_image(height, width, seed=1)
    roi = np.array([x, y, x + size, y + size])
    crop = crop_roi(image, roi, size, border)
    assert crop.shape == (size, size, 3)
    window = np.array([max(x, 0), max(y, 0), min(x + size, width), min(y + size, height)])
    if (window[2:] <= window[:2]).any():
        return
    pasted = paste_mask(crop[..., 0].astype(np.float32), roi, window)
    x0, y0, x1, y1 = window
    assert np.array_equal(pasted, image[y0:y1, x0:x1, 0])


def ramps(height, width):
    """Return an image whose red is its x and green its y coordinate, in pixels."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    return image


@pytest.mark.parametrize(
    "roi_wh", [(40, 40), (37, 61), (128, 90), (200, 160), (64, 200), (200, 64)]
)
@pytest.mark.parametrize("border", ["reflect", "wrap"])
@pytest.mark.parametrize("size", [64, 128])
def test_crop_positions_follow_the_pixel_rule(roi_wh, border, size):
    x0, y0 = 13, 7
    crop = crop_roi(
        ramps(230, 230), np.array([x0, y0, x0 + roi_wh[0], y0 + roi_wh[1]]), size, border
    )
    inner = slice(8, size - 8)  # cubic kernels look two source pixels past the border
    for channel, (start, length) in enumerate(((x0, roi_wh[0]), (y0, roi_wh[1]))):
        # Crop pixel u has its centre at start + (u + 0.5) * length / size; values sit at i + 0.5.
        wanted = start + (np.arange(size) + 0.5) * length / size - 0.5
        values = crop[..., channel] if channel == 0 else crop[..., channel].T
        error = np.abs(values[inner, inner] - wanted[inner])
        assert error.max() <= 1.01  # half a level for each of two 8-bit roundings


@pytest.mark.parametrize(
    "roi_wh", [(40, 40), (37, 61), (128, 90), (200, 160), (64, 200), (200, 64)]
)
@pytest.mark.parametrize("size", [64, 128])
def test_coordinates_survive_crop_and_paste_at_other_sizes(roi_wh, size):
    width, height = roi_wh
    x0, y0 = -11, 13
    roi = np.array([x0, y0, x0 + width, y0 + height])
    # A float ramp on the crop's grid, by the pixel rule; paste must land it on image pixels.
    across = x0 + (np.arange(size) + 0.5) * width / size - 0.5
    down = y0 + (np.arange(size) + 0.5) * height / size - 0.5
    window = np.array([3, 20, x0 + width - 2, y0 + height - 5])
    pasted_x = paste_mask(np.tile(across, (size, 1)).astype(np.float32), roi, window)
    pasted_y = paste_mask(np.tile(down[:, None], (1, size)).astype(np.float32), roi, window)
    assert pasted_x.shape == (window[3] - window[1], window[2] - window[0])
    # Away from the RoI's border, bilinear growth is exact on a straight line; an area mean takes
    # pixels as flat, so a window that ends within one is off by up to 1/8 pixel.
    inside_x, inside_y = slice(4, -4), slice(4, -4)
    wanted_x = np.arange(window[0], window[2])[inside_x]
    wanted_y = np.arange(window[1], window[3])[inside_y]
    assert np.abs(pasted_x[:, inside_x] - wanted_x).max() < 1 / 8
    assert np.abs(pasted_y[inside_y] - wanted_y[:, None]).max() < 1 / 8


@pytest.mark.parametrize(("height", "width"), [(40, 30), (90, 200), (64, 64), (33, 150)])
def test_wrapped_crops_are_resized_as_pillow_does(height, width):
    image = draw_image(300, 300, seed=2)
    roi = np.array([-20, 150, width - 20, 150 + height])
    patch = Image.fromarray(np.ascontiguousarray(cut_wrapped(image, roi)))
    wanted = np.asarray(patch.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(crop_roi(image, roi, 64, "wrap"), wanted)


def test_shrinking_by_whole_factors_is_the_mean():
    values = np.random.default_rng(3).random((12, 20)).astype(np.float32)
    wanted = values.reshape(4, 3, 5, 4).mean(axis=(1, 3))
    assert resize(values, (4, 5)) == pytest.approx(wanted, abs=1e-6)


def test_each_axis_is_resized_by_its_own_method():
    values = np.random.default_rng(4).random((12, 5)).astype(np.float32)
    # Rows shrink by 3 (means), columns grow by 2 (linear): as two steps, columns by hand.
    means = values.reshape(4, 3, 5).mean(axis=1)
    centre = (np.arange(10) + 0.5) / 2 - 0.5
    wanted = np.array([np.interp(centre, np.arange(5), row) for row in means])
    assert resize(values, (4, 10)) == pytest.approx(wanted, abs=1e-6)


def shrunk_by_hand(image, size):
    """Linear to a multiple of the size, then means of blocks, one axis after the other."""
    values = image.astype(np.float64)
    for axis in (0, 1):
        length = values.shape[axis]
        blocks = length // size
        centre = (np.arange(size * blocks) + 0.5) * length / (size * blocks) - 0.5
        low = np.clip(np.floor(centre).astype(int), 0, length - 2)
        share = np.clip(centre - low, 0, 1)
        share = np.expand_dims(share, (1, 2) if axis == 0 else (0, 2))
        lower, upper = (np.take(values, low + step, axis=axis) for step in (0, 1))
        values = lower * (1 - share) + upper * share
        parts = list(values.shape)
        parts[axis : axis + 1] = [size, blocks]
        values = values.reshape(parts).mean(axis=axis + 1)
    return values


@pytest.mark.parametrize("hw", [(32, 32), (33, 63), (64, 96), (100, 71), (205, 64), (129, 350)])
def test_shrinking_crops_are_linear_to_a_multiple_then_means_of_blocks(hw):
    image = draw_image(*hw, seed=8)
    found = crop_roi(image, np.array([0, 0, hw[1], hw[0]]), 32)
    assert np.abs(found - shrunk_by_hand(image, 32)).max() <= 1.5  # rounded twice


@pytest.mark.parametrize("hw", [(205, 171), (301, 90), (77, 512)])
def test_shrinking_crops_keep_their_place_and_hide_fine_patterns(hw):
    height, width = hw
    roi = np.array([0, 0, width, height])
    ramp = np.empty((height, width, 3), np.uint8)
    ramp[..., 0] = np.round((np.arange(width) + 0.5) * 255 / width - 0.5)
    ramp[..., 1] = np.round((np.arange(height) + 0.5) * 255 / height - 0.5)[:, None]
    ramp[..., 2] = 255 * (np.add.outer(np.arange(height), np.arange(width)) % 2)
    crop = crop_roi(ramp, roi, 32).astype(int)
    wanted = (np.arange(32) + 0.5) * 255 / 32 - 0.5
    assert np.abs(crop[..., 0] - wanted).max() <= 2.5
    assert np.abs(crop[..., 1] - wanted[:, None]).max() <= 2.5
    assert np.abs(crop[..., 2] - 127.5).max() <= 40  # of a board of single pixels


def test_growing_crops_are_cubic():
    image = draw_image(30, 30, seed=5)
    wanted = cv2.resize(image[5:25, 4:24], (64, 64), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(crop_roi(image, np.array([4, 5, 24, 25]), 64), wanted)


def test_paste_window_is_cut_from_the_whole_roi():
    prob = np.random.default_rng(6).random((32, 32)).astype(np.float32)
    roi = np.array([-10, 5, 60, 55])
    whole = paste_mask(prob, roi, roi)
    window = np.array([0, 10, 33, 40])
    assert np.array_equal(paste_mask(prob, roi, window), whole[5:35, 10:43])


@pytest.mark.parametrize("border", ["reflect", "wrap"])
def test_a_one_pixel_image_gives_one_colour(border):
    image = np.array([[[10, 20, 30]]], dtype=np.uint8)
    crop = crop_roi(image, np.array([-3, -2, 4, 1]), 32, border)
    assert (crop == [10, 20, 30]).all()
