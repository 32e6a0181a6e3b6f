import pytest
import torch

from malcli.engine import launch
from malcli.errors import ConfigError


def test_cpu_takes_fp32_and_refuses_fp16():
    device = torch.device("cpu")
    assert launch.choose_precision("auto", device) == "fp32"
    assert launch.choose_precision("bf16", device) == "bf16"
    with pytest.raises(ConfigError, match="fp16"):
        launch.choose_precision("fp16", device)


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_precision_goes_by_compute_capability(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch.choose_precision("auto", torch.device("cuda", 0)) == wanted


def test_cuda_without_a_gpu_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="malcli doctor"):
        launch.choose_device("cuda")
    assert launch.choose_device("auto").type == "cpu"


def test_a_process_that_is_killed_is_named_and_the_others_finish(monkeypatch, tmp_path, capfd):
    code = (
        "import os, pathlib, signal, sys, time\n"
        "if os.environ['RANK'] == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(0.5)\n"
        f"pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    start = launch.subprocess.Popen

    def starting(command, **options):
        return start([command[0], "-c", code], **options)

    monkeypatch.setattr(launch.subprocess, "Popen", starting)
    assert launch.start_processes(2, ["label"], together=False) == 137
    assert (tmp_path / "done").exists()
    assert "process 1 of 2 was ended by SIGKILL" in capfd.readouterr().err
