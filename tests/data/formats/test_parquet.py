import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from malcli.data.formats import parquet
from malcli.data.formats.coco import read_coco, write_coco
from malcli.data.formats.parquet import images_path, read_parquet, write_parquet
from malcli.errors import DataFormatError, MalcliError
from malcli.records import records_of

COLUMNS = [
    "id",
    "image_id",
    "file_name",
    "height",
    "width",
    "category_id",
    "category",
    "bbox",
    "segmentation",
    "area",
    "iscrowd",
    "score",
    "status",
    "extra",
]
POLYGON = [[1.0, 1, 20, 1, 20, 15.5, 1, 15]]
RLE = {"size": [40, 60], "counts": "P11000"}


def write(folder, value):
    """Return the table of a COCO value, written as Parquet, and the Parquet's path."""
    source = folder / "a.json"
    source.write_text(json.dumps(value))
    table = read_coco(source)
    path = folder / "a.parquet"
    write_parquet(path, table, [records_of(table)])
    return table, path


def back(path):
    """Return the COCO value that a Parquet file gives."""
    table = read_parquet(path)
    out = path.with_name("back.json")
    write_coco(out, table, [records_of(table)])
    return json.loads(out.read_text())


def value_of(annotations, images=None, **more):
    images = images or [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]
    categories = [{"id": 1, "name": "cat "}]
    return {"images": images, "annotations": annotations, "categories": categories, **more}


def annotation(number, **more):
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **more}


def test_the_columns_are_those_of_the_contract(tmp_path):
    labelled = annotation(
        7, segmentation=RLE, area=12, iscrowd=0, malcli_score=0.75, malcli_status="ok", score=0.1
    )
    _, path = write(tmp_path, value_of([labelled, annotation(8, category_id=5)]))
    schema = pq.read_schema(path)
    assert schema.names == COLUMNS
    assert schema.field("id").type == schema.field("image_id").type == pa.int64()
    assert schema.field("bbox").type == pa.list_(pa.float64(), 4)
    assert schema.field("segmentation").type == pa.struct(
        [("size", pa.list_(pa.int32())), ("counts", pa.string())]
    )
    first, second = pq.read_table(path).to_pylist()
    assert first == {
        "id": 7,
        "image_id": 1,
        "file_name": "a.jpg",
        "height": 40,
        "width": 60,
        "category_id": 1,
        "category": "cat ",
        "bbox": [1, 2, 3, 4],
        "segmentation": RLE,
        "area": 12,
        "iscrowd": 0,
        "score": 0.75,
        "status": "ok",
        "extra": '{"score":0.1}',
    }
    assert second["category"] is second["score"] is second["status"] is second["extra"] is None
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60, "extra": None}
    assert pq.read_table(tmp_path / "a.images.parquet").to_pylist() == [image]


def test_the_header_stands_in_the_metadata(tmp_path):
    header = {"info": {"year": 2026, "ü": "\ud800"}, "licenses": [], "other": [None]}
    _, path = write(tmp_path, value_of([], **header))
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[b"info"]) == header["info"]
    assert json.loads(metadata[b"categories"]) == [{"id": 1, "name": "cat "}]
    assert back(path) == value_of([], **header)


@pytest.mark.parametrize("form", ["polygon", "uncompressed"])
def test_other_masks_are_stored_as_rle_and_in_their_own_form(tmp_path, form):
    expected = coco_mask.merge(coco_mask.frPyObjects(POLYGON, 40, 60))
    own = POLYGON
    if form == "uncompressed":
        flat = coco_mask.decode(expected).flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        own = {"size": [40, 60], "counts": np.diff(np.concatenate([[0], edges])).tolist()}
    value = value_of([annotation(1, segmentation=own)])
    _, path = write(tmp_path, value)
    (row,) = pq.read_table(path).to_pylist()
    assert row["segmentation"]["counts"].encode() == expected["counts"]
    assert json.loads(row["extra"])["segmentation"] == own
    assert back(path) == value


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        [[1, 2]],
        [[1, 2, 3, 4, 5, "6"]],
        {"size": [40, 60]},
        {"size": [40, 60], "counts": [5, 5]},
        {"size": [1, 60], "counts": [60]},
        {"size": ["a", 60], "counts": "x"},
        {"size": [40, 60], "counts": "P11000", "more": 1},
        {"size": [40, 60], "counts": "\ud800"},
        [[1e9, 1, 1, 1e9, -1e9, 4]],
        "text",
        [[float("nan")] * 6],
    ],
)
def test_a_malformed_mask_is_kept_in_its_own_form_only(tmp_path, mask):
    value = value_of([annotation(1, segmentation=mask)])
    _, path = write(tmp_path, value)
    row = pq.read_table(path).to_pylist()[0]
    assert row["segmentation"] is None or mask == {**RLE, "more": 1}
    assert json.dumps(back(path)["annotations"][0]["segmentation"]) == json.dumps(mask)


def test_a_polygon_on_an_image_of_absurd_size_is_not_drawn(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "height": 2_000_000_000, "width": 2_000_000_000}]
    value = value_of([annotation(1, segmentation=[[0, 0, 2e9, 0, 2e9, 2e9]])], images)
    _, path = write(tmp_path, value)
    assert pq.read_table(path)["segmentation"].null_count == 1
    assert back(path) == value


def test_string_ids_make_string_columns(tmp_path):
    images = [{"id": "im-1", "file_name": "a.jpg", "height": 40, "width": 60}, {"id": 5}]
    value = value_of([annotation("x", image_id="im-1"), annotation(3, image_id=5)], images)
    _, path = write(tmp_path, value)
    schema = pq.read_schema(path)
    assert schema.field("id").type == schema.field("image_id").type == pa.string()
    assert pq.read_table(path)["file_name"].to_pylist() == ["a.jpg", None]
    assert back(path) == value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
)
ANY = SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(st.text(max_size=3), SCALARS)
MASKS = st.sampled_from([POLYGON, POLYGON * 2, RLE, {"size": [40, 60], "counts": [2400]}, [], None])
KEYS = ["category_id", "bbox", "area", "iscrowd", "score", "malcli_score", "malcli_status", "ü"]
RECORD = st.fixed_dictionaries(
    {"image_id": st.sampled_from([1, 2, "x", None]) | ANY},
    optional=dict.fromkeys(KEYS, ANY)
    | {"segmentation": MASKS | ANY, "bbox": st.lists(st.floats(-9, 99), min_size=4, max_size=4)},
)
IMAGE = st.dictionaries(st.sampled_from(["file_name", "height", "width", "license"]), ANY)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None
)
@given(
    records=st.lists(RECORD, max_size=4),
    images=st.lists(IMAGE, max_size=2),
    ids=st.sampled_from([[0, 1, 2, 3], ["a", "ü", "", "b"], [2**64, 1, "x", -(2**63)]]),
    header=st.dictionaries(st.sampled_from(["info", "licenses", "categories", "ü", "id"]), ANY),
)
def test_coco_to_parquet_to_coco_gives_equal_json(tmp_path, records, images, ids, header):
    for number, record in zip(ids, records, strict=False):
        record["id"] = number
    for number, record in enumerate(images, 1):
        record |= {"id": number, "height": record.get("height", 40)}
    value = {"images": images, "annotations": records, **header}
    _, path = write(tmp_path, value)
    assert back(path) == value


def test_parquet_to_parquet_is_byte_equal_however_it_is_batched(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 64)
    value = value_of([annotation(n, segmentation=POLYGON, malcli_score=0.5) for n in range(200)])
    _, path = write(tmp_path, value)
    again = read_parquet(path)
    records = records_of(again)
    other = tmp_path / "b.parquet"
    assert write_parquet(other, again, (records[n : n + 7] for n in range(0, 200, 7))) == 200
    assert other.read_bytes() == path.read_bytes()
    assert images_path(other).read_bytes() == images_path(path).read_bytes()
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(n).num_rows for n in range(4)] == [64, 64, 64, 8]


def test_records_given_to_the_writer_are_left_as_they_are(tmp_path):
    table, path = write(tmp_path, value_of([annotation(1, segmentation=RLE)]))
    records = records_of(table)
    write_parquet(path, table, [records])
    assert records == [annotation(1, segmentation=RLE)]


def test_a_file_saved_by_another_tool_is_read(tmp_path):
    value = value_of([annotation(1, segmentation=RLE), annotation(2, bbox=[5, 5, 1, 1])])
    _, path = write(tmp_path, value)
    rows = pq.read_table(path)
    loose = rows.schema.set(7, pa.field("bbox", pa.list_(pa.float64())))
    loose = loose.set(2, pa.field("file_name", pa.large_string()))
    pq.write_table(rows.cast(loose), path, compression="snappy")
    assert back(path) == value


def test_a_parquet_file_of_another_kind_names_the_missing_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "bbox": [[1.0]]}), path)
    with pytest.raises(DataFormatError, match=r"no column image_id, file_name, .* extra; convert"):
        read_parquet(path)


def test_a_missing_images_file_is_named(tmp_path):
    _, path = write(tmp_path, value_of([annotation(1)]))
    images_path(path).unlink()
    with pytest.raises(DataFormatError, match=r"a\.images\.parquet: is missing"):
        read_parquet(path)


@pytest.mark.parametrize("extra", ["[]", "{", "3", '"x"'])
def test_an_extra_that_is_no_object_is_refused(tmp_path, extra):
    _, path = write(tmp_path, value_of([annotation(1)]))
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(13, "extra", pa.array([extra])), path)
    with pytest.raises(DataFormatError, match="column extra"):
        read_parquet(path)


def test_columns_of_another_type_are_refused(tmp_path):
    _, path = write(tmp_path, value_of([annotation(1)]))
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(7, "bbox", pa.array([[1.0, 2.0]])), path)
    with pytest.raises(DataFormatError, match="damaged"):
        read_parquet(path)


def test_a_null_id_is_refused(tmp_path):
    _, path = write(tmp_path, value_of([annotation(1)]))
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(0, "id", pa.array([None], pa.int64())), path)
    with pytest.raises(DataFormatError, match="no id"):
        read_parquet(path)


def test_truncated_files_are_refused(tmp_path):
    _, path = write(tmp_path, value_of([annotation(n, area=n / 7) for n in range(50)]))
    raw = path.read_bytes()
    rng = random.Random(3)
    for _ in range(40):
        path.write_bytes(raw[: rng.randrange(len(raw))])
        with pytest.raises(MalcliError) as caught:
            read_parquet(path)
        assert "\n" not in str(caught.value)


def test_the_working_folder_as_input_has_an_images_file_too():
    assert parquet.images_path(Path()) == Path(".images.parquet")
