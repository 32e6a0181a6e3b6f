"""COCO files of unknown origin: what comes out is all of the boxes, or one line of error."""

import json
import random
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malcli.data.boxtable import json_stream
from malcli.data.boxtable.checks import STATUSES
from malcli.data.formats.coco import read_coco
from malcli.errors import DataFormatError
from malcli.records import records_of

PIECES = [
    b"{", b"}", b"[", b"]", b",", b'"', b":", b"},{", b"}]", b"null", b"true", b"NaN", b"-Infinity",
    b"-", b"1e999", b"0", b"9" * 5000, b"1" + b"0" * 30, b"\\ud800", b"\xff", b"\xef\xbb\xbf",
    b"\n", b'"id":7,', b'"bbox":1,', b'"annotations":[],', b"[" * 300, b'{"a":' * 5000, b"\x00",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1.5, 2**31, 2**63, 2**100, float("nan"), float("inf"), "", "1", "\ud800",
    [], [[]], {}, {"id": 1}, [1, 2, 3, 4], ["1", None, 2, 3], [[{"a": [{}, {}]}]],
]  # fmt: skip
KEYS = ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name",
        "height", "width", "attributes", "},{"]  # fmt: skip


def base(rng):
    """Return a file's value; about half of the annotations have more keys than COCO's."""
    images = [
        {"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 30, "flickr": "},{"[: n % 4]}
        for n in range(4)
    ]
    boxes = [
        {"id": n, "image_id": rng.randrange(5), "category_id": 1, "bbox": [n, 1.5, 3, 4]}
        | ({"area": 12, "iscrowd": n % 2} if n % 3 else {})
        | (
            {"segmentation": [[1, 2, 3.5, 4, 5, 6]]}
            if n % 2
            else {"segments": [{"a": 1}, {"b": 2}]}
        )
        for n in range(rng.choice([0, 1, 12]))
    ]
    if rng.random() < 0.3:
        for record in [*images, *boxes]:
            record.update({key: f"x{record[key]}" for key in ("id", "image_id") if key in record})
    lists = [("images", images), ("annotations", boxes), ("categories", [{"id": 1, "name": "a"}])]
    rng.shuffle(lists)
    return dict(lists)


def mutated(rng):
    """Return the bytes of a file that is wrong in up to four ways, of values or of text."""
    value = base(rng)
    for _ in range(rng.randrange(3)):
        record = rng.choice([each for key in value for each in value[key]])
        record[rng.choice([*record, *KEYS])] = rng.choice(VALUES)
    if rng.random() < 0.1:
        value[rng.choice([*value, "info"])] = rng.choice(VALUES)
    raw = bytearray(json.dumps(value, indent=rng.choice([None, None, 1])).encode())
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(raw))
        if rng.random() < 0.3:
            raw[at] ^= 1 << rng.randrange(8)
        else:
            raw[at : at + rng.choice([0, 0, 1, 5])] = rng.choice(PIECES)
    if rng.random() < 0.1:
        raw[:0] = b"\xef\xbb\xbf"
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.15 else raw)


def check(path, monkeypatch, seed):
    rng = random.Random(seed)
    raw = mutated(rng)
    path.write_bytes(raw)
    with monkeypatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", rng.choice([150, 400, 1 << 20]))
        try:
            table = read_coco(path)
        except DataFormatError as error:
            return "refused" if "\n" not in str(error) else "refused in several lines"
    expected = json.loads(raw)["annotations"]
    statuses = Counter(table.boxes["status"].to_pylist())
    assert sum(statuses.values()) == len(expected)
    assert statuses.keys() <= set(STATUSES)
    assert np.sort(table.order).tolist() == list(range(len(expected)))
    assert as_text(records_of(table)) == as_text(expected)
    return "read"


def as_text(records):
    """Return what two lists of records share if they are equal, NaN and all."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in sorted(value.items())}
        if isinstance(value, list):
            return [plain(each) for each in value]
        whole = isinstance(value, float) and value == value and value.is_integer()
        return int(value) if whole and abs(value) < 2**53 else value

    return json.dumps([plain(record) for record in records])


COMMON = {
    "deadline": timedelta(seconds=20),
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@settings(max_examples=100, **COMMON)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_whole_or_refused_in_one_line(tmp_path, monkeypatch, seed):
    assert check(tmp_path / "a.json", monkeypatch, seed) in ("read", "refused")


@pytest.mark.slow
@settings(max_examples=2000, **COMMON)
@given(seed=st.integers(0, 2**32))
def test_two_thousand_mutated_files_are_read_whole_or_refused(tmp_path, monkeypatch, seed):
    assert check(tmp_path / "a.json", monkeypatch, seed) in ("read", "refused")


def test_mutations_leave_some_files_readable_and_others_not(tmp_path, monkeypatch):
    seen = Counter(check(tmp_path / "a.json", monkeypatch, seed) for seed in range(60))
    assert min(seen["read"], seen["refused"]) > 10
