"""Failures of the machine in the middle of a fit, said in one line with the remedy.

Knows the libraries' ways of saying them: none has an exception of its own but a GPU's memory.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from malcli.errors import RunError

# torch's allocators on CPU and GPU, and NVIDIA's libraries.
NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
LOST_READER = ("DataLoader worker", "DataLoader timed out")


@contextlib.contextmanager
def failures_named(run: Path) -> Iterator[None]:
    """Turn failures of the machine into RunError.

    Args:
        run: The run folder, whose saved states stay as they are.

    Raises:
        RunError: Out of memory, a process that reads images died, or another process of the run.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = _told(error)
        if told is None:
            raise
        raise RunError(f"{run}: {told}") from error


def _told(error: Exception) -> str | None:
    """Return what happened and what to do, or None if it is no failure of the machine."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _has(text, NO_MEMORY):
        return (
            "out of memory; the last saved state is kept; --resume with --grad-checkpointing, or "
            "start again with a lower --batch-size (and as much higher --grad-accum) or a lower "
            "--crop-size"
        )
    if _has(text, LOST_READER):
        return (
            "a process that reads images died or hangs, perhaps for want of memory; the last saved "
            "state is kept; --resume with fewer --workers"
        )
    if isinstance(error, torch.distributed.DistError) or _has(text, ("gloo",)):
        return "another process of this run was lost; the last saved state is kept; --resume"
    return None


def _has(text: str, words: tuple[str, ...]) -> bool:
    """Return whether one of the words occurs in the text."""
    return any(word in text for word in words)
