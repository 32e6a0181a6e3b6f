"""JSON by msgspec is, byte for byte, what the standard library writes."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.data.formats import coco
from malcli.data.formats.coco import read_coco, write_coco

EDGES = [
    *(121.49, 1, 1.0, 0.0, -0.0, 0, 2**53, 2**63, 2**64, -(2**63) - 1, 10**40, 0.1 + 0.2),
    *(1e-4, 9.99e-5, 1e-5, 1.5e-7, -2e-6, 5e-324, 1e15, 9999999999999998.0, 1e16, 1e17, -1.5e22),
    *(1.7976931348623157e308, math.nan, math.inf, -math.inf, True, False, None),
    *("", "a", "é", "\u2028", "\x7f", "\0\n\t\b\f\r\x1f", '"\\/', "</", "\ud800", "😀", "null"),
    *("e-", "1e16,", "0.0000", "1e5]}"),
]
FORMS = [lambda x: x, lambda x: [x], lambda x: [[1, x], {"k": x}], lambda x: {"é": [x]}]


def plainly(records):
    return json.dumps(records, separators=(",", ":"))[1:-1].encode("ascii")


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("value", EDGES, ids=ascii)
def test_every_odd_value_is_written_as_by_json(value, form):
    records = [{"a": 1}, {"b": FORMS[form](value), "c": 2}]
    assert coco._members(records) == plainly(records)


@given(bits=st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_every_float_is_written_as_by_json(bits):
    records = [{"x": each, "y": [each]} for each in struct.iter_unpack("<d", bytes_of(bits))]
    assert coco._members(records) == plainly(records)


def bytes_of(bits):
    return b"".join(struct.pack("<Q", each) for each in bits)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text("nul0.e-123456789]},:"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(records=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), max_size=5))
def test_every_record_is_written_as_by_json(records):
    assert coco._members(records) == plainly(records)


def test_plain_records_take_the_quick_way(monkeypatch):
    record = {"id": 1, "bbox": [1, -2.5, 121.49, 4.0], "score": 0.0001, "area": 10**20}
    record["segmentation"] = {"size": [480, 640], "counts": "PmX1e16]d>0000e1]:1e17N"}
    monkeypatch.setattr(coco, "encode_json", None)  # the slow way would fail
    assert json.loads(b"[" + coco._members([record]) + b"]") == [record]


def test_a_batch_longer_than_a_chunk_is_written_whole(tmp_path):
    source = tmp_path / "a.json"
    source.write_text('{"images": [], "annotations": []}')
    records = [{"id": n, "note": "é" if n == 1500 else "e"} for n in range(3 * coco.CHUNK + 5)]
    batches = [[], records[:7], [], records[7:2000], records[2000:]]
    assert write_coco(tmp_path / "b.json", read_coco(source), batches) == len(records)
    text = (tmp_path / "b.json").read_bytes()
    assert text == b'{"images":[],"annotations":[' + plainly(records) + b"]}\n"
