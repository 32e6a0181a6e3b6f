"""`fit` ended at any call that changes files, or with a disk that fails there, and resumed."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FORKS = Path(__file__).parents[1] / "label" / "forks.py"


class Forks:
    """Runs malcli in forks of a process; see `forks.py`."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, FORKS, "6"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "MALCLI_CACHE": "off", "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self.log = folder / "log"
        assert self.process.stdout.readline() == "ready\n"

    def run(self, arguments, **fault):
        """Returns the exit code and what was said."""
        paths = {"log": str(self.log), "journal": str(self.log.with_name("journal"))}
        task = {"arguments": [str(one) for one in arguments], **paths, **fault}
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), self.log.read_text()


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.process.stdin.close()
    forks.process.wait()
    forks.process.stdout.close()


@pytest.fixture(scope="module")
def command(train_scenes):
    """Returns the arguments that train in a folder, in three steps with a state after each."""

    def arguments(run, *more):
        settings = {
            "data": train_scenes.boxes, "images": train_scenes.images, "out": run,
            "encoder": "vit/64x1", "weights": "none", "crop-size": 32, "channels": 8,
            "batch-size": 2, "epochs": 1, "max-steps": 3, "min-box-area": 0, "crf-iterations": 2,
            "log-every": 1, "save-every": 1, "pictures-every": 2, "workers": 0, "device": "cpu",
            "val": train_scenes.instances, "val-images": train_scenes.images, "val-every": 2,
            "threshold": "auto", "limit": 8,
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return ["fit", *words, *more]

    return arguments


def timeless(line):
    line = {key: value for key, value in line.items() if key not in ("crops_per_s", "memory_mb")}
    return line | {"val": line["val"] | {"checkpoint": None}} if "val" in line else line


def contents(run):
    """Returns all that a run folder holds, but times, its own name and how it was started."""
    found = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    started = ("config.toml", "state/settings.json")
    whole = {
        name: b"" if name in started else path.read_bytes()
        for name, path in found.items()
        if name != "metrics.jsonl"
    }
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return whole, [timeless(json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def whole(forks, command, tmp_path_factory):
    """What a run that nothing ended holds."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, said = forks.run(command(run))
    assert code == 0, said
    return contents(run)


def states(run):
    return {path.name for path in run.glob("state/step-*")}


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_in_any_call_that_changes_files_then_resumed_gives_the_same_run(
    forks, command, whole, tmp_path, step
):
    number, killed = step, 0
    while True:
        run = tmp_path / str(number) / "run"
        code, said = forks.run(command(run), call=number, signal=signal.SIGKILL)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        killed += 1
        code, said = forks.run(command(run, "--resume"))
        assert code == 0, (number, said)
        assert contents(run) == whole, number
        number += step
    assert killed >= 80 // step


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_fails_from_any_call_on_is_one_line_exit_1_and_keeps_the_last_state(
    forks, command, whole, tmp_path, number, step
):
    call, failed = step, 0
    while True:
        run = tmp_path / str(call) / "run"
        code, said = forks.run(command(run), call=call, errno=number)
        if code == 0:
            break
        assert code == 1, (call, said)
        assert len([line for line in said.splitlines() if "error:" in line]) == 1, (call, said)
        assert "Traceback" not in said
        assert "unexpected" not in said
        failed += 1
        kept = states(run)
        code, said = forks.run(command(run, "--resume"))
        assert code == 0, (call, said)
        assert not kept or f"resumed at step {int(max(kept)[5:])}" in said
        assert contents(run) == whole, call
        call += step
    assert failed >= 80 // step
