import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malcli.data.boxtable import json_columns
from malcli.data.boxtable.columns import take_boxes, take_images
from malcli.data.boxtable.json_columns import BOXES, IMAGES, RecordParser
from malcli.records import to_records

NUMBERS = st.one_of(
    st.integers(-9, 9), st.floats(), st.sampled_from([2**53, 2**63, 10**30, -0.0, 1.0, True, None])
)
VALUES = st.one_of(NUMBERS, st.text(max_size=3), st.lists(NUMBERS, max_size=3))
IDS = st.integers(0, 99) | st.text(max_size=3)
RECORDS = st.fixed_dictionaries(
    {"id": IDS, "image_id": IDS, "category_id": st.integers(0, 9)},
    optional={
        "bbox": st.one_of(st.lists(st.floats(0, 99), min_size=4, max_size=4), VALUES),
        "area": NUMBERS,
        "iscrowd": st.one_of(st.sampled_from([0, 1, 127, 128]), VALUES),
        "segmentation": st.one_of(VALUES, st.just([[1, 2.5, 3, 4, 5, 6]])),
        "isfake": st.just(0),
        "é": VALUES,
        "attributes": st.dictionaries(st.text(max_size=2), VALUES, max_size=2),
    },
)
PICTURES = st.fixed_dictionaries(
    {"id": IDS, "file_name": st.text(max_size=3)},
    optional={"height": NUMBERS, "width": st.integers(0, 9), "coco_url": VALUES},
)
PLAIN = {"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2.5, 3, 4]}


def parser_of(records, types=BOXES, take=take_boxes):
    parser = RecordParser(types, take([]).schema)
    parser.learn(records)
    return parser


def in_any_order(records):
    return json.dumps(records, sort_keys=True)


def check_as_slow(records, text, types, take):
    parser = parser_of(records, types, take)
    try:
        fast = parser(text)
    except ValueError:
        return
    fast.validate(full=True)
    slow = take(json.loads(text), parser.texts)
    assert fast.schema == slow.schema
    assert in_any_order(to_records(fast)) == in_any_order(to_records(slow))
    texts = [name for name in ("segmentation", "extra") if name in fast.schema.names]
    assert fast.drop_columns(texts).equals(slow.drop_columns(texts))
    for name in texts:
        assert fast[name].is_null().equals(slow[name].is_null())


@settings(max_examples=500, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_the_fast_columns_are_those_of_the_slow_way_or_none(records, indent):
    check_as_slow(records, json.dumps(records, indent=indent), BOXES, take_boxes)
    check_as_slow(records, json.dumps(records, ensure_ascii=False), BOXES, take_boxes)


@settings(max_examples=100, deadline=None)
@given(st.lists(PICTURES, min_size=1, max_size=4))
def test_the_fast_columns_of_images_are_those_of_the_slow_way_or_none(records):
    check_as_slow(records, json.dumps(records), IMAGES, take_images)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"area": 5, "iscrowd": 1},
        {"area": 5.5, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6.5]]},
        {"segmentation": {"size": [4, 5], "counts": "é\\"}},
        {"segmentation": None},
        {"area": None},
        {"area": None, "iscrowd": True},
        {"iscrowd": False},
        {"segmentation": [[]] * 201},
        {"isfake": 0, "isreflected": 1},
        {"score": 1e400, "attributes": {"a": [None, {"b": "},{"}]}, "Note ": 10**30},
    ],
)
@pytest.mark.parametrize("rest", [{}, {"score": 0.25}])
def test_annotations_with_any_more_keys_take_the_fast_way(more, rest):
    records = [PLAIN | more, PLAIN | rest, PLAIN | more | {"id": 2}]
    text = json.dumps(records).replace("Infinity", "1e400")
    assert to_records(parser_of(records)(text)) == json.loads(text)


@pytest.mark.parametrize(
    "more",
    [
        {"area": float("nan")},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, 2**53]},
        {"id": 2**63},
        {"id": "1"},
        {"iscrowd": None},
        {"iscrowd": 128},
        {'"': 1},
        {str(n): n for n in range(99)},
    ],
)
def test_all_others_take_the_slow_way(more):
    records = [PLAIN, PLAIN | more]
    with pytest.raises(ValueError):  # noqa: PT011
        parser_of(records)(json.dumps(records))


@pytest.mark.parametrize("key", ["id", "image_id"])
def test_ids_that_are_text_take_the_fast_way(key):
    records = [PLAIN | {key: text} for text in ("0a3f", "", "7", "é")]
    batch = parser_of(records)(json.dumps(records))
    assert batch[key + "_text"].to_pylist() == [record[key] for record in records]
    assert batch[key].null_count == len(records)
    with pytest.raises(ValueError, match="`str`"):
        parser_of(records)(json.dumps([PLAIN]))


def test_records_of_a_kind_not_seen_yet_take_the_slow_way():
    parser = parser_of([])
    for more in ({}, {"a": 1}, {"a": 1, "b": 2}, {"c": {}}):
        text = json.dumps([PLAIN | more])
        with pytest.raises(ValueError):  # noqa: PT011
            parser(text)
        parser.learn([PLAIN | more])
        assert to_records(parser(text)) == [PLAIN | more]
    assert to_records(parser(json.dumps([PLAIN]))) == [PLAIN]


def test_a_value_nested_too_deeply_is_refused():
    for depth, fine in ((json_columns.MAX_DEPTH, True), (json_columns.MAX_DEPTH + 1, False)):
        value = json.loads("[" * depth + "]" * depth)
        records = [PLAIN | {"note": value, "segmentation": value}]
        if fine:
            assert to_records(parser_of(records)(json.dumps(records))) == records
        else:
            with pytest.raises(RecursionError):
                parser_of(records)(json.dumps(records))
