from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malcli.geometry.areas import paste_majority
from malcli.geometry.crops import paste_mask


def exact_share(mask, top, bottom, left, right):
    """The share of a rectangle of a crop that is in its mask, by rational numbers."""
    total = Fraction(0)
    for row, column in zip(*np.nonzero(mask), strict=True):
        height = min(bottom, Fraction(int(row) + 1)) - max(top, Fraction(int(row)))
        width = min(right, Fraction(int(column) + 1)) - max(left, Fraction(int(column)))
        total += max(height, Fraction(0)) * max(width, Fraction(0))
    return total / ((bottom - top) * (right - left))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_pixel_is_inside_where_more_than_half_of_its_area_is(data):
    side = data.draw(st.integers(2, 12))
    height, width = (data.draw(st.integers(1, side)) for _ in "hw")
    x0, y0 = (data.draw(st.integers(-5, 5)) for _ in "xy")
    top, left = (data.draw(st.integers(0, size - 1)) for size in (height, width))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, (side, side))
    roi = np.array([x0, y0, x0 + width, y0 + height])
    window = np.array([x0 + left, y0 + top, x0 + right, y0 + bottom])
    found = paste_majority(mask.astype(np.uint8), roi, window)
    assert found.shape == (bottom - top, right - left)
    for row, column in np.ndindex(found.shape):
        y, x = Fraction(side, height), Fraction(side, width)
        share = exact_share(
            mask, (top + row) * y, (top + row + 1) * y, (left + column) * x, (left + column + 1) * x
        )
        assert share == Fraction(1, 2) or found[row, column] == (share > Fraction(1, 2))


@pytest.mark.parametrize("hw", [(20, 30), (64, 64), (40, 200), (200, 40), (150, 170), (63, 1)])
def test_majority_is_the_pasted_mask_above_one_half(hw):
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    mask = (np.hypot(x, y) + 0.1 * np.sin(7 * np.arctan2(y, x)) < 0.7).astype(np.uint8)
    roi = np.array([3, -4, 3 + hw[1], hw[0] - 4])
    window = roi + np.array([hw[1] // 7, hw[0] // 7, -(hw[1] // 8), -(hw[0] // 8)])
    pasted = paste_mask(mask.astype(np.float32), roi, window)
    clear = np.abs(pasted - 0.5) > 1e-5
    assert clear.any()
    assert ((paste_majority(mask, roi, window) == (pasted > 0.5)) | ~clear).all()
