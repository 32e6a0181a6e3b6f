import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from malcli.engine.machine import processes
from malcli.errors import ConfigError


def test_cpu_takes_fp32_and_refuses_fp16():
    device = torch.device("cpu")
    assert processes.choose_precision("auto", device) == "fp32"
    assert processes.choose_precision("bf16", device) == "bf16"
    with pytest.raises(ConfigError, match="fp16"):
        processes.choose_precision("fp16", device)


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_precision_goes_by_compute_capability(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert processes.choose_precision("auto", torch.device("cuda", 0)) == wanted


def test_cuda_without_a_gpu_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="malcli doctor"):
        processes.choose_device("cuda")
    assert processes.choose_device("auto").type == "cpu"


@pytest.fixture
def as_children(monkeypatch):
    """Makes `start_processes` run code instead of malcli; `rank` is the process's."""
    start = processes.subprocess.Popen

    def use(code):
        head = "import os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\n"

        def starting(command, **options):
            return start([command[0], "-c", head + code], **options)

        monkeypatch.setattr(processes.subprocess, "Popen", starting)

    return use


def test_a_process_that_is_killed_is_named_and_the_others_finish(as_children, tmp_path, capfd):
    as_children(
        "if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"time.sleep(0.5)\npathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    assert processes.start_processes(2, ["label"], together=False) == 137
    assert (tmp_path / "done").exists()
    assert "process 1 of 2 was ended by SIGKILL" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_a_process_that_is_stopped_is_ended_after_the_others_finished(
    as_children, monkeypatch, tmp_path, capfd
):
    monkeypatch.setattr(processes, "STOPPED_SECONDS", 0.5)
    as_children(
        f"if rank == 1:\n    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        f"time.sleep(1.5)\npathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    assert processes.start_processes(2, ["label"], together=False) == 137
    assert (tmp_path / "done").exists()
    said = capfd.readouterr().err
    assert "process 1 of 2 is stopped" in said
    assert "start the same command again" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_that_is_stopped_and_continued_is_left_alone(as_children, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "STOPPED_SECONDS", 2.0)
    pid = tmp_path / "pid"
    as_children(
        f"pid = pathlib.Path({str(pid)!r})\n"
        "if rank == 1:\n    pid.write_text(str(os.getpid()))\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n    sys.exit(3)\n"
        "while not pid.exists() or not pid.read_text():\n    time.sleep(0.1)\n"
        "time.sleep(0.5)\nos.kill(int(pid.read_text()), signal.SIGCONT)\n"
    )
    assert processes.start_processes(2, ["label"], together=False) == 3


@pytest.mark.parametrize(("signum", "shell_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_processes_that_are_stopped_or_deaf(
    as_children, monkeypatch, tmp_path, signum, shell_code
):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    as_children(
        "def deaf(number, frame):\n    pass\n"
        "def heeds(number, frame):\n    sys.exit(128 + number)\n"
        f"signal.signal({int(signum)}, (heeds, heeds, deaf)[rank])\n"
        f"pathlib.Path({str(tmp_path)!r}, str(rank)).touch()\n"
        "if rank == 1:\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "for _ in range(600):\n    time.sleep(0.1)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'not ended by the signal').touch()\n"
    )

    def send():
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.1)
        time.sleep(0.3)
        os.kill(os.getpid(), signum)

    sender = threading.Thread(target=send)
    sender.start()
    assert processes.start_processes(3, ["label"], together=False) == shell_code
    sender.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
