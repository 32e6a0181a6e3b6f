"""`label` against itself cut, stopped, sharded, repeated and starved."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch

from malcli.config.label import LabelConfig
from malcli.engine.label import parts, pipeline
from malcli.engine.label.command import label
from malcli.engine.label.parts import PartFolder
from malcli.errors import (
    Interrupted,
    RunError,
)
from malcli.model import locate

PARTS = 5  # of the job


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])  # 40: more than images
def test_shards_in_any_order_give_the_bytes_of_one_process(
    job, equals_reference, tmp_path, suffix, count
):
    out = tmp_path / f"masks{suffix}"
    order = [*reversed(range(count)), 0]  # the first share a second time, after the merge
    merged = [label(job(out=out, shard=f"{i}/{count}")).merged for i in order]
    assert merged == [False] * (count - 1) + [True, True]
    assert equals_reference(out)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".parts"] == []


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_shards_of_several_counts_and_one_done_twice_give_the_same_bytes(
    job, equals_reference, tmp_path, suffix
):
    out = tmp_path / f"masks{suffix}"
    shards = ["3/4", "0/3", "3/4", "6/7", "0/2", "0/1"]
    assert [label(job(out=out, shard=shard)).merged for shard in shards] == [False] * 5 + [True]
    assert equals_reference(out)


def test_an_empty_share_is_no_failure(job, tmp_path):
    result = label(job(shard="400/500"))
    assert (result.merged, result.counts) == (False, {})
    assert list(tmp_path.iterdir()) == []


def test_counts_of_two_shares_add_up_to_those_of_the_whole(job, reference, tmp_path):
    shares = [label(job(out=tmp_path / f"{i}.json", shard=f"{i}/2")) for i in (0, 1)]
    assert [share.merged for share in shares] == [False, False]
    whole = json.loads(reference[".json"].read_text())["info"]["malcli"]["counts"]
    assert all(sum(share.counts.values()) > 1 for share in shares)
    statuses = {*shares[0].counts, *shares[1].counts}
    added = {status: sum(share.counts.get(status, 0) for share in shares) for status in statuses}
    assert added == whole


def test_the_share_that_merges_counts_the_whole_job(job, reference):
    label(job(shard="0/2"))
    whole = json.loads(reference[".json"].read_text())["info"]["malcli"]["counts"]
    assert label(job(shard="1/2")).counts == whole


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 1}, {"workers": 4}])
def test_threads_do_not_change_the_bytes(job, equals_reference, tmp_path, changes):
    label(job(**changes))
    assert equals_reference(tmp_path / "masks.json")


def interrupt_after(monkeypatch, count, signum):
    """Send a signal to this process when part number `count` is committed."""
    write = PartFolder.write
    seen = []

    def writing(self, index, outcomes):
        write(self, index, outcomes)
        seen.append(index)
        if len(seen) == count:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(PartFolder, "write", writing)
    return seen


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_finished_parts_and_resuming_gives_the_same_bytes(
    job, equals_reference, tmp_path, monkeypatch, signum, code
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, signum)
        with pytest.raises(Interrupted) as stopped:
            label(job())
    assert stopped.value.exit_code == code
    assert f"malcli label --device cpu --boxes {job().boxes}" in str(stopped.value)
    assert not (tmp_path / "masks.json").exists()
    assert len(list((tmp_path / "masks.json.parts").glob("part-*.parquet"))) == 2
    seen = interrupt_after(monkeypatch, 0, 0)
    label(job(resume=True))
    assert 0 not in seen
    assert 1 not in seen
    assert equals_reference(tmp_path / "masks.json")


def test_a_signal_is_heard_while_the_network_is_at_work(job, monkeypatch):
    def slow(self, crops, rois):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(pipeline.Predictor, "__call__", slow)
    with pytest.raises(Interrupted) as stopped:
        label(job())
    assert stopped.value.exit_code == 143


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


KILLED = """
import os, signal
import malcli.engine.label.parts as parts
import malcli.files as files
parts.PART_BOXES = {part_boxes}
replace, seen = os.replace, []
def dying(source, target):
    seen.append(target)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
files.os.replace = dying
from malcli.cli.main import main
main()
"""


def test_kill_9_while_a_part_is_renamed_then_again_gives_the_same_bytes(
    job, small_parts, equals_reference, tmp_path
):
    config = job()
    code = KILLED.format(part_boxes=small_parts)
    flags = ["label", "--boxes", config.boxes, "--checkpoint", config.checkpoint]
    command = [sys.executable, "-c", code, *flags, "--out", config.out, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "masks.json.parts"
    left = sorted(path.name for path in folder.iterdir())
    assert [name for name in left if name.endswith(".tmp")]
    label(config)
    assert equals_reference(config.out)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.json"]


def test_a_damaged_part_is_made_again(job, equals_reference, tmp_path):
    assert not label(job(shard="0/2")).merged
    part = tmp_path / "masks.json.parts" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    assert label(job()).merged
    assert equals_reference(tmp_path / "masks.json")


def test_a_full_disk_keeps_the_parts_and_the_job_goes_on_later(
    job, equals_reference, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        write, written = pq.write_table, []

        def filling(table, *args, **kwargs):
            written.append(table)
            return full_disk() if len(written) == 3 else write(table, *args, **kwargs)

        patch.setattr(parts.pq, "write_table", filling)
        with pytest.raises(RunError, match="no space left") as failed:
            label(job())
    assert failed.value.exit_code == 1
    names = sorted(path.name for path in (tmp_path / "masks.json.parts").iterdir())
    assert names == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(parts.pa.ipc, "new_stream", full_disk)
        with pytest.raises(RunError, match="no space left"):
            label(job())
    assert not [p for p in (tmp_path / "masks.json.parts").iterdir() if "merge" in p.name]
    label(job(merge=True))
    assert equals_reference(tmp_path / "masks.json")


def test_merge_needs_all_parts_and_no_model(job, equals_reference, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="no part is there"):
        label(job(merge=True))
    label(job(shard="0/3"))
    with monkeypatch.context() as patch:
        patch.setattr(locate, "locate_checkpoint", full_disk)
        with pytest.raises(RunError, match=r"parts are missing: 1, 2") as failed:
            label(LabelConfig(boxes=job().boxes, out=job().out, merge=True))
    assert failed.value.exit_code == 1
    for share in ("1/3", "2/3"):
        label(job(shard=share))
    assert label(job(merge=True)).merged  # a second merge finds the job finished
    assert equals_reference(tmp_path / "masks.json")


def test_two_merges_at_once_are_harmless(job, equals_reference, tmp_path, monkeypatch):
    in_order = PartFolder.in_order
    inner = []

    def overtaken(self, scratch):
        """Another process merges, and removes the parts, while this one reads them."""
        if not inner:
            inner.append(True)
            inner.append(label(job(merge=True)))
        yield from in_order(self, scratch)

    monkeypatch.setattr(PartFolder, "in_order", overtaken)
    assert label(job()).merged
    assert inner[1].merged
    assert equals_reference(tmp_path / "masks.json")
    assert not (tmp_path / "masks.json.parts").exists()


def out_of_memory_above(monkeypatch, limit):
    """Make the network fail for batches above a limit; returns the sizes that were tried."""
    predict, tried = pipeline.Predictor.__call__, []

    def failing(self, crops, rois):
        tried.append(len(rois))
        if len(rois) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, crops, rois)

    monkeypatch.setattr(pipeline.Predictor, "__call__", failing)
    return tried


def test_memory_that_runs_out_halves_the_batch_for_all_later_starts(job, tmp_path, monkeypatch):
    tried = out_of_memory_above(monkeypatch, 2)
    label(job(batch_size="4", shard="0/2"))
    assert max(tried) == 4
    manifest = json.loads((tmp_path / "masks.json.parts" / "manifest.json").read_text())
    assert manifest["batch_size"] == 2
    del tried[:]
    assert label(job(batch_size="4")).merged
    assert max(tried) == 2


def test_memory_for_not_even_one_crop_skips_the_box(job, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    counts = label(job()).counts
    assert "ok" not in counts
    assert counts["skipped:memory"] > 12
