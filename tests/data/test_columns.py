import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malcli.data.columns import parse_boxes, take_boxes
from malcli.records import to_records

NUMBERS = st.one_of(
    st.integers(-9, 9), st.floats(), st.sampled_from([2**53, 2**63, 10**30, -0.0, 1.0, True, None])
)
VALUES = st.one_of(NUMBERS, st.text(max_size=3), st.lists(NUMBERS, max_size=3))
RECORDS = st.fixed_dictionaries(
    {"id": st.integers(0, 99), "image_id": st.integers(0, 99), "category_id": st.integers(0, 9)},
    optional={
        "bbox": st.one_of(st.lists(st.floats(0, 99), min_size=4, max_size=4), VALUES),
        "area": NUMBERS,
        "iscrowd": st.one_of(st.sampled_from([0, 1, 127, 128]), VALUES),
        "segmentation": st.one_of(VALUES, st.just([[1, 2.5, 3, 4, 5, 6]])),
        "isfake": st.just(0),
    },
)
PLAIN = {"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2.5, 3, 4]}


@settings(max_examples=500, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_the_fast_columns_are_those_of_the_slow_way_or_none(records):
    text = json.dumps(records)
    try:
        fast = parse_boxes(text)
    except ValueError:
        return
    slow = take_boxes(json.loads(text))
    assert fast.schema == slow.schema
    assert json.dumps(to_records(fast)) == json.dumps(to_records(slow))
    assert fast.drop_columns("segmentation").equals(slow.drop_columns("segmentation"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"area": 5, "iscrowd": 1},
        {"area": 5.5, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6.5]]},
        {"segmentation": {"size": [4, 5], "counts": "é\\"}},
    ],
)
def test_plain_annotations_take_the_fast_way(more):
    records = [PLAIN | more] * 3
    assert to_records(parse_boxes(json.dumps(records))) == records


@pytest.mark.parametrize(
    "more",
    [
        {"note": 1},
        {"area": float("nan")},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, 2**53]},
        {"id": 2**63},
        {"id": "1"},
        {"iscrowd": True},
        {"iscrowd": 128},
        {"segmentation": None},
        {"segmentation": [[]] * 201},
    ],
)
def test_all_others_take_the_slow_way(more):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_boxes(json.dumps([PLAIN, PLAIN | more]))


def test_a_key_that_only_some_have_takes_the_slow_way():
    with pytest.raises(ValueError, match="some have"):
        parse_boxes(json.dumps([PLAIN, PLAIN | {"area": 1}]))
