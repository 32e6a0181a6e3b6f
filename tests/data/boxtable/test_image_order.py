import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malcli.data.boxtable import image_order
from malcli.data.boxtable.image_order import (
    group_key,
    grouped,
    later_equals,
    repeated,
    rows_in_order,
)

IMAGES = 6


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(image_order, "BUCKET", 3)


def parts_of(image, equal, size=4):
    image = np.array(image, dtype=np.int32)
    for begin in range(0, len(image), size):
        part = image[begin : begin + size]
        numbers = np.array(equal[begin : begin + size], dtype=np.uint64)
        yield np.stack([group_key(part, IMAGES, begin), numbers], axis=1)


@given(rows=st.lists(st.tuples(st.integers(-1, IMAGES - 1), st.integers(0, 3)), max_size=60))
def test_grouping_equals_a_loop_over_images(rows):
    image = [each for each, _ in rows]
    # An equal number means an equal box of one image; 0 means none.
    equal = [number and (each + 2) * 10 + number for each, number in rows]
    counts = [image.count(number) for number in range(IMAGES)]
    parts = list(grouped(parts_of(image, equal), np.cumsum([0, *counts])))
    order = [row for part in parts for row in rows_in_order(part).tolist()]
    assert order == sorted(range(len(image)), key=lambda row: (image[row] % 99, row))
    later = sorted(row for part in parts for row in later_equals(part).tolist())
    known = [row for row in range(len(rows)) if image[row] >= 0]
    expected = [row for row in known if equal[row] and equal[row] in equal[:row]]
    assert [row for row in later if image[row] >= 0] == expected


def test_buckets_are_bounded_but_for_one_large_image():
    image = [5] * 9 + [0, 1, 2, 3] * 3
    counts = [image.count(number) for number in range(IMAGES)]
    parts = list(grouped(parts_of(image, [0] * len(image)), np.cumsum([0, *counts])))
    assert sorted(map(len, parts)) == [3, 3, 3, 3, 9]


@settings(max_examples=60)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=40))
def test_repeated_keys_are_those_a_count_finds(keys):
    array = np.array(keys, dtype=np.int64)
    found = repeated((array[begin : begin + 7] for begin in range(0, len(keys), 7)), len(keys))
    assert found.tolist() == sorted({key for key in keys if keys.count(key) > 1})
