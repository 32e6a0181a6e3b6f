"""`malcli doctor`: what this machine and this installation can do.

Looks, changes nothing, and never fails because something is missing: that is what it reports.
`unsupported_gpu_message` and `auto_precision` are plain functions of numbers, for start-up checks.
"""

import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from malcli.version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "pycocotools",
    "pyarrow",
    "safetensors",
    "typer",
)
OLDER_GPU = (
    'pip install "torch==2.14.1" torchvision --index-url https://download.pytorch.org/whl/cu126'
)
OLDER_GPU_PYPI = 'pip install "torch==2.10.0" "torchvision==0.25.0"'
NEWER_GPU = "pip install --upgrade torch torchvision"
VOLTA = (7, 0)  # the oldest GPU that the lines above serve
MB = 1 << 20


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, `9.0`.
        memory_mb: Memory, MiB.
        free_mb: Memory that nobody uses now, MiB; None if the device does not say.
        usable: Whether this torch build has code for it.
        precision: What `--precision auto` takes on it.
    """

    name: str
    capability: str
    memory_mb: int
    free_mb: int | None
    usable: bool
    precision: str


@dataclass
class DoctorResult:
    """What doctor found; sizes in MiB, None where the machine does not say."""

    versions: dict[str, str | None]
    platform: str
    cuda: str | None = None
    driver: str | None = None
    arch_list: list[str] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    precision: str = "fp32"
    cpu_cores: int = 1
    memory_free_mb: int | None = None
    disk_free_mb: int | None = None
    encoders: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def doctor() -> DoctorResult:
    """Return versions, devices, precision, free space, cached encoders and problems found."""
    versions: dict[str, str | None] = {name: installed_version(name) for name in PACKAGES}
    result = DoctorResult(
        versions={"malcli": __version__, "python": platform.python_version(), **versions},
        platform=platform.platform(),
        driver=driver_version(),
        cpu_cores=cpu_cores(),
        memory_free_mb=free_memory_mb(),
        disk_free_mb=free_disk_mb(Path.cwd()),
    )
    result.problems += [
        f"{name} is not installed: pip install {name}"
        for name in PACKAGES
        if versions[name] is None
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old makes torch warn; said below
        _look_at_gpus(result)
        result.encoders = cached_encoders()
    return result


def unsupported_gpu_message(
    name: str, capability: tuple[int, int], arch_list: Iterable[str]
) -> str | None:
    """Return one line that says how to install a torch that runs on this GPU, or None if it runs.

    Args:
        name: The GPU's name, for the message.
        capability: Its compute capability, (major, minor).
        arch_list: What this torch build has code for, as `torch.cuda.get_arch_list()` gives it.

    Source: CUDA C++ Programming Guide, "Binary Compatibility" (same major, minor at least) and
    "PTX Compatibility" (any later capability).
    """
    archs = list(arch_list)
    if any(_runs(arch, capability) for arch in archs):
        return None
    built = [version for arch in archs if (version := _parse_arch(arch))]
    sm = f"sm_{capability[0]}{capability[1]}"
    said = f"this torch has no code for {name} ({sm}; it has {' '.join(archs) or 'none'})"
    if built and capability > max(built):
        return f"{said}; install a newer one: {NEWER_GPU}"
    if capability < VOLTA:
        return f"{said}; GPUs before Volta (sm_70) are too old, take --device cpu"
    return f"{said}; install one that has: {OLDER_GPU} (or, from PyPI alone: {OLDER_GPU_PYPI})"


def auto_precision(capability: tuple[int, int] | None) -> str:
    """Return what `--precision auto` takes: `bf16`, `fp16` or `fp32`.

    torch's own `is_bf16_supported` says yes on a V100, where bf16 is emulated and slow.

    Args:
        capability: The GPU's compute capability; None for a CPU.
    """
    if capability is None:
        return "fp32"
    return "bf16" if capability >= (8, 0) else "fp16"


def installed_version(package: str) -> str | None:
    """Return a package's version without importing it; None if it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    """Return the version of the NVIDIA kernel driver; None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_mb() -> int | None:
    """Return the memory that can be had without swapping, MiB; None where it is not known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) // 1024 if found else None


def free_disk_mb(folder: Path) -> int | None:
    """Return the free space of a folder's disk, MiB; None if it cannot be read."""
    try:
        return shutil.disk_usage(folder).free // MB
    except OSError:
        return None


def cached_encoders() -> dict[str, bool]:
    """Return for every encoder whether its pretrained weights are in the local hub cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        from malcli.model.encoders import ENCODERS
    except Exception:  # a broken timm or torch: already among the problems
        return {}
    return {
        name: any(
            isinstance(try_to_load_from_cache(f"timm/{choice.timm_name}", file), str)
            for file in ("model.safetensors", "pytorch_model.bin")
        )
        for name, choice in ENCODERS.items()
    }


def _look_at_gpus(result: DoctorResult) -> None:
    """Fill in CUDA, devices and precision; a problem instead of an error."""
    try:
        import torch
    except Exception as error:  # a broken install raises OSError, ImportError, RuntimeError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        result.problems.append(f"torch cannot be loaded: {reason}; install it again")
        return
    result.cuda = torch.version.cuda
    if not torch.cuda.is_available():
        if result.driver:
            result.problems.append(
                f"torch {torch.__version__} cannot use the GPU of driver {result.driver}: CUDA 13 "
                f"needs driver 580 or later; for an older one: {OLDER_GPU}"
            )
        return
    result.arch_list = list(torch.cuda.get_arch_list())
    for index in range(torch.cuda.device_count()):
        try:
            result.devices.append(_device(index, result))
        except Exception as error:  # a device in exclusive use, or lost
            result.problems.append(f"GPU {index} does not answer: {str(error).splitlines()[0]}")
    if result.devices:
        result.precision = result.devices[0].precision


def _device(index: int, result: DoctorResult) -> Device:
    """Return one GPU and add what hinders it to the problems."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    hip = torch.version.hip is not None  # AMD's builds name their code otherwise
    problem = (
        None if hip else unsupported_gpu_message(properties.name, capability, result.arch_list)
    )
    if problem and problem not in result.problems:
        result.problems.append(problem)
    return Device(
        name=properties.name,
        capability=f"{capability[0]}.{capability[1]}",
        memory_mb=properties.total_memory // MB,
        free_mb=None if problem else torch.cuda.mem_get_info(index)[0] // MB,
        usable=problem is None,
        precision=auto_precision(capability),
    )


def _parse_arch(arch: str) -> tuple[int, int] | None:
    """Return (major, minor) of `sm_90` or `compute_120a`; None for anything else."""
    found = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[af]?", arch)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _runs(arch: str, capability: tuple[int, int]) -> bool:
    """Tell whether code for `arch` runs on a GPU of this capability."""
    built = _parse_arch(arch)
    if built is None:
        return False
    if arch.endswith("a"):  # features of this very chip
        return built == capability
    if arch.startswith("compute_") and not arch.endswith("f"):  # PTX, translated when it is loaded
        return capability >= built
    return built[0] == capability[0] and capability[1] >= built[1]
