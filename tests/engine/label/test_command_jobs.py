"""Which jobs `label` starts, refuses or leaves alone."""

import dataclasses
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from malcli.config.label import LabelConfig
from malcli.engine.label.command import label
from malcli.errors import (
    CheckpointError,
    ConfigError,
    DataFormatError,
    MissingImageError,
    OutputError,
)
from malcli.files import hash_file
from malcli.model import checkpoint as checkpoints
from malcli.model.checkpoint import load_checkpoint, save_checkpoint


def annotations_of(path):
    return json.loads(path.read_text())["annotations"]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_finished_job_is_left_alone(job, reference, monkeypatch, suffix):
    def refuse(path):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(checkpoints, "load_checkpoint", refuse)
    out = reference[suffix]
    before = {path: path.stat().st_mtime_ns for path in out.parent.iterdir()}
    result = label(job(out=out))
    assert result.merged
    assert result.counts["ok"] > 12
    assert {path: path.stat().st_mtime_ns for path in out.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": "0.6"}, "threshold was not given, now [0.6, 0.6, 0.6]"),
        ({"network": "student"}, "network was teacher, now student"),
        ({"limit": 2}, "limit was not given, now 2"),
        ({"crop_size": "32"}, "crop_size was not given, now 32"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_refused_by_name(job, reference, tmp_path, change, named, finished):
    out = reference[".json"] if finished else tmp_path / "masks.json"
    if not finished:
        label(job(shard="0/2"))
    before = out.read_bytes() if finished else None
    with pytest.raises(OutputError, match="another job") as refused:
        label(job(out=out, **change))
    assert named in str(refused.value)
    assert (out.read_bytes() if finished else None) == before


def test_changed_boxes_and_checkpoints_are_refused_by_name(job, data, tiny, tmp_path):
    label(job(shard="0/2"))
    other_boxes = tmp_path / "boxes.json"
    other_boxes.write_text(data.read_text() + "\n")
    loaded = load_checkpoint(tiny)
    save_checkpoint(dataclasses.replace(loaded, threshold=(0.4,) * 3), tmp_path / "c.safetensors")
    with pytest.raises(OutputError, match="another job: boxes changed; give"):
        label(job(boxes=other_boxes, images=data.parent / "images"))
    with pytest.raises(OutputError, match="another job: checkpoint was ") as refused:
        label(job(checkpoint=tmp_path / "c.safetensors"))
    was, now = (hash_file(path)[:12] for path in (tiny, tmp_path / "c.safetensors"))
    assert f"was {was}, now {tmp_path / 'c.safetensors'} ({now}); give" in str(refused.value)


def test_overwrite_replaces_another_job_and_its_parts(job, tmp_path):
    out = tmp_path / "masks.json"
    out.write_text("[]")
    with pytest.raises(OutputError, match="no output of malcli label"):
        label(job())
    label(job(overwrite=True, threshold="0.4", shard="0/2"))
    assert out.read_text() == "[]"
    label(job(overwrite=True, threshold="0.6"))
    assert json.loads(out.read_text())["info"]["malcli"]["threshold"] == [0.6] * 3


def test_outputs_that_are_inputs_are_refused(job, data, tiny, tmp_path):
    before = data.read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(data)
    for out in (data, link):
        with pytest.raises(OutputError, match="also another input"):
            label(job(out=out, overwrite=True))
    assert data.read_bytes() == before
    parquet = tmp_path / "x.parquet"
    for changes in (
        {"review": data},
        {"report": tiny},
        {"review": tmp_path / "masks.json"},
        {"boxes": tmp_path / "x.images.parquet", "out": parquet},
    ):
        with pytest.raises(OutputError, match="also another input"):
            label(job(**changes))
    run = tmp_path / "run.json"
    run.mkdir()
    (run / "checkpoint.safetensors").write_bytes(tiny.read_bytes())
    with pytest.raises(OutputError, match="is a folder"):
        label(job(out=run))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"out": None}, ConfigError, "--out is required"),
        ({"out": Path("masks.txt")}, ConfigError, "must end in .json or .parquet"),
        ({"threshold": "2"}, ConfigError, "--threshold"),
        ({"threshold": "0.1,0.2"}, ConfigError, "--threshold"),
        ({"shard": "3/3"}, ConfigError, "from 0 to N - 1"),
        ({"shard": "a/3"}, ConfigError, "give I/N"),
        ({"shard": "1"}, ConfigError, "give I/N"),
        ({"batch_size": "0"}, ConfigError, "--batch-size '0'"),
        ({"crop_size": "huge"}, ConfigError, "--crop-size 'huge'"),
        ({"crop_size": "63"}, ConfigError, "multiple of the encoder's stride"),
        ({"categories": "nothing-like-it"}, ConfigError, "has no category"),
        ({"boxes": Path("missing.json")}, DataFormatError, "missing.json"),
        ({"checkpoint": Path("missing.safetensors")}, CheckpointError, "no such file"),
        ({"images": Path("nowhere")}, MissingImageError, "nowhere"),
    ],
)
def test_wrong_settings_end_before_any_work(job, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as refused:
        label(job(**changes))
    assert refused.value.exit_code == 2
    assert not list(tmp_path.glob("*.json"))


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_dry_run_counts_what_would_be_done_and_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_checkpoint", full_disk)
    result = label(LabelConfig(boxes=data, dry_run=True))
    assert result.counts["ok"] > 12
    assert sum(result.counts.values()) == len(annotations_of(data))
    # The cut file has a whole header, so only decoding it would tell.
    assert result.counts["skipped:bad-image"] == 1
    assert result.counts["skipped:no-image"] == 3
    assert result.counts["skipped:bad-box"] == 4
    assert result.counts["skipped:crowd"] == 1
    assert result.to_json()["problems"]["equal-box"]["count"] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_strict_ends_before_labelling_where_headers_tell(job, tmp_path, dry_run):
    with pytest.raises(DataFormatError, match=r"--strict: .*4 bad-box"):
        label(job(strict=True, dry_run=dry_run))
    assert list(tmp_path.iterdir()) == []


def test_strict_allows_crowd_but_no_image_that_fails_while_it_is_decoded(job, data, tmp_path):
    given = json.loads(data.read_text())
    kept = [one for one in given["annotations"] if one["id"] <= 1001]
    first = [one for one in given["images"] if one["id"] < 900]
    good = tmp_path / "good.json"
    good.write_text(json.dumps(given | {"annotations": kept, "images": first}))
    assert label(job(boxes=good, images=data.parent / "images", strict=True)).merged
    cut = [one for one in given["images"] if one["file_name"] == "cut.png"]
    late = [one for one in given["annotations"] if one["id"] == 1008]
    good.write_text(json.dumps(given | {"annotations": kept + late, "images": first + cut}))
    out = tmp_path / "late.json"
    with pytest.raises(DataFormatError, match="1 boxes skipped:bad-image"):
        label(job(boxes=good, images=data.parent / "images", strict=True, out=out))
    assert not out.exists()


def test_review_and_report_are_written_for_a_finished_job_too(job, tmp_path):
    label(job())
    before = (tmp_path / "masks.json").stat().st_mtime_ns
    result = label(job(review=tmp_path / "r.csv", report=tmp_path / "r.html"))
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == 1 + result.counts["ok"] + result.counts.get("empty", 0)
    assert (tmp_path / "r.html").read_text().count("<figure>") > 20
    assert (tmp_path / "masks.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("setting", ["out", "review", "report"])
def test_pipes_and_devices_are_no_outputs(job, tmp_path, setting):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        before = path.stat()
        if setting != "out" or path == pipe:  # /dev/null has no suffix
            with pytest.raises(OutputError, match="is no regular file but a device"):
                label(job(**{setting: path}, overwrite=True))
        assert path.stat() == before
    assert not (tmp_path / "masks.json").exists()


def test_a_review_replaces_another_review_alone_unless_overwritten(job, tmp_path):
    review = tmp_path / "mine.csv"
    review.write_text("id,image\n1,2\n")
    with pytest.raises(OutputError, match=r"mine.csv: exists and is no review of malcli; give"):
        label(job(review=review))
    assert review.read_text() == "id,image\n1,2\n"
    assert not (tmp_path / "masks.json").exists()
    label(job(review=review, overwrite=True))
    written = review.read_bytes()
    assert written.startswith(b"id,image,category,score,status")
    review.write_bytes(written[:40])
    label(job(review=review))  # a restart
    assert review.read_bytes() == written


def test_an_output_that_is_a_link_is_followed_and_keeps_its_mode(job, reference, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "real.json").write_text("{}")
    (folder / "real.json").chmod(0o600)
    out = tmp_path / "masks.json"
    out.symlink_to(folder / "real.json")
    label(job(overwrite=True))
    assert out.is_symlink()
    assert (folder / "real.json").read_bytes() == reference[".json"].read_bytes()
    assert stat.S_IMODE((folder / "real.json").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["real.json"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_merge_needs_no_image(job, data, reference, tmp_path, strict):
    label(job(shard="0/2"))
    label(dataclasses.replace(job(shard="1/2"), out=tmp_path / "other.json"))
    for part in (tmp_path / "other.json.parts").glob("part-*"):
        part.rename(tmp_path / "masks.json.parts" / part.name)
    alone = tmp_path / "alone" / "boxes_x.json"
    alone.parent.mkdir()
    alone.write_bytes(data.read_bytes())
    merge = LabelConfig(boxes=alone, out=tmp_path / "masks.json", merge=True, strict=strict)
    if strict:
        with pytest.raises(DataFormatError, match="--strict: "):
            label(merge)
    else:
        assert label(merge).merged
        assert (tmp_path / "masks.json").read_bytes() == reference[".json"].read_bytes()


def test_a_damaged_part_is_made_again_and_told(job, reference, tmp_path, capsys):
    label(job(shard="0/2"))
    part = tmp_path / "masks.json.parts" / "part-00002.parquet"
    flipped = bytearray(part.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    part.write_bytes(flipped)
    capsys.readouterr()
    assert label(job()).merged
    said = capsys.readouterr().err
    assert said.count(f"{part}: cannot be used (its checksum differs); it has to be made") == 1
    assert (tmp_path / "masks.json").read_bytes() == reference[".json"].read_bytes()


def test_a_damaged_manifest_is_refused(job, tmp_path):
    label(job(shard="0/2"))
    manifest = tmp_path / "masks.json.parts" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.5", "0.7"))
    with pytest.raises(OutputError, match=r"cannot be understood \(its checksum differs\)"):
        label(job())
