import errno
import os
from pathlib import Path

import pytest
import torch

from malcli.engine.machine.failures import failures_named
from malcli.errors import DataFormatError, RunError

RUN = Path("runs/mine")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "--grad-checkpointing"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "--batch-size"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "--crop-size"),
        (MemoryError(), "out of memory"),
        (RuntimeError("could not create a primitive"), "--batch-size"),
        (RuntimeError("could not execute a primitive"), "--batch-size"),
        (RuntimeError("could not create a memory object"), "--batch-size"),
        (RuntimeError("can't start new thread"), "--batch-size"),
        (RuntimeError("std::bad_alloc"), "--batch-size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "--batch-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "--workers"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "--workers"),
        (RuntimeError("DataLoader timed out after 300 seconds"), "--workers"),
        (torch.distributed.DistBackendError("NCCL error in: x"), "another process"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "--resume"),
    ],
)
def test_failures_of_the_machine_are_one_line_with_a_remedy(error, remedy):
    with pytest.raises(RunError) as caught, failures_named(RUN):
        raise error
    text = str(caught.value)
    assert text.startswith("runs/mine: ")
    assert remedy in text
    assert "state is kept" in text
    assert "\n" not in text


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_a_disk_that_fails_is_one_line_that_names_the_file(number):
    with pytest.raises(RunError) as caught, failures_named(RUN):
        raise OSError(number, os.strerror(number), "runs/mine/pictures")
    assert str(caught.value).startswith("runs/mine/pictures: ")
    assert "start the same command again" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        FileNotFoundError(errno.ENOENT, "No such file", "x.json"),
        ValueError("out of memory"),
        DataFormatError("x.json", "bad"),
        RunError("the loss is not a number"),
    ],
)
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught, failures_named(RUN):
        raise error
    assert caught.value is error
