import json
import os
import random

import pytest

from malcli import files
from malcli.data.boxtable import cache
from malcli.data.formats.coco import read_coco
from malcli.data.formats.open import open_boxes, select
from malcli.errors import DataFormatError
from malcli.records import records_of, to_records


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("MALCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH", 1)
    path = tmp_path / "a.json"
    write(path, [1, 2, 3])
    return path


def write(path, ids):
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in (1, 2)]
    boxes = [
        {"id": n, "image_id": 2 - n % 2, "category_id": 7, "bbox": [n, 0, 1, 1], "note": [None]}
        for n in ids
    ]
    value = {"info": {"x": 1}, "images": images, "annotations": boxes, "categories": []}
    path.write_text(json.dumps(value))


def reader(path, calls):
    return lambda folder: calls.append(1) or read_coco(path, folder)


def values(table):
    return (
        records_of(table), to_records(table.images), table.header, table.problems.counts,
        table.problems.examples, table.order.tolist(), table.starts.tolist(), table.format,
        table.boxes["status"].to_pylist(),
    )  # fmt: skip


def test_the_second_opening_reads_nothing_and_is_the_same(path):
    calls = []
    first = cache.cached(path, "coco", reader(path, calls))
    second = cache.cached(path, "coco", reader(path, calls))
    assert calls == [1]
    assert values(first) == values(second)
    assert second.path == path
    second.release()
    assert values(select(second, limit=1)) == values(select(first, limit=1))
    assert [rows.tolist() for _, rows in second.by_image()] == [[0, 2], [1]]


def test_other_last_bytes_of_the_same_length_and_time_are_read_again(path, monkeypatch):
    monkeypatch.setattr(cache, "EDGE", 16)
    calls = []
    cache.cached(path, "coco", reader(path, calls))
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace('"categories"', '"categoriez"'))
    os.utime(path, ns=(before, before))
    assert "categoriez" in cache.cached(path, "coco", reader(path, calls)).header
    assert calls == [1, 1]


@pytest.mark.parametrize("change", ["content", "time", "format", "damage", "cut", "version"])
def test_what_changed_is_read_again(path, tmp_path, monkeypatch, change):
    calls = []
    cache.cached(path, "coco", reader(path, calls))
    (entry,) = (tmp_path / "cache/tables").iterdir()
    if change == "content":
        before = path.stat()
        write(path, [1, 2, 4])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "time":
        os.utime(path, ns=(1, 1))
    if change in ("damage", "cut"):
        file = entry / ("judged.arrow" if change == "damage" else "table.json")
        file.write_bytes(file.read_bytes()[:40])
    if change == "version":
        monkeypatch.setattr(cache, "LAYOUT", 0)
    table = cache.cached(path, "lvis" if change == "format" else "coco", reader(path, calls))
    assert calls == [1, 1]
    assert records_of(table)[2]["id"] == (4 if change == "content" else 3)
    assert len(list((tmp_path / "cache/tables").iterdir())) == 1


def test_an_open_table_outlives_its_entry(path):
    first = cache.cached(path, "coco", reader(path, []))
    table = cache.cached(path, "coco", reader(path, []))
    expected = values(first)
    write(path, [5])
    cache.cached(path, "coco", reader(path, []))
    assert values(table) == expected


def test_errors_pass_and_small_files_are_not_kept(path, tmp_path, monkeypatch):
    path.write_text("{")
    with pytest.raises(DataFormatError):
        open_boxes(path)
    with pytest.raises(DataFormatError):
        cache.cached(tmp_path / "none.json", "coco", reader(tmp_path / "none.json", []))
    monkeypatch.setattr(cache, "WORTH", 1 << 20)
    write(path, [1])
    open_boxes(path)
    assert not list((tmp_path / "cache/tables").iterdir())


def test_without_a_cache_everything_is_read(path, tmp_path, monkeypatch):
    for setting in ("off", "", str(path)):  # the last is a file: no folder can be made in it
        monkeypatch.setenv("MALCLI_CACHE", setting)
        calls = []
        for _ in range(2):
            assert cache.cached(path, "coco", reader(path, calls)).boxes.num_rows == 3
        assert calls == [1, 1]


def test_the_entries_unused_for_longest_go_first(path, tmp_path, monkeypatch):
    folder = tmp_path / "cache/tables"
    files = [tmp_path / f"{n}.json" for n in range(3)]
    for n, file in enumerate(files):
        write(file, [n + 1])
        cache.cached(file, "coco", reader(file, []))
        os.utime(folder / cache.entry_name(file), (n, n))
    size = sum(file.stat().st_size for file in (folder / cache.entry_name(files[0])).iterdir())
    monkeypatch.setattr(cache, "LIMIT", size * 5 // 2)
    cache.cached(path, "coco", reader(path, []))
    kept = {entry.name for entry in folder.iterdir()}
    assert kept == {cache.entry_name(path), cache.entry_name(files[2])}


@pytest.mark.parametrize("fault", ["bit", "page"])
def test_any_damage_to_an_entry_is_noticed_and_told_in_one_line(path, tmp_path, capsys, fault):
    read = cache.cached(path, "coco", reader(path, []))
    expected, calls = values(read), []
    (entry,) = (tmp_path / "cache/tables").iterdir()
    rng = random.Random(0)
    for file in sorted(entry.iterdir()):
        content = file.read_bytes()
        for _ in range(40):
            damaged, place = bytearray(content), rng.randrange(len(content))
            if fault == "bit":
                damaged[place] ^= 1 << rng.randrange(8)
            else:
                damaged[place : place + 512] = bytes(len(content[place : place + 512]))
            file.unlink()  # the first table's columns are mapped from it
            file.write_bytes(damaged)
            calls.clear()
            table = cache.cached(path, "coco", lambda folder: calls.append(1) or read)
            said = capsys.readouterr().err
            assert values(table) == expected
            told = f"{path}: what the cache kept of it is damaged ("
            assert said.startswith(told) == bool(calls)
            assert said.count("\n") == len(calls)
            # Blanks and the checksum's own name may change.
            assert calls or bytes(damaged) == content or file.name == "table.json"
        file.write_bytes(content)
    assert cache.cached(path, "coco", reader(path, calls)).mapped


def test_a_file_of_the_same_size_time_head_and_tail_is_read_again(path, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "EDGE", 16)
    cache.cached(path, "coco", reader(path, []))
    before = path.stat()
    text = path.read_text()
    assert "[2, 0, 1, 1]" in text
    path.write_text(text.replace("[2, 0, 1, 1]", "[8, 0, 1, 1]"))  # in place
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    calls = []
    assert records_of(cache.cached(path, "coco", reader(path, calls)))[1]["bbox"] == [8, 0, 1, 1]
    other = tmp_path / "other.json"  # as cp -p and mv do
    other.write_text(text)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert records_of(cache.cached(path, "coco", reader(path, calls)))[1]["bbox"] == [2, 0, 1, 1]
    cache.cached(path, "coco", reader(path, calls))
    assert calls == [1, 1]


def test_what_killed_processes_left_in_the_cache_goes(path, tmp_path):
    folder = tmp_path / "cache/tables"
    left = files.beside(folder / "another")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", "-999999999-"))
    left.mkdir(parents=True)
    under_way = files.beside(folder / "another")
    under_way.mkdir()
    cache.cached(path, "coco", reader(path, []))
    assert {one.name for one in folder.iterdir()} == {cache.entry_name(path), under_way.name}
