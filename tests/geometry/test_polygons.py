import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from malcli.geometry.polygons import bridge, polygons_of
from malcli.geometry.rle import encode_crop

MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)
)


def one_polygon(rle):
    """All parts of a mask, joined by bridges."""
    parts = [np.reshape(part, (-1, 2)) for part in polygons_of(rle)]
    return bridge(parts).ravel().tolist() if parts else []


def rle_of(mask, x=3, y=2, hw=(20, 25)):
    return encode_crop(mask, x, y, hw)


def filled(polygons, hw=(20, 25)):
    """What pycocotools makes of polygons."""
    plain = [[float(number) for number in polygon] for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(plain, *hw)))


def disc(radius, hole=0):
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = rows**2 + columns**2
    return ((distance <= radius**2) & (distance >= hole**2)).astype(np.uint8)


def test_a_rectangle_has_four_corners_on_pixel_edges():
    (polygon,) = polygons_of(rle_of(np.ones((4, 5), np.uint8)))
    points = {tuple(point) for point in np.reshape(polygon, (-1, 2)).tolist()}
    assert points == {(3, 2), (8, 2), (8, 6), (3, 6)}
    assert len(polygon) == 8


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_filling_the_polygons_gives_the_mask_again(mask):
    rle = rle_of(mask)
    polygons = polygons_of(rle)
    count, _ = cv2.connectedComponents(mask, connectivity=8)
    assert len(polygons) == count - 1
    if mask.any():
        expected = coco_mask.decode(rle)
        assert (filled(polygons) == expected).all()
        assert (filled([one_polygon(rle)]) == expected).all()


@pytest.mark.parametrize("hw", [(64, 64), (200, 300)])
def test_a_ring_keeps_its_hole_and_parts_stay_apart(hw):
    mask = np.zeros(hw, np.uint8)
    mask[:41, :41] = disc(20, 9)
    mask[45:52, 45:60] = 1
    rle = encode_crop(mask, 0, 0, hw)
    assert len(polygons_of(rle)) == 2
    assert (filled(polygons_of(rle), hw) == mask).all()
    assert (filled([one_polygon(rle)], hw) == mask).all()


def test_even_odd_filling_of_another_library_agrees_up_to_its_border():
    mask = np.zeros((64, 64), np.uint8)
    mask[:41, :41] = disc(20, 9)
    polygon = np.reshape(one_polygon(encode_crop(mask, 0, 0, (64, 64))), (-1, 2))
    drawn = np.zeros((64 * 8, 64 * 8), np.uint8)
    cv2.fillPoly(drawn, [(polygon * 8).astype(np.int32)], 1)  # large, so that its border is thin
    large = cv2.resize(drawn.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) > 0.5
    assert (large == mask).mean() > 0.999


def test_an_empty_mask_has_no_polygon():
    rle = rle_of(np.zeros((3, 3), np.uint8))
    assert polygons_of(rle) == one_polygon(rle) == []


def test_a_bridge_starts_at_the_nearest_corner_and_comes_back():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    joined = bridge([square, square + np.array([6, 0])]).tolist()
    at = joined.index([4, 0])
    assert joined[at + 1] == [6, 0]
    assert joined.count([6, 0]) == joined.count([4, 0]) == 2
