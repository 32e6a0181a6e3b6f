"""Device and precision, and processes through Accelerate."""

import os
import sys
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from malcli.engine.doctor import auto_precision, unsupported_gpu_message
from malcli.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ACCELERATE_NAMES = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; one CUDA device a local rank.

    Raises:
        ConfigError: CUDA is wanted and there is none, or this torch build has no code for it.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: this machine or this torch build has no CUDA device; take --device "
            "cpu, or see malcli doctor"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    unsupported = unsupported_gpu_message(
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        torch.cuda.get_arch_list(),
    )
    if unsupported:
        raise ConfigError(unsupported)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32`, `fp16` or `bf16` for a setting and a device.

    `auto` goes by compute capability: torch reports bf16 support also where it is emulated
    (V100), which is slow.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise ConfigError("--precision fp16: needs a GPU; on a CPU take fp32 or bf16")
        return name
    cuda = device.type == "cuda"
    return auto_precision(torch.cuda.get_device_capability(device) if cuda else None)


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """Return an Accelerator for this process; the state of an earlier one is dropped."""
    # Settings of a first fit in this interpreter would otherwise bind the second one.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=ACCELERATE_NAMES[precision],
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether accelerate launch, torchrun or malcli itself started this process."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def start_processes(count: int, arguments: Sequence[str]) -> None:
    """Replace this process by `count` local ones that run the same command.

    Args:
        count: Number of processes.
        arguments: The command line after `malcli`.
    """
    python = sys.executable
    launcher = [
        python,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        str(count),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        *([] if torch.cuda.is_available() else ["--cpu"]),
        "-m",
        "malcli",
        *arguments,
    ]
    os.execv(python, launcher)
