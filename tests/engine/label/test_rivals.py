"""Two different jobs on one output, and folders that are taken away from a job at work."""

import dataclasses
import shutil
import subprocess
import sys

import pytest

from malcli.engine.label import command, plan
from malcli.engine.label.command import label
from malcli.engine.label.parts import PartFolder
from malcli.errors import MalcliError, OutputError
from malcli.model.checkpoint import load_checkpoint, save_checkpoint

KINDS = ("tta", "checkpoint", "threshold")


@pytest.fixture
def rival(job, tiny, tmp_path):
    """Returns the settings of another job on the same output, of a kind."""

    def settings(kind, **changes):
        if kind == "checkpoint":
            path = tmp_path / "other.safetensors"
            changed = dataclasses.replace(load_checkpoint(tiny), threshold=(0.4, 0.4, 0.4))
            save_checkpoint(changed, path)
            return job(checkpoint=path, **changes)
        return job(**({"tta": "none"} if kind == "tta" else {"threshold": "0.4"}), **changes)

    return settings


@pytest.fixture
def at_write(monkeypatch):
    """Returns a function that has something happen once, as a job commits its n-th part."""

    def arrange(number, happen):
        write, seen = PartFolder.write, []

        def writing(self, index, outcomes):
            seen.append(index)
            write(self, index, outcomes)
            if len(seen) == number:
                monkeypatch.setattr(PartFolder, "write", write)
                happen()

        monkeypatch.setattr(PartFolder, "write", writing)

    return arrange


@pytest.fixture
def at_start(monkeypatch):
    """Returns a function that has something happen once, as a job plans its first start."""

    def arrange(happen):
        first = plan.first_manifest

        def planning(*args):
            monkeypatch.setattr(plan, "first_manifest", first)
            happen()
            return first(*args)

        monkeypatch.setattr(plan, "first_manifest", planning)

    return arrange


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_of_two_jobs_that_start_together_is_refused(
    job, rival, at_start, equals_reference, tmp_path, kind
):
    at_start(lambda: label(job(shard="0/2")))
    with pytest.raises(OutputError, match=rf"parts: belongs to another job: {kind} was .*, now "):
        label(rival(kind))
    assert label(job()).merged
    assert equals_reference(tmp_path / "masks.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_ends_while_another_one_starts_keeps_its_output(
    job, rival, at_start, equals_reference, tmp_path, kind
):
    at_start(lambda: label(job()))
    with pytest.raises(OutputError, match=rf"json: belongs to another job: {kind} was .*, now "):
        label(rival(kind))
    assert equals_reference(tmp_path / "masks.json")
    assert not (tmp_path / "masks.json.parts").exists()


def test_a_job_that_another_process_ends_meanwhile_is_finished(
    job, at_start, equals_reference, tmp_path
):
    at_start(lambda: label(job()))
    result = label(job())
    assert (result.merged, result.labelled[0]) == (True, 0)
    assert equals_reference(tmp_path / "masks.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_whose_output_another_one_overwrites_stops_and_adds_nothing(
    job, rival, at_write, tmp_path, kind
):
    alone = tmp_path / "alone.json"
    label(rival(kind, out=alone))
    at_write(2, lambda: label(rival(kind, overwrite=True, shard="0/2")))
    with pytest.raises(OutputError, match=f"belongs to another job: {kind} was "):
        label(job())
    left = sorted(path.name for path in (tmp_path / "masks.json.parts").glob("part-*"))
    assert left == [f"part-0000{index}.parquet" for index in (0, 2, 4)]
    assert label(rival(kind)).merged
    assert (tmp_path / "masks.json").read_bytes() == alone.read_bytes()


def test_a_part_that_comes_from_another_job_is_labelled_again(
    job, rival, equals_reference, tmp_path
):
    label(job(shard="0/2"))
    label(rival("tta", out=tmp_path / "other.json", shard="0/2"))
    for path in (tmp_path / "other.json.parts").glob("part-*"):
        shutil.copy(path, tmp_path / "masks.json.parts" / path.name)
    assert label(job()).merged
    assert equals_reference(tmp_path / "masks.json")


@pytest.mark.parametrize("gone", ["masks.json.parts", ""])
@pytest.mark.parametrize("number", [1, 2, 5])  # of five parts
def test_a_folder_that_is_removed_in_the_middle_is_one_line(job, at_write, tmp_path, gone, number):
    folder = tmp_path / "run"
    folder.mkdir()
    at_write(number, lambda: shutil.rmtree(folder / gone))
    with pytest.raises(OutputError, match=r"parts: was removed while this job was at work; start"):
        label(job(out=folder / "masks.json"))
    assert not (folder / "masks.json.parts").exists()
    assert label(job(out=folder / "masks.json")).merged


def test_a_part_that_is_removed_before_the_merge_is_one_line(
    job, monkeypatch, equals_reference, tmp_path
):
    missing = PartFolder.missing

    def removing(self, share=None):
        found = missing(self, share)
        if share is None:
            self.file(3).unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "missing", removing)
        with pytest.raises(MalcliError, match=r"parts: a part was removed while this job was at"):
            label(job())
    assert label(job()).merged
    assert equals_reference(tmp_path / "masks.json")


def test_parts_of_another_job_are_never_merged(job, rival, monkeypatch, tmp_path):
    merge = command.merge
    label(rival("tta", out=tmp_path / "half.json", shard="0/2"))

    def merging(parts, *args):
        shutil.copy(tmp_path / "half.json.parts" / "part-00002.parquet", parts.file(2))
        merge(parts, *args)

    monkeypatch.setattr(command, "merge", merging)
    with pytest.raises(OutputError, match=r"part-00002\.parquet: belongs to another job"):
        label(job())
    assert not (tmp_path / "masks.json").exists()


RACING = """
import malcli.engine.label.parts as parts
parts.PART_BOXES = {part_boxes}
from malcli.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_of_two_processes_that_race_one_job_is_whole_and_the_other_says_why(
    job, rival, small_parts, tmp_path, kind
):
    configs = {"one": job(), "other": rival(kind)}
    for name, config in configs.items():
        label(dataclasses.replace(config, out=tmp_path / f"{name}.json"))
    code = RACING.format(part_boxes=small_parts)
    started = {}
    for name, config in configs.items():
        flags = ["label", "--boxes", config.boxes, "--out", config.out, "--device", "cpu"]
        flags += ["--checkpoint", config.checkpoint, "--tta", config.tta]
        flags += ["--threshold", config.threshold] if config.threshold else []
        started[name] = subprocess.Popen(
            [sys.executable, "-c", code, *flags], stderr=subprocess.PIPE, text=True
        )
    said = {name: process.communicate()[1] for name, process in started.items()}
    codes = {name: process.returncode for name, process in started.items()}
    assert sorted(codes.values()) == [0, 2], said
    winner, loser = sorted(codes, key=codes.__getitem__)
    assert (tmp_path / "masks.json").read_bytes() == (tmp_path / f"{winner}.json").read_bytes()
    assert f"belongs to another job: {kind} was " in said[loser]
    assert not (tmp_path / "masks.json.parts").exists()
