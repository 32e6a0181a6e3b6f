"""The crops of each optimiser step, read by worker processes ahead of the network."""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from malcli.data.crops.epoch_order import EpochOrder
from malcli.data.crops.training_crops import RoiBatch, TrainingCrops, collate
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.doctor import cpu_cores

MOST_WORKERS = 16  # for one GPU
MOST_CPU_WORKERS = 4
BATCHES_AHEAD = 4  # per worker
READ_TIMEOUT = 300  # seconds for one batch


def default_workers(device: torch.device) -> int:
    """Return how many processes read images for this one.

    A GPU gets all cores of its share of the machine but one, at most 16; on a CPU, which computes
    the network too, one fewer than torch's threads, at most 4.
    """
    if device.type == "cpu":
        return min(MOST_CPU_WORKERS, max(0, torch.get_num_threads() - 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_WORKERS, max(1, cpu_cores() // local - 1))


def epoch_batches(
    crops: TrainingCrops,
    order: EpochOrder,
    device: torch.device,
    workers: int | None,
    clock: Clock,
) -> Iterator[list[RoiBatch]]:
    """Yield the micro-batches of each optimiser step left in the order's epoch, on the CPU.

    Args:
        crops: Samples by (epoch, row).
        order: Which samples make which batch; `order.group` batches are one step.
        device: For a GPU, batches lie in page-locked memory.
        workers: Processes that read images; None: `default_workers`.
        clock: The time spent waiting for them.
    """
    workers = default_workers(device) if workers is None else workers
    loader: DataLoader[dict[str, NDArray[Any]]] = DataLoader(
        crops,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=BATCHES_AHEAD if workers else None,
        timeout=READ_TIMEOUT if workers else 0,
    )
    group: list[RoiBatch] = []
    before = time.perf_counter()
    for batch in loader:
        clock.seconds["wait"] += time.perf_counter() - before
        group.append(batch)
        if len(group) == order.group:
            yield group
            group = []
        before = time.perf_counter()
