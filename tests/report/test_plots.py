"""Pictures of masks."""

import io

import numpy as np
import pytest
from PIL import Image

from malcli.geometry.rle import encode_crop
from malcli.report.plots import (
    HUMAN,
    MALCLI,
    Subject,
    attention_picture,
    crop_sheet,
    draw_subjects,
    instance_window,
    jpeg,
    overlay,
    thumbnail,
)


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_overlay_tints_the_mask_alone_and_leaves_its_input():
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:15, 10:20] = True
    drawn = overlay(image, mask, (255, 0, 0))
    assert (image == 100).all()
    assert (drawn[~mask] == 100).all()
    assert (drawn[6:14, 11:19] == [162, 60, 60]).all()
    assert (drawn[5, 10:20] == [255, 0, 0]).all()


@pytest.mark.parametrize(
    "xywh",
    [[0, 0, 3, 2], [95, 70, 1, 2], [10, 10, 40, 40], [-20, -20, 200, 200], [300, 300, 5, 5]],
)
def test_the_window_lies_in_the_image_and_holds_what_is_visible_of_the_box(xywh):
    x0, y0, x1, y1 = instance_window(np.array(xywh, dtype=float), (72, 96))
    assert 0 <= x0 < x1 <= 96
    assert 0 <= y0 < y1 <= 72
    if xywh[0] < 96:
        assert x0 <= max(0, xywh[0])
        assert x1 >= min(96, xywh[0] + xywh[2])


def test_a_thumbnail_shows_each_mask_beside_the_other():
    image = np.zeros((72, 96, 3), dtype=np.uint8)
    human = encode_crop(np.ones((20, 20), dtype=bool), 30, 30, (72, 96))
    box = np.array([30.0, 30.0, 20.0, 20.0])
    picture = thumbnail(image, [(human, HUMAN), (None, MALCLI)], box, (72, 96), side=64)
    assert picture.shape == (64, 64 + 4 + 64, 3)
    left, right = picture[:, :64], picture[:, 68:]
    assert left[32, 32, 2] > 90
    assert (right[32, 32] == 0).all()
    assert (thumbnail(None, [(None, HUMAN)], box, (72, 96), side=64)[32, 32] == 128).all()


def test_subjects_become_jpegs_with_their_captions():
    asked = []

    def read(name, image_hw):
        asked.append((name, image_hw))

    rle = encode_crop(np.ones((4, 4), dtype=bool), 1, 1, (10, 12))
    subject = Subject("a.jpg", (10, 12), np.array([1.0, 1, 4, 4]), ((rle, HUMAN),), ("one", "two"))
    [example] = draw_subjects([subject], read)
    assert asked == [("a.jpg", (10, 12))]
    assert example.caption == ("one", "two")
    assert opened(example.picture).ndim == 3


def test_a_sheet_has_a_row_for_each_crop_and_a_cell_for_each_map():
    crops = np.full((2, 40, 40, 3), 200, dtype=np.uint8)
    prob = np.stack([np.zeros((10, 10)), np.ones((10, 10))]).astype(np.float32)
    refined = np.full((2, 10, 10), 255, dtype=np.uint8)
    sheet = opened(crop_sheet(crops, prob, refined, side=32))
    assert sheet.shape == (2 * 32 + 4, 3 * 32 + 2 * 4, 3)
    assert (sheet[16, 16] == 200).all()
    assert (sheet[16, 36 + 16] == 0).all()
    assert (sheet[36 + 16, 36 + 16] == 255).all()
    assert (sheet[16, 72 + 16] == 255).all()


def test_attention_has_a_row_for_each_query_and_a_cell_for_each_layer():
    crop = np.full((8, 8, 3), 200, dtype=np.uint8)
    maps = np.zeros((2, 3, 4, 4), dtype=np.float32)
    maps[1, 2, 3, 0] = 0.5  # lower left
    picture = attention_picture(crop, maps, [None, (0.5, 0.5)], side=40)
    assert picture.shape == (2 * 40 + 4, 4 * 40 + 3 * 4, 3)
    assert (picture[:40, :40] == 200).all()  # the first query is no place
    assert (picture[44 + 20, 20] == 255).all()  # the second's dot ...
    assert (picture[44 + 20, 20 + 6] == 0).all()  # ... and its rim
    dark, bright = picture[44 + 5, 132 + 35], picture[44 + 35, 132 + 5]
    assert dark.max() < 20
    assert bright.min() > 100


def test_a_single_strong_token_does_not_darken_the_others():
    maps = np.full((1, 1, 20, 20), 0.1, dtype=np.float32)
    maps[0, 0, 0, 0] = 100
    crop = np.zeros((20, 20, 3), dtype=np.uint8)
    picture = attention_picture(crop, maps, [None], side=20)
    assert (picture[10, 24 + 10] == picture[0, 24]).all()


def test_jpeg_keeps_the_size():
    assert opened(jpeg(np.zeros((11, 17, 3), dtype=np.uint8))).shape == (11, 17, 3)
