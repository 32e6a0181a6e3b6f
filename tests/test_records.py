import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.data.boxtable.checks import (
    BAD_BOX,
    BAD_IMAGE,
    CROWD,
    GROUP,
    INSIDE,
    NO_IMAGE,
    OK,
    STATUSES,
)
from malcli.data.formats.coco import read_coco
from malcli.engine.inputs import BAD_STATUSES, HEADER_STATUS
from malcli.records import (
    SKIP_REASONS,
    BoxTable,
    Problems,
    category_names,
    records_of,
    skipped,
    to_records,
    xywh_of,
)


def test_problems_keep_ten_examples_and_every_count():
    problems = Problems()
    for number in range(25):
        problems.add("bad-box", f"annotation {number}")
    assert problems.counts == {"bad-box": 25}
    assert problems.examples["bad-box"] == [f"annotation {number}" for number in range(10)]


def test_a_malformed_box_is_nan():
    column = pa.chunked_array([pa.array([[1.0, 2, 3, 4], None], pa.list_(pa.float64(), 4))])
    xywh = xywh_of(column)
    assert xywh[0].tolist() == [1, 2, 3, 4]
    assert np.isnan(xywh[1]).all()
    assert xywh_of(column.slice(1)).shape == (1, 4)


def test_extra_overrides_columns():
    columns = pa.table(
        {
            "id": [1, 2],
            "iscrowd": pa.array([1, None], pa.int8()),
            "extra": ['{"iscrowd":true,"x":null}', None],
        }
    )
    assert to_records(columns) == [{"id": 1, "iscrowd": True, "x": None}, {"id": 2}]


def test_category_names_leave_out_what_is_no_category():
    header = {"categories": [{"id": 1, "name": "cat"}, {"id": 2}, {"name": "x"}, 5, {"id": "7"}]}
    assert category_names(header) == {1: "cat", 2: "2"}
    assert category_names({"categories": 3}) == category_names({}) == {}


def test_records_and_boxes_of_some_rows_come_in_their_order(tmp_path):
    annotations = [
        {"id": n, "image_id": n % 2, "category_id": 1, "bbox": [n, 0.5, 2, 2]} for n in range(6)
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": 9, "width": 9} for n in range(2)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    table = read_coco(path)
    rows = np.array([4, 1])
    assert records_of(table, rows) == [annotations[4], annotations[1]]
    assert records_of(table) == annotations
    assert table.xywh(rows).tolist() == [[4, 0.5, 2, 2], [1, 0.5, 2, 2]]
    assert [(each.image, each.rows.tolist()) for each in table.by_image()] == [
        (0, [0, 2, 4]),
        (1, [1, 3, 5]),
    ]
    table.release()
    copy = pickle.loads(pickle.dumps(table))
    copy.release()
    assert records_of(copy) == records_of(table) == annotations
    with pytest.raises(ValueError, match="read-only"):  # columns are mapped from disk, not copied
        table.boxes["id"].chunk(0).to_numpy()[0] = 7


@given(st.lists(st.integers(0, 3), max_size=6), st.data())
def test_rows_taken_from_batches_are_those_of_the_whole_column(sizes, data):
    ends = np.cumsum([0, *sizes]).tolist()
    ids = [pa.array(range(a, b), pa.int64()) for a, b in itertools.pairwise(ends)]
    texts = [pa.array([str(n) if n % 3 else None for n in part.to_pylist()]) for part in ids]
    texts = [part.cast(pa.string()) for part in texts]
    column, other = pa.chunked_array(ids, pa.int64()), pa.chunked_array(texts, pa.string())
    boxes = pa.table({"id": column, "extra": other})
    nothing = np.zeros(0, dtype=np.int64)
    table = BoxTable(Path("a"), "coco", {}, boxes, boxes, nothing, nothing, Problems())
    some = st.lists(st.integers(0, max(ends[-1] - 1, 0)), max_size=8 if ends[-1] else 0)
    rows = data.draw(some)
    for _ in range(2):
        taken = table.take(np.array(rows, dtype=np.int64))
        assert taken.to_pylist() == [boxes.slice(row, 1).to_pylist()[0] for row in rows]
    assert table.take(np.array(rows, dtype=np.int64), "extra").schema.names == ["extra"]
    read = [row for batch in table.batches("id") for row in batch["id"].to_pylist()]
    assert read == list(range(ends[-1]))


def test_every_status_of_a_box_is_listed_once_by_precedence():
    reasons = ["no-image", "bad-image", "bad-box", "crowd", "group", "inside", "memory"]
    assert list(SKIP_REASONS) == reasons
    assert [skipped(reason) for reason in reasons] == [f"skipped:{reason}" for reason in reasons]
    assert list(STATUSES) == ["ok", *map(skipped, reasons[:-1])]
    by_number = {OK: "ok", NO_IMAGE: "no-image", BAD_IMAGE: "bad-image", BAD_BOX: "bad-box"}
    by_number |= {CROWD: "crowd", GROUP: "group", INSIDE: "inside"}
    assert {n: STATUSES[n].removeprefix("skipped:") for n in by_number} == by_number
    unusable = {skipped(reason) for reason in ("no-image", "bad-image", "bad-box", "memory")}
    assert set(BAD_STATUSES) == unusable
    assert ("ok", *map(skipped, ("no-image", "bad-image", "memory"))) == HEADER_STATUS
