"""`label` ended at any moment, or without space for any of its files, and started again."""

import errno
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from malcli.engine.machine import processes

PARTS = 5  # of the job
FORKS = Path(__file__).with_name("forks.py")


class Forks:
    """Runs malcli in forks of a process; see `forks.py`."""

    def __init__(self, part_boxes, folder):
        self.process = subprocess.Popen(
            [sys.executable, FORKS, str(part_boxes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "MALCLI_CACHE": str(folder / "cache")},
            text=True,
        )
        self.log, self.journal = folder / "log", folder / "journal"
        assert self.process.stdout.readline() == "ready\n"

    def run(self, arguments, **fault):
        """Returns the exit code, and the parts that this start wrote or began to write."""
        self.journal.unlink(missing_ok=True)
        paths = {"log": str(self.log), "journal": str(self.journal)}
        task = {"arguments": [str(one) for one in arguments], **paths, **fault}
        print(json.dumps(task), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        written = self.journal.read_text().split() if self.journal.exists() else []
        return code, [int(one) for one in written]

    def errors(self):
        """Returns the lines of the last run that say what is wrong."""
        return [line for line in self.log.read_text().splitlines() if "error:" in line]


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    forks = Forks(6, tmp_path_factory.mktemp("forks"))
    yield forks
    forks.process.stdin.close()
    forks.process.wait()
    forks.process.stdout.close()


@pytest.fixture
def command(job):
    """Returns the arguments that label into a file."""
    config = job()

    def arguments(out):
        inputs = ("--boxes", config.boxes, "--checkpoint", config.checkpoint)
        return ["label", *inputs, "--out", out, "--device", "cpu"]

    return arguments


def parts_of(out):
    folder = out.with_name(out.name + ".parts")
    return {int(path.stem[5:]) for path in folder.glob("part-*.parquet")}


def finish(forks, arguments, out, first):
    """Start a job again and check that it loses no more than a part of what the first start did."""
    kept = parts_of(out)
    assert len(set(first) - kept) <= 1 or out.exists(), "more than one part was lost"
    code, second = forks.run(arguments)
    assert code == 0, forks.log.read_text()
    assert not kept & set(second), "a finished part was made again"
    wanted = {out.name} | ({f"{out.stem}.images.parquet"} if out.suffix == ".parquet" else set())
    assert {path.name for path in out.parent.iterdir()} == wanted


@pytest.fixture
def uninterrupted(forks, command, tmp_path_factory, equals_reference):
    """Seconds that a whole start takes."""
    out = tmp_path_factory.mktemp("whole") / "masks.json"
    begin = time.monotonic()
    code, written = forks.run(command(out))
    assert (code, written) == (0, list(range(PARTS))), forks.log.read_text()
    assert equals_reference(out)
    return time.monotonic() - begin


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_times_then_again_gives_the_same_bytes(
    forks, command, uninterrupted, equals_reference, tmp_path, kills
):
    rng = random.Random(kills)
    for number in range(kills):
        out = tmp_path / str(number) / "masks.json"
        out.parent.mkdir()
        after = rng.uniform(0, 1.1) * uninterrupted
        code, first = forks.run(command(out), after=after, signal=signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0)
        finish(forks, command(out), out, first)
        assert equals_reference(out)


@pytest.mark.parametrize("suffix", [".json", pytest.param(".parquet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_in_any_call_that_changes_files_then_again_gives_the_same_bytes(
    forks, command, equals_reference, tmp_path, suffix, step
):
    killed, number = 0, 1
    while True:
        out = tmp_path / str(number) / f"masks{suffix}"
        out.parent.mkdir()
        code, first = forks.run(command(out), call=number, signal=signal.SIGKILL)
        if code != 0:
            assert code == -signal.SIGKILL, forks.log.read_text()
            killed += 1
            finish(forks, command(out), out, first)
        assert equals_reference(out)
        if code == 0:
            break
        number += step
    assert killed >= 30 // step


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("signum", "shell_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_a_random_time_prints_the_command_that_resumes(
    forks, command, uninterrupted, equals_reference, tmp_path, signum, shell_code, count
):
    rng = random.Random(signum)
    for number in range(count):
        out = tmp_path / str(number) / "masks.json"
        out.parent.mkdir()
        after = rng.uniform(0.2, 0.9) * uninterrupted
        code, first = forks.run(command(out), after=after, signal=signum)
        log = forks.log.read_text()
        assert "Traceback" not in log
        resume = command(out)
        if code == shell_code and "resume with: malcli " in log:
            resume = shlex.split(log.split("resume with: malcli ")[1].splitlines()[0])
        else:  # before any work, where malcli's handler may not even stand, or after all of it
            assert code in (0, -signum, shell_code)
        finish(forks, resume, out, first)
        assert equals_reference(out)


@pytest.mark.parametrize("suffix", [".json", pytest.param(".parquet", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [31, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_from_any_call_on_is_one_line_and_exit_1(
    forks, command, equals_reference, tmp_path, suffix, step
):
    failed, number = 0, 1
    while True:
        out = tmp_path / str(number) / f"masks{suffix}"
        out.parent.mkdir()
        code, first = forks.run(command(out), call=number, errno=errno.ENOSPC)
        if code == 0:
            break
        assert code == 1, forks.log.read_text()
        assert len(forks.errors()) == 1
        assert "Traceback" not in forks.log.read_text()
        assert not out.exists() or equals_reference(out)
        failed += 1
        finish(forks, command(out), out, first)
        assert equals_reference(out)
        number += step
    assert failed >= 36 // step


@pytest.mark.parametrize(
    "limit", [100, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (0, 1000, 4000))]
)
def test_a_file_that_cannot_grow_is_one_line_and_exit_1(
    forks, command, equals_reference, tmp_path, limit
):
    out = tmp_path / "masks.json"
    code, first = forks.run(command(out), bytes=limit)
    assert code == 1, forks.log.read_text()
    assert not out.exists()
    finish(forks, command(out), out, first)
    assert equals_reference(out)


ONE_OF_TWO = """
import os, sys
from malcli.cli.main import main
from malcli.engine import parts
parts.PART_BOXES = 6
write = parts.PartFolder.write
def writing(self, index, outcomes):
    write(self, index, outcomes)
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), {signum})
parts.PartFolder.write = writing
sys.argv[0] = "malcli"
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_processes_killed_or_stopped_loses_no_more_than_its_part(
    forks, command, equals_reference, monkeypatch, tmp_path, capfd, rank, signum
):
    start = processes.subprocess.Popen
    code = ONE_OF_TWO.format(rank=rank, signum=int(signum))

    def starting(line, **options):
        return start([line[0], "-c", code, *line[3:]], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", starting)
    monkeypatch.setattr(processes, "STOPPED_SECONDS", 2.0)
    out = tmp_path / "masks.json"
    arguments = [str(one) for one in command(out)]
    assert processes.start_processes(2, arguments, together=False) == 137
    said = capfd.readouterr().err
    assert f"process {rank} of 2 was ended by SIGKILL" in said
    assert ("is stopped" in said) == (signum == signal.SIGSTOP)
    theirs = set(range(1 - rank, PARTS, 2))
    assert parts_of(out) == theirs | {rank}
    monkeypatch.undo()
    finish(forks, command(out), out, [])
    assert equals_reference(out)
