import json
import os
import resource
import subprocess
import sys

import pytest

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes
from malcli.engine.convert import command as engine
from malcli.errors import (
    CheckpointError,
    ConfigError,
    DataFormatError,
    MalcliError,
    OutputError,
    RunError,
)


def run(src, dst, **options):
    return engine.convert(ConvertConfig(src=src, dst=dst, **options))


def test_scenes_come_back_from_parquet_as_equal_json(scenes, tmp_path):
    there = run(scenes.instances, tmp_path / "a.parquet")
    back = run(tmp_path / "a.parquet", tmp_path / "b.json")
    value = json.loads(scenes.instances.read_text())
    assert json.loads((tmp_path / "b.json").read_text()) == value
    assert there.records_in == there.records_out == back.records_out == len(value["annotations"])
    assert (there.from_, there.to, back.from_, back.to) == ("coco", "parquet", "parquet", "coco")
    assert there.images == len(value["images"])
    assert there.lost == back.lost == {}


def test_the_result_is_plain_json(scenes, tmp_path):
    result = run(scenes.boxes, tmp_path / "a.parquet").to_json()
    assert json.loads(json.dumps(result)) == result
    assert result["from"] == "coco"


def test_doubtful_records_are_counted_and_written(tmp_path):
    value = {"images": [], "annotations": [{"id": 1, "image_id": 5, "bbox": None}]}
    (tmp_path / "a.json").write_text(json.dumps(value))
    result = run(tmp_path / "a.json", tmp_path / "b.json")
    assert result.problems == {"no-image": 1, "unknown-category": 1}
    assert json.loads((tmp_path / "b.json").read_text()) == value


@pytest.mark.parametrize("name", ["a.parquet", "a.json"])
def test_the_same_conversion_again_touches_nothing(scenes, tmp_path, name):
    dst = tmp_path / name
    assert not run(scenes.boxes, dst).unchanged
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(scenes.boxes, dst).unchanged
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_output_with_other_content_is_kept_unless_overwritten(scenes, tmp_path):
    dst = tmp_path / "a.json"
    dst.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        run(scenes.boxes, dst)
    assert dst.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [dst]
    assert not run(scenes.boxes, dst, overwrite=True).unchanged
    assert json.loads(dst.read_text()) == json.loads(scenes.boxes.read_text())


def test_an_images_file_of_others_is_kept(scenes, tmp_path):
    (tmp_path / "a.images.parquet").write_text("mine")
    with pytest.raises(OutputError):
        run(scenes.boxes, tmp_path / "a.parquet")
    assert (tmp_path / "a.images.parquet").read_text() == "mine"


def test_an_output_that_is_the_input_is_refused(scenes, tmp_path):
    src = tmp_path / "a.json"
    src.write_bytes(scenes.boxes.read_bytes())
    (tmp_path / "link.json").symlink_to(src)
    os.link(src, tmp_path / "hard.json")
    run(src, tmp_path / "a.parquet")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for source, target in (
        ("a.json", "a.json"),
        ("a.json", "link.json"),
        ("link.json", "a.json"),
        ("a.json", "hard.json"),
        ("a.parquet", "a.parquet"),
        ("a.parquet", "a.images.parquet"),
    ):
        with pytest.raises(OutputError, match="is also the input"):
            run(tmp_path / source, tmp_path / target, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("dst", "options", "error"),
    [
        ("a.txt", {}, ConfigError),
        ("a.safetensors", {}, CheckpointError),
        ("folder", {"to": "coco"}, OutputError),
        ("file/a.json", {}, MalcliError),
        ("a.json", {"from_": "parquet"}, DataFormatError),
    ],
)
def test_what_cannot_be_written_is_one_line(scenes, tmp_path, dst, options, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(error) as caught:
        run(scenes.boxes, tmp_path / dst, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(DataFormatError, match="No such file"):
        run(tmp_path / "a.json", tmp_path / "b.json")


@pytest.mark.parametrize("name", ["b.json", "b.parquet"])
def test_a_full_disk_leaves_nothing(tmp_path, name, monkeypatch):
    images = [{"id": n, "file_name": f"{n * n % 9973}"} for n in range(9000)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": []}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def read_then_fill(*args, **options):
        table = open_boxes(*args, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return table

    monkeypatch.setattr(engine, "open_boxes", read_then_fill)
    try:
        with pytest.raises(RunError, match="no space left") as caught:
            run(tmp_path / "a.json", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_full_temporary_space_is_one_line(tmp_path):
    boxes = [{"id": n, "image_id": n, "bbox": [n, 0, 1, 2]} for n in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": boxes}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match="TMPDIR"):
            run(tmp_path / "a.json", tmp_path / "b.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_converting_imports_no_torch(scenes, tmp_path):
    code = (
        "import sys; from pathlib import Path; import malcli\n"
        "malcli.convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(scenes.boxes), str(tmp_path / "a.parquet")]
    assert subprocess.run(command, check=False).returncode == 0
