"""`--overlaps`: the rule of each pixel's owner, and boxes that lose everything."""

import numpy as np
import pytest

from malcli.engine.label.overlaps import settle_contested
from malcli.engine.label.parts import Outcome
from malcli.geometry.rle import decode_rle, encode_crop
from malcli.records import STATUS_EMPTY, STATUS_OK, Rle

HW = (6, 8)


def outcome(row, x, width, score):
    """A mask of all rows and some columns."""
    rle = encode_crop(np.ones((HW[0], width), bool), x, 0, HW)
    return Outcome(row, STATUS_OK, *HW, rle["counts"], HW[0] * width, score)


def columns(one):
    mask = decode_rle(Rle(size=list(HW), counts=one.counts))
    return np.flatnonzero(mask.any(axis=0)).tolist()


@pytest.mark.parametrize(
    ("rule", "wanted"), [("smaller", ([0, 1, 2], [3, 4])), ("score", ([0, 1, 2, 3], [4]))]
)
def test_a_rule_decides_who_keeps_contested_pixels(rule, wanted):
    large, small = outcome(0, 0, 4, score=0.9), outcome(1, 3, 2, score=0.4)
    found = settle_contested([small, large], [7, 7], rule)
    assert [one.row for one in found] == [0, 1]
    assert tuple(columns(one) for one in found) == wanted
    assert [one.area for one in found] == [HW[0] * len(part) for part in wanted]
    assert [one.score for one in found] == [0.9, 0.4]


def test_masks_of_different_images_do_not_meet():
    pair = [outcome(0, 0, 4, 0.9), outcome(1, 0, 4, 0.4)]
    assert settle_contested(pair, [1, 2], "score") == pair


def test_a_mask_that_loses_everything_is_empty_and_skipped_boxes_pass():
    inner, outer = outcome(0, 2, 2, 0.1), outcome(1, 0, 8, 0.8)
    skipped = Outcome(2, "skipped:crowd")
    found = {one.row: one for one in settle_contested([inner, outer, skipped], [3, 3, 3], "score")}
    assert found[2] == skipped
    assert (found[0].status, found[0].area, found[0].score) == (STATUS_EMPTY, 0, 0.0)
    assert columns(found[0]) == []
    assert found[1] == outer
