import gc
import hashlib
import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.engine.label import parts
from malcli.engine.label.parts import SCHEMA, Outcome, PartFolder, missing_error, plan
from malcli.errors import OutputError, RunError
from malcli.records import BoxTable, Problems, box_schema, image_schema


def table_of(image, images):
    """A table of boxes of the given image rows; -1: no image."""
    image = np.array(image, dtype=np.int32)
    columns = {name: pa.nulls(len(image)) for name in box_schema(pa.int64(), pa.int64()).names}
    columns["image"] = pa.array(image)
    columns["id"] = pa.array(np.arange(len(image)) + 100)
    boxes = pa.table(columns)
    key = np.where(image < 0, images, image)
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], np.arange(images + 1))
    empty = image_schema(pa.int64()).empty_table()
    return BoxTable("boxes.json", "coco", {}, empty, boxes, order, starts, Problems())


tables = st.integers(0, 6).flatmap(
    lambda images: st.lists(st.integers(-1, images - 1), max_size=60).map(
        lambda image: table_of(image, images)
    )
)


@given(table=tables, size=st.integers(1, 9))
def test_every_box_is_in_one_part_and_images_are_never_cut(table, size):
    bounds = plan(table.starts, table.boxes.num_rows, size)
    groups = [table.order[a:b] for a, b in pairwise(bounds)]
    assert sorted(row for group in groups for row in group) == list(range(table.boxes.num_rows))
    image = np.asarray(table.boxes["image"])
    for group in groups:
        assert len(group)
        # Without its last image, a part is below the size, so no part is larger than it must be.
        assert np.count_nonzero(image[group] != image[group[-1]]) < size or image[group[-1]] < 0
        if image[group[-1]] >= 0:
            whole = np.flatnonzero(np.isin(image, image[group]))
            assert sorted(group) == whole.tolist()
        else:
            assert len(group) <= max(size, np.count_nonzero(image[group] >= 0) + size)


def outcome(row):
    return Outcome(row, "ok", 9, 9, f"counts-{row}", row, row / 100)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BOXES", 5)
    image = np.random.default_rng(0).integers(-1, 9, 60)
    return PartFolder(tmp_path / "m.json.parts", table_of(image, 9))


def fill(folder):
    for index in range(len(folder)):
        folder.write(index, [outcome(int(row)) for row in folder.rows(index)])


@pytest.mark.parametrize("group", [1, 3, 64])
def test_order_comes_back_from_many_small_files(folder, tmp_path, monkeypatch, group):
    fill(folder)
    monkeypatch.setattr(parts, "BUCKET_ROWS", 7)
    monkeypatch.setattr(parts, "PARTS_READ", group)
    tables = list(folder.in_order(tmp_path))
    assert [table.num_rows for table in tables] == [7] * 8 + [4]
    whole = pa.concat_tables(tables)
    assert whole["row"].to_pylist() == list(range(60))
    assert whole["counts"].to_pylist() == [f"counts-{row}" for row in range(60)]


def test_missing_parts_are_those_not_written(folder):
    assert folder.missing() == list(range(len(folder)))
    folder.write(3, [outcome(int(row)) for row in folder.rows(3)])
    assert folder.missing() == [index for index in range(len(folder)) if index != 3]
    assert folder.missing([3]) == []
    again = PartFolder(folder.path, folder.table)
    assert again.is_done(3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PAR1 no"),
        lambda path: pq.write_table(pq.read_table(path).slice(1), path),
        lambda path: pq.write_table(pq.read_table(path).drop(["status"]), path),
        lambda path: pq.write_table(
            pa.table({name: pa.array(["x"]) for name in SCHEMA.names}), path
        ),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_part_that_is_not_whole_counts_as_missing(folder, spoil):
    fill(folder)
    spoil(folder.file(2))
    assert PartFolder(folder.path, folder.table).missing() == [2]


def test_every_flipped_bit_of_a_part_is_noticed_and_told(folder, capsys):
    fill(folder)
    again = PartFolder(folder.path, folder.table)
    rng, whole = random.Random(0), folder.file(2).read_bytes()
    ends = [*range(8 * len(whole))[-80:], *range(40)]  # footer's length and magic, and the head
    for bit in ends + rng.sample(range(8 * len(whole)), 280):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        folder.file(2).write_bytes(flipped)
        assert not again.is_done(2), bit
    said = capsys.readouterr().err.splitlines()
    assert set(said) == {
        f"{folder.file(2)}: cannot be used (its checksum differs); it has to be made again"
    }
    assert len(said) == 400
    folder.file(2).write_bytes(whole)
    assert PartFolder(folder.path, folder.table).is_done(2)


def test_the_checksum_is_that_of_the_file_without_it(folder):
    fill(folder)
    content = folder.file(0).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    rest = content[: footer - 32] + content[footer:]
    assert content[footer - 32 : footer] == hashlib.sha256(rest).digest()
    assert pq.read_table(folder.file(0)).schema == SCHEMA  # readers of Parquet see no difference


def test_a_part_that_is_damaged_after_it_was_made_ends_the_merge(folder, tmp_path):
    fill(folder)
    flipped = bytearray(folder.file(1).read_bytes())
    flipped[len(flipped) // 2] ^= 4
    folder.file(1).write_bytes(flipped)
    with pytest.raises(RunError, match=r"part-00001.parquet: was damaged .* start the same"):
        parts.merge(folder, tmp_path / "m.json", {}, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["m.json.parts"]


def test_a_part_of_another_job_counts_as_missing_and_is_never_read(folder, tmp_path):
    folder.job = "mine"
    fill(folder)
    own = PartFolder(folder.path, folder.table)
    own.job = "mine"
    assert own.missing() == []
    other = PartFolder(folder.path, folder.table)
    other.job = "theirs"
    assert other.missing() == list(range(len(folder)))
    other.write(2, [outcome(int(row)) for row in folder.rows(2)])
    assert PartFolder(folder.path, folder.table).missing() == list(range(len(folder)))
    with pytest.raises(OutputError, match=r"part-00002\.parquet: belongs to another job"):
        list(own.in_order(tmp_path))


def test_statuses_are_counted_by_share(folder):
    for index in range(len(folder)):
        rows = [int(row) for row in folder.rows(index)]
        folder.write(index, [Outcome(row, "empty" if index == 1 else "ok") for row in rows])
    assert folder.count([1]) == {"empty": len(folder.rows(1))}
    assert sum(folder.count().values()) == 60


def test_the_error_names_ten_missing_parts_and_counts_the_rest(tmp_path):
    text = str(missing_error(tmp_path, list(range(15)), 20))
    assert "15 of 20 parts are missing: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more" in text


@pytest.mark.parametrize("name", ["m.json", "m.parquet"])
def test_a_merge_that_is_ended_leaves_nothing_and_the_collector_on(folder, tmp_path, name):
    fill(folder)

    def stop():
        assert not gc.isenabled()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.merge(folder, tmp_path / name, {}, stop)
    assert gc.isenabled()
    assert sorted(path.name for path in tmp_path.rglob("*") if "part-" not in path.name) == [
        "m.json.parts"
    ]
