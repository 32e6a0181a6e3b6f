"""One owner a pixel, against the rule written pixel by pixel."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from malcli.geometry.overlaps import without_overlaps
from malcli.records import Rle


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Rle(size=list(mask.shape), counts=rle["counts"].decode())


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 3), min_size=0, max_size=5),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_the_lowest_rank_keeps_each_pixel(seed, ranks, height, width):
    rng = np.random.default_rng(seed)
    masks = [rng.random((height, width)) < rng.random() for _ in ranks]
    found = without_overlaps([encode(mask) for mask in masks], ranks)
    wanted = [np.zeros((height, width), bool) for _ in ranks]
    for y in range(height):
        for x in range(width):
            claimants = [k for k, mask in enumerate(masks) if mask[y, x]]
            if claimants:
                wanted[min(claimants, key=lambda k: (ranks[k], k))][y, x] = True
    assert [dict(rle) for rle in found] == [dict(encode(mask)) for mask in wanted]
