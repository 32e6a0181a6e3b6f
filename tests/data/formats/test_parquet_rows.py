"""The short way from annotations to rows says what the long way says."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malcli.data.formats import parquet_rows
from malcli.data.formats.coco import read_coco
from malcli.data.formats.parquet import write_parquet
from malcli.data.formats.parquet_rows import RowMaker, parquet_schema

RLE = {"size": [40, 60], "counts": "P11000"}
PLAIN = {
    "id": 7,
    "image_id": 1,
    "category_id": 1,
    "bbox": [1, 2.5, 3, 4],
    "segmentation": RLE,
    "area": 12,
    "iscrowd": 0,
    "malcli_score": 0.75,
    "malcli_status": "ok",
}
IMAGES = [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2)]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "a.json"
    categories = [{"id": 1, "name": "cat "}, {"id": 2, "name": "\ud800"}]
    value = {"images": IMAGES, "annotations": [], "categories": categories}
    path.write_text(json.dumps(value))
    return read_coco(path)


def rows(table, batch, id_type=None):
    """Return the columns as Python values, and whether the short way made them."""
    schema = parquet_schema(id_type or pa.int64(), pa.int64())
    short = parquet_rows._plain_columns(batch, schema.field("id").type, pa.int64())
    return RowMaker(table, schema).make(batch), short is not None


def long_way(table, batch, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parquet_rows, "_plain_columns", lambda *_: None)
        return RowMaker(table, parquet_schema(pa.int64(), pa.int64())).make(batch)


def test_what_label_writes_takes_the_short_way(table):
    skipped = {key: PLAIN[key] for key in ("id", "image_id", "category_id", "bbox", "iscrowd")}
    batch = [PLAIN, {**skipped, "malcli_status": "skipped:crowd"}, {**skipped, "image_id": 99}]
    made, short = rows(table, batch)
    assert short
    assert made["segmentation"].to_pylist() == [RLE, None, None]
    assert made["score"].to_pylist() == [0.75, None, None]
    assert made["file_name"].to_pylist() == ["1.jpg", "1.jpg", None]
    assert made["category"].to_pylist() == ["cat "] * 3
    assert made["extra"].null_count == 3
    made.validate(full=True)


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0.5},
        {"id": True},
        {"id": 2**63},
        {"id": None},
        {"image_id": "x"},
        {"category_id": None},
        {"category_id": 1.5},
        {"bbox": [1, 2, 3]},
        {"bbox": None},
        {"bbox": [1, 2, 3, 2**53 + 1]},
        {"bbox": [1, 2, 3, float("nan")]},
        {"area": 2**70},
        {"area": float("inf")},
        {"iscrowd": 300},
        {"iscrowd": True},
        {"malcli_score": "1"},
        {"malcli_status": "\ud800"},
        {"segmentation": None},
        {"segmentation": [[1, 2, 8, 2, 8, 9]]},
        {"segmentation": {**RLE, "more": 1}},
        {"segmentation": {**RLE, "size": [-1, 60]}},
        {"segmentation": {**RLE, "size": [2**31, 60]}},
        {"segmentation": {**RLE, "size": [40, 60, 3]}},
        {"segmentation": {**RLE, "counts": "\ud800"}},
    ],
    ids=str,
)
def test_what_a_column_cannot_say_takes_the_long_way(table, change):
    made, short = rows(table, [PLAIN, PLAIN | {"id": 8} | change])
    assert not short
    assert made.num_rows == 2


def test_string_ids_take_the_short_way_too(table):
    made, short = rows(table, [PLAIN | {"id": "a"}, PLAIN | {"id": "ü"}], pa.string())
    assert short
    assert made["id"].to_pylist() == ["a", "ü"]
    assert not rows(table, [PLAIN | {"id": "a"}, PLAIN], pa.string())[1]  # 7 stays in extra


NUMBER = st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(-(2**63), 2**63 - 1),
            "image_id": st.sampled_from([1, 2, 3]),
            "category_id": st.sampled_from([1, 2, -5, 2**62]),
            "bbox": st.lists(NUMBER, min_size=4, max_size=4),
        },
        optional={
            "segmentation": st.sampled_from([RLE, {"size": [0, 2**31 - 1], "counts": ""}]),
            "area": NUMBER,
            "iscrowd": st.integers(-128, 127),
            "malcli_score": NUMBER,
            "malcli_status": st.text(max_size=3),
        },
    ),
    min_size=1,
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(batch=RECORDS)
def test_both_ways_make_the_same_rows(table, batch, monkeypatch):
    made, _ = rows(table, batch)
    assert made.equals(long_way(table, batch, monkeypatch))


def test_both_ways_write_the_same_bytes(table, tmp_path, monkeypatch):
    records = [PLAIN | {"id": n, "area": n / 7} for n in range(100)]
    for record in records[::3]:
        del record["segmentation"], record["malcli_score"]
    write_parquet(tmp_path / "short.parquet", table, [records])
    monkeypatch.setattr(parquet_rows, "_plain_columns", lambda *_: None)
    write_parquet(tmp_path / "long.parquet", table, [records])
    assert pq.read_metadata(tmp_path / "short.parquet").num_rows == 100
    assert (tmp_path / "short.parquet").read_bytes() == (tmp_path / "long.parquet").read_bytes()
