"""Device and precision, and processes through Accelerate."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from malcli.engine.machine.doctor import auto_precision, unsupported_gpu_message
from malcli.engine.machine.signals import StopFlag
from malcli.errors import ConfigError
from malcli.report.progress import log

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
POLL_SECONDS = 0.1
END_SECONDS = 10.0
STOPPED_SECONDS = 60.0  # for which a stopped process is waited for when all others have ended
GRACE_SECONDS = 25.0  # between a signal and the end of a labelling process that does not heed it
# The first process validates while the others wait; one that dies ends them without this.
COLLECTIVE_TIMEOUT = timedelta(hours=3)
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


def choose_compile(wanted: bool, device: torch.device) -> bool:
    """Return whether networks are compiled: where it is wanted and can pay; else a line says why.

    On a CPU the shipped labeler gains 7 % and takes half a minute to compile; GPUs below compute
    capability 8.0 have no bf16, which compiled networks get most from.
    """
    if not wanted:
        return False
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        log("--compile: left out; it pays on GPUs of compute capability 8.0 or later only")
        return False
    return True


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """Return an Accelerator for this process; the state of an earlier one is dropped."""
    # Settings of a first fit in this interpreter would otherwise bind the second one.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=ACCELERATE_NAMES[precision],
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
    )


def start_processes(
    count: int,
    arguments: Sequence[str],
    together: bool,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command in `count` local processes and return its exit code.

    Each gets its rank in the environment, as torchrun and accelerate launch give it. Only the
    first one's stderr is shown; another's is shown if it alone fails.

    Args:
        count: Number of processes.
        arguments: The command line after `malcli`.
        together: One that fails ends the others too, for work with collectives.
        environment: Variables that all of them get beside their rank.
    """
    with contextlib.ExitStack() as stack, StopFlag() as stop:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        port = _free_port()
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "malcli", *arguments],
                env={**os.environ, **(environment or {}), **_rank_environment(rank, count, port)},
                stderr=None if rank == 0 else logs[rank],
                start_new_session=True,  # a terminal's Ctrl-C comes through `stop`, once
            )
            for rank in range(count)
        ]
        codes = _wait(children, stop, together)
        again = " with --resume" if together else ""
        for rank, code in enumerate(codes):
            if code < 0 and not stop.signum:  # it could not say so itself
                name = signal.Signals(-code).name
                sys.stderr.write(
                    f"malcli: error: process {rank} of {count} was ended by {name}; what is "
                    f"finished is kept; start the same command again{again}\n"
                )
        failed = next((rank for rank, code in enumerate(codes) if code), 0)
        if failed and not codes[0]:
            logs[failed].seek(0)
            sys.stderr.write(logs[failed].read())
        if codes[failed] < 0:
            return 128 + (stop.signum or -codes[failed])
        return codes[failed]


def _rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what tells a process its place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads_for_each(count))),
    }


def _threads_for_each(count: int) -> int:
    """Return the cores that each process may compute on."""
    return max(1, (os.cpu_count() or 1) // count)


def _free_port() -> int:
    """Return a TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(children: list["subprocess.Popen[bytes]"], stop: StopFlag, together: bool) -> list[int]:
    """Return the exit codes, the first failure's alone where it ended the others."""
    told = idle = None  # since when a signal is passed on, and since when all that run are stopped
    while running := [child for child in children if child.poll() is None]:
        now = time.monotonic()
        if stop.signum and told is None:
            told = now
            for child in running:
                child.send_signal(stop.signum)
                child.send_signal(signal.SIGCONT)  # a stopped process would not hear the other one
        failed = [child.returncode for child in children if child.returncode]
        if together and failed and told is None:
            return [_end(child) if child.returncode is None else child.returncode or 0
                    for child in children]  # fmt: skip
        if told is not None and not together and now - told > GRACE_SECONDS:
            _kill(running, children, f"did not end {GRACE_SECONDS:.0f} s after the signal")
        idle = (idle or now) if all(_is_stopped(child.pid) for child in running) else None
        if idle is not None and now - idle > STOPPED_SECONDS:
            _kill(running, children, f"is stopped, and was waited for {STOPPED_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    return [child.returncode or 0 for child in children]


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP; False where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _kill(
    some: list["subprocess.Popen[bytes]"], children: list["subprocess.Popen[bytes]"], why: str
) -> None:
    """End processes that do nothing any more, and say so."""
    for child in some:
        rank, count = children.index(child), len(children)
        sys.stderr.write(f"malcli: process {rank} of {count} {why}; it is ended\n")
        child.kill()
        child.wait()


def _end(child: "subprocess.Popen[bytes]") -> int:
    """End a process whose partner failed; that is no failure of its own."""
    child.terminate()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return 0
