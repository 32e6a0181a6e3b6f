import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from malcli.config.label import LabelConfig
from malcli.engine.label import job as job_module
from malcli.engine.label.job import Job, Manifest
from malcli.engine.label.settings import result_settings
from malcli.errors import DataFormatError, OutputError

JOB = Job("b" * 64, "c" * 64, {"network": "student", "margin": 0.6})
MANIFEST = Manifest(JOB, 10, 2, 16, "fp32", (0.1, 0.2, 0.3), 512)


def test_differences_name_hashes_and_settings():
    other = {"boxes": "x", "checkpoint": "c" * 64, "settings": {"network": "mean", "limit": 3}}
    assert JOB.differences(other) == [
        "boxes changed",
        "limit was 3, now not given",
        "margin was not given, now 0.6",
        "network was mean, now student",
    ]
    assert (
        JOB.differences({"boxes": "b" * 64, "checkpoint": "c" * 64, "settings": JOB.settings}) == []
    )


@pytest.mark.parametrize("other", [{}, {"settings": 5}, {"settings": ["network"], "boxes": None}])
def test_any_stamp_can_be_compared(other):
    assert "boxes changed" in JOB.differences(other)


def test_a_manifest_comes_back_and_the_first_one_wins(tmp_path):
    out = tmp_path / "m.json"
    assert job_module.read_manifest(out) is None
    assert job_module.write_manifest(out, MANIFEST) == MANIFEST
    later = Manifest(JOB, 10, 2, 4, "bf16", (0.1, 0.2, 0.3), 512)
    assert job_module.write_manifest(out, later) == MANIFEST
    assert job_module.with_batch_size(out, MANIFEST, 8).batch_size == 8
    assert job_module.read_manifest(out).batch_size == 8
    assert [path.name for path in job_module.parts_path(out).iterdir()] == ["manifest.json"]


def test_the_manifest_of_another_job_is_refused_and_stays(tmp_path):
    out = tmp_path / "m.json"
    job_module.write_manifest(out, MANIFEST)
    other = replace(MANIFEST, job=replace(JOB, settings={"network": "mean", "margin": 0.6}))
    for refused in (
        lambda: job_module.write_manifest(out, other),
        lambda: job_module.with_batch_size(out, other, 8),
    ):
        with pytest.raises(OutputError, match="another job: network was student, now mean; give"):
            refused()
    assert job_module.read_manifest(out) == MANIFEST


def test_a_smaller_batch_does_not_bring_a_removed_folder_back(tmp_path):
    out = tmp_path / "m.json"
    with pytest.raises(OutputError, match=r"m\.json\.parts: was removed while"):
        job_module.with_batch_size(out, MANIFEST, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({}, True),
        ({"batch_size": 4}, True),  # rounds otherwise at most, and a start may halve it
        ({"job": Job("b" * 64, "c" * 64, {"margin": 0.6, "network": "student"}, Path("x"))}, True),
        ({"job": Job("b" * 64, "d" * 64, JOB.settings)}, False),
        ({"job": Job("b" * 64, "c" * 64, {"network": "student"})}, False),
        ({"precision": "bf16"}, False),
        ({"threshold": (0.1, 0.2, 0.4)}, False),
        ({"crop_size": 256}, False),
    ],
)
def test_parts_carry_all_that_decides_what_is_in_them(change, is_same):
    assert (replace(MANIFEST, **change).digest() == MANIFEST.digest()) == is_same


def test_another_checkpoint_is_named_by_file_and_hash(tmp_path, monkeypatch):
    shipped = tmp_path / "labeler.safetensors"
    shipped.write_bytes(b"labeler")
    monkeypatch.setattr(job_module, "SHIPPED", shipped)
    job = replace(JOB, checkpoint_path=tmp_path / "run" / "checkpoint.safetensors")
    name = f"{job.checkpoint_path} (cccccccccccc)"
    before = JOB.to_plain()
    assert job.differences(before | {"checkpoint": "d" * 64}) == [
        f"checkpoint was dddddddddddd, now {name}"
    ]
    sha256 = hashlib.sha256(b"labeler").hexdigest()
    assert job.differences(before | {"checkpoint": sha256}) == [
        f"checkpoint was the one that ships ({sha256[:12]}), now {name}"
    ]


# Settings that change no mask: what the machine does, and what is written beside the masks.
FREE = {
    "images", "out", "shard", "merge", "dry_run", "resume", "overwrite", "batch_size", "review",
    "report", "strict", "seed", "workers", "device", "num_processes", "max_failures",
    "retry_skipped",
}  # fmt: skip


def identity(config):
    return job_module.job_of(config, result_settings(config), config.checkpoint)


@pytest.mark.parametrize("name", sorted(FREE | {item.name for item in fields(LabelConfig)}))
def test_every_setting_changes_the_job_or_is_free(job, tmp_path, another, name):
    config = job()
    value = "lvis" if name == "format" else another(config, name)  # it is recognised as coco
    if name in ("boxes", "checkpoint"):
        value = tmp_path / "changed.json"
        value.write_bytes(getattr(config, name).read_bytes() + b"\n")
    changed = identity(replace(config, **{name: value}))
    assert (changed == identity(config)) == (name in FREE)


def test_the_format_that_is_recognised_is_the_job_of_the_format_that_is_named(job):
    assert identity(job()) == identity(job(format="coco"))


def test_inputs_that_moved_are_the_same_job(job, tmp_path):
    config = job()
    for name in ("boxes", "checkpoint"):
        moved = tmp_path / getattr(config, name).name
        moved.write_bytes(getattr(config, name).read_bytes())
        assert identity(replace(config, **{name: moved})) == identity(config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"threshold": 5}',
        '{"threshold": [1, 2, 3], "job": {"boxes": 1}}',
        json.dumps({"threshold": [1, 2, 3], "job": {"boxes": "", "checkpoint": "", "settings": {}},
                    "boxes": -1, "parts": 1, "batch_size": 1, "precision": "x", "crop_size": 1}),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_with_the_way_out(tmp_path, text):
    out = tmp_path / "m.json"
    job_module.parts_path(out).mkdir()
    (job_module.parts_path(out) / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match="--overwrite starts the job anew"):
        job_module.find_unfinished(JOB, out, overwrite=False)
    assert job_module.find_unfinished(JOB, out, overwrite=True) is None
    assert not job_module.parts_path(out).exists()


def test_parts_of_another_job_stay_when_a_finished_one_is_cleared(tmp_path):
    out = tmp_path / "m.json"
    job_module.write_manifest(out, MANIFEST)
    job_module.remove_parts_of(out, Job("other", "c", {}))
    assert job_module.parts_path(out).exists()
    job_module.remove_parts_of(out, JOB)
    assert not job_module.parts_path(out).exists()


@pytest.mark.parametrize(
    ("name", "content", "stamp"),
    [
        ("a.json", b'{"info": {"malcli": {"boxes": "b"}}, "images": [', {"boxes": "b"}),
        ("a.json", b'{"images": [], "info": {"malcli": {"boxes": "b"}}}', {}),
        ("a.json", b'{"info": {"malcli": 5}}', {}),
        ("a.json", b'{"info": []}', {}),
        ("a.json", b"{}", {}),
        ("a.json", b"", {}),
        ("a.json", b"\xff\xfe", {}),
        ("a.json", b"[" * 100_000, {}),
        ("a.parquet", b"PAR1", {}),
    ],
)
def test_a_stamp_is_read_from_any_file(tmp_path, name, content, stamp):
    path = tmp_path / name
    assert job_module.read_stamp(path) is None
    path.write_bytes(content)
    assert job_module.read_stamp(path) == stamp


def test_a_folder_s_hash_follows_its_text_files_alone(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    before = job_module.hash_input(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    assert job_module.hash_input(tmp_path) == before
    (tmp_path / "labels" / "b.txt").write_text("")
    assert job_module.hash_input(tmp_path) != before


def test_a_parquet_file_s_hash_follows_its_images_file(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    alone = job_module.hash_input(tmp_path / "x.parquet")
    (tmp_path / "x.images.parquet").write_bytes(b"PAR1")
    assert job_module.hash_input(tmp_path / "x.parquet") != alone


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataFormatError, match=r"gone\.json"):
        job_module.hash_input(tmp_path / "gone.json")
