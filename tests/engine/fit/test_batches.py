import os
import signal

import numpy as np
import pytest
import torch

from malcli.data.crops.epoch_order import EpochOrder
from malcli.engine.fit import batches
from malcli.engine.fit.batches import default_workers, epoch_batches
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.failures import failures_named
from malcli.errors import RunError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Keys:
    """Samples that say which key they were asked for; key 13 kills its reader."""

    def __getitem__(self, key):
        _, row = key
        if row == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        names = ("crop_BCHW", "box_B4", "image_B4", "profile_B2S", "size_B", "views_BN", "valid_B",
                 "pasted_BSS", "kind_B")  # fmt: skip
        return {name: np.zeros(1, np.float32) for name in names} | {"row_B": np.asarray(row)}

    def __len__(self):
        return 100


def rows_of(order, **options):
    groups = epoch_batches(Keys(), order, CPU, 0, Clock(), **options)
    return [[batch.row_B.tolist() for batch in group] for group in groups]


def test_each_step_gets_its_micro_batches_in_order():
    order = EpochOrder(np.arange(20, 31), 2, 0, 1, seed=0, group=3)
    found = rows_of(order)
    wanted = [[row for _, row in keys] for keys in order]
    assert [len(group) for group in found] == [3, 3]
    assert [rows for group in found for rows in group] == wanted


def test_an_epoch_in_the_middle_goes_on_with_a_whole_step():
    order = EpochOrder(np.arange(20, 40), 2, 0, 1, seed=0, group=2)
    whole = rows_of(order)
    order.start(0, 4)
    assert rows_of(order) == whole[2:]


def test_a_reader_that_dies_ends_the_run_with_one_line(tmp_path):
    order = EpochOrder(np.arange(12, 16), 2, 0, 1, seed=0)
    with pytest.raises(RunError, match="reads images") as caught, failures_named(tmp_path):
        for _ in epoch_batches(Keys(), order, CPU, 1, Clock()):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cores", "local", "wanted"),
    [(16, None, 15), (64, None, 16), (64, "8", 7), (128, "4", 16), (1, None, 1), (8, "8", 1)],
)
def test_a_gpu_gets_the_cores_of_its_share_but_one(monkeypatch, cores, local, wanted):
    monkeypatch.setattr(batches, "cpu_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert default_workers(GPU) == wanted


@pytest.mark.parametrize(("threads", "wanted"), [(1, 0), (2, 1), (5, 4), (32, 4)])
def test_a_cpu_keeps_its_threads_for_the_network(monkeypatch, threads, wanted):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert default_workers(CPU) == wanted
