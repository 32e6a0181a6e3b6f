"""Shapes: drawn, decoded, their boundaries, against whole images."""

import numpy as np
import pytest

from malcli.geometry.rle import decode_rle, encode_crop
from malcli.metrics.shapes import (
    boundary,
    box_shapes,
    decode_shapes,
    ellipse_shapes,
    is_all_boundary,
    overlaps,
)


def whole(shape):
    image = np.zeros(shape.image_hw, dtype=bool)
    height, width = shape.mask.shape
    if shape.mask.size:
        image[shape.y : shape.y + height, shape.x : shape.x + width] = shape.mask
    return image


def brute_baseline(xywh, image_hw, ellipse):
    x, y, w, h = xywh
    image = np.zeros(image_hw, dtype=bool)
    for row in range(image_hw[0]):
        for column in range(image_hw[1]):
            u, v = (column + 0.5 - x) / w, (row + 0.5 - y) / h
            inside = 0 <= u < 1 and 0 <= v < 1
            image[row, column] = inside and (
                not ellipse or (2 * u - 1) ** 2 + (2 * v - 1) ** 2 <= 1
            )
    return image


BOXES = [
    [3.0, 4.0, 10.0, 7.0],
    [2.5, 1.5, 4.0, 3.0],
    [2.6, 1.4, 0.3, 0.4],
    [-5.0, -3.0, 12.0, 9.0],
    [15.2, 10.7, 30.0, 30.0],
    [0.0, 0.0, 24.0, 18.0],
    [-9.0, -9.0, 3.0, 3.0],
]


@pytest.mark.parametrize("xywh", BOXES)
def test_baselines_hold_the_pixels_whose_centres_are_inside(xywh):
    boxes, sizes = np.array([xywh]), [(18, 24)]
    drawn_box = whole(box_shapes(boxes, sizes)[0])
    assert np.array_equal(drawn_box, brute_baseline(xywh, (18, 24), ellipse=False))
    drawn_ellipse = whole(ellipse_shapes(boxes, sizes)[0])
    assert np.array_equal(drawn_ellipse, brute_baseline(xywh, (18, 24), ellipse=True))


def test_decoded_shapes_are_their_masks_and_overlap_by_counting_pixels():
    rng = np.random.default_rng(0)
    images = [rng.random((30, 40)) < share for share in (0, 0.01, 0.5, 1)]
    rles = [encode_crop(image, 0, 0, image.shape) for image in images]
    shapes = decode_shapes(rles)
    for image, shape, rle in zip(images, shapes, rles, strict=True):
        assert np.array_equal(whole(shape), image)
        assert np.array_equal(whole(shape), decode_rle(rle))
    for a, first in zip(images, shapes, strict=True):
        expected = [(a & b).sum() / max(1, (a | b).sum()) for b in images]
        assert overlaps([first] * 4, shapes) == pytest.approx(expected)
    assert decode_shapes([]) == []


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_a_window_is_all_boundary_as_long_as_no_pixel_is_inside(side):
    hw = (50, 50)  # reach 1
    shape = box_shapes(np.array([[10.0, 10.0, side, 9.0]]), [hw])[0]
    inside = whole(shape) & ~whole(boundary(shape))
    assert inside.any() == (side >= 3)
    assert is_all_boundary(shape.mask.shape, hw) == (side < 3)
