import builtins
import json

import pytest

from malcli.engine.machine import doctor as engine
from malcli.engine.machine.doctor import auto_precision, doctor, unsupported_gpu_message

TORCH_2_15 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
TORCH_2_14_CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def test_v100_on_torch_2_15_is_told_the_cu126_line():
    message = unsupported_gpu_message("Tesla V100-SXM2-16GB", (7, 0), TORCH_2_15)
    assert message is not None
    assert "\n" not in message
    assert "V100" in message
    assert "sm_70" in message
    assert "torch==2.14.1" in message
    assert "https://download.pytorch.org/whl/cu126" in message


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        ((7, 0), TORCH_2_14_CU126),
        ((8, 0), TORCH_2_15),
        ((8, 9), TORCH_2_15),  # same major, later minor
        ((9, 0), TORCH_2_15),
        ((10, 3), TORCH_2_15),
        ((12, 1), TORCH_2_15),
        ((13, 0), ["sm_90", "compute_90"]),  # PTX is translated for any later GPU
        ((9, 0), ["sm_90a"]),
        ((10, 3), ["sm_100f"]),
    ],
)
def test_gpu_with_code_in_the_build_is_accepted(capability, archs):
    assert unsupported_gpu_message("GPU", capability, archs) is None


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        ((7, 0), TORCH_2_15),
        ((8, 0), ["sm_86"]),  # same major, earlier minor
        ((7, 0), ["compute_75"]),
        ((10, 0), ["sm_90a", "compute_90a"]),
        ((9, 0), ["gfx90a"]),
        ((9, 0), []),
    ],
)
def test_gpu_without_code_in_the_build_is_refused(capability, archs):
    assert unsupported_gpu_message("GPU", capability, archs)


def test_gpu_newer_than_the_build_is_told_to_upgrade():
    message = unsupported_gpu_message("GPU", (12, 0), TORCH_2_14_CU126)
    assert "--upgrade" in message
    assert "cu126" not in message


def test_gpu_before_volta_is_told_to_use_the_cpu():
    assert "--device cpu" in unsupported_gpu_message("GTX 1080", (6, 1), TORCH_2_15)


def test_auto_precision_goes_by_compute_capability():
    wanted = {None: "fp32", (7, 0): "fp16", (7, 5): "fp16", (8, 0): "bf16", (12, 0): "bf16"}
    assert {capability: auto_precision(capability) for capability in wanted} == wanted


class FakeCuda:
    """`torch.cuda` of a machine with one V100 and torch 2.15."""

    def is_available(self):
        return True

    def get_arch_list(self):
        return TORCH_2_15

    def device_count(self):
        return 1

    def get_device_properties(self, index):
        class Properties:
            name, major, minor, total_memory = "Tesla V100-SXM2-16GB", 7, 0, 16 << 30

        return Properties


def test_doctor_on_a_v100_names_the_install_line_and_fp16(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "cuda", FakeCuda())
    result = doctor()
    assert [device.usable for device in result.devices] == [False]
    assert result.precision == "fp16"
    assert any("whl/cu126" in problem for problem in result.problems)


def test_doctor_names_a_driver_that_torch_cannot_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "driver_version", lambda: "535.183.01")
    assert any("535.183.01" in problem for problem in doctor().problems)


def test_doctor_without_torch_and_timm_still_answers(monkeypatch):
    real_import = builtins.__import__

    def broken_import(name, *args, **kwargs):
        if name.split(".")[0] in ("torch", "huggingface_hub"):
            raise OSError("libtorch_cuda.so: cannot open shared object file\nsecond line")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken_import)
    monkeypatch.setattr(engine, "installed_version", lambda package: None)
    result = doctor()
    assert any("torch cannot be loaded: libtorch_cuda" in problem for problem in result.problems)
    assert any(problem == "timm is not installed: pip install timm" for problem in result.problems)
    assert result.encoders == {}
    assert all("\n" not in problem for problem in result.problems)


def test_doctor_result_is_json_and_names_cached_encoders(monkeypatch, tmp_path):
    import huggingface_hub

    def only_deit(repo, file):
        here = repo == "timm/deit_tiny_patch16_224.fb_in1k" and file == "model.safetensors"
        return str(tmp_path) if here else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", only_deit)
    values = json.loads(json.dumps(doctor().to_json(), allow_nan=False))
    assert [name for name, here in values["encoders"].items() if here] == ["vit_deit_tiny"]
    assert values["versions"]["torch"]
    assert values["disk_free_mb"] > 0
    assert values["cpu_cores"] >= 1
