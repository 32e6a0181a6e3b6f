"""Failures of the machine: memory that runs out, and a fit's, said in one line with the remedy.

Knows the libraries' ways of saying them: none has an exception of its own but a GPU's memory.
"""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch

from malcli.errors import RunError
from malcli.files import FAILING, write_error

# torch's allocators on CPU and GPU, NVIDIA's libraries, C++, threads, and oneDNN, which ends its
# text there when it finds no memory; "a primitive descriptor" is what it cannot compute at all.
NO_MEMORY = (
    "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "bad_alloc", "can't start new thread",
    "Cannot allocate memory", "could not create a memory", "could not create a scratchpad",
    "Insufficient memory",
)  # fmt: skip
NO_PRIMITIVE = re.compile(r"could not (create|execute) a primitive(?! descriptor)")
MEMORY_REMEDY = (
    "out of memory; the last saved state is kept; --resume with --grad-checkpointing, or start "
    "again with a lower --batch-size (and as much higher --grad-accum) or a lower --crop-size"
)
LOST_READER = ("DataLoader worker", "DataLoader timed out")


@contextlib.contextmanager
def failures_named(run: Path) -> Iterator[None]:
    """Turn failures of the machine into RunError.

    Args:
        run: The run folder, whose saved states stay as they are.

    Raises:
        RunError: Out of memory, a disk that is full or fails, a process that reads images died, or
            another process of the run.
    """
    try:
        yield
    except RunError as error:  # of a process that reads images: torch puts its traceback before it
        before, _, said = str(error).rstrip().rpartition(f"{RunError.__name__}: ")
        if LOST_READER[0] not in before:
            raise
        raise RunError(f"{run}: {said}") from None
    except (MemoryError, RuntimeError) as error:
        told = _told(error)
        if told is None:
            raise
        raise RunError(f"{run}: {told}") from error
    except OSError as error:
        if is_out_of_memory(error):
            raise RunError(f"{run}: {MEMORY_REMEDY}") from error
        if error.errno in (*FAILING, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise write_error(error, Path(error.filename or run)) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the CPU or the GPU has no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    said = isinstance(error, RuntimeError | cv2.error) and (
        _has(text, NO_MEMORY) or NO_PRIMITIVE.search(text) is not None
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or said


def _told(error: Exception) -> str | None:
    """Return what happened and what to do, or None if it is no failure of the machine."""
    text = str(error)
    if is_out_of_memory(error):
        return MEMORY_REMEDY
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
