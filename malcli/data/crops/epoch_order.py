"""The order in which an epoch visits its boxes: seeded, cut by processes, resumable anywhere."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochOrder(Sampler[list[tuple[int, int]]]):
    """Batches of one process for one epoch: (epoch, row) keys of a seeded permutation.

    Global batch g takes places [g * B * W, (g + 1) * B * W) of the permutation and process r the
    r-th B of them, so W processes see the crops that one process with batch B * W sees. The last
    optimiser step's batches are filled from the permutation's start.

    Args:
        rows: Rows of the boxes to train on.
        batch_size: Crops per process and batch.
        rank: This process.
        world: Number of processes.
        seed: Seed of the permutation.
        group: Batches per optimiser step; an epoch has a multiple of them.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        group: int = 1,
    ) -> None:
        """Start at the first batch of epoch 0."""
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.seed = seed
        self.group = group
        self.epoch = 0
        self.first = 0

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self.rows) // (self.batch_size * self.world * self.group)) * self.group

    def start(self, epoch: int, first: int) -> None:
        """Take batches from `first` on, of an epoch, at the next iteration."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        """Return the number of batches left in the epoch."""
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the keys of each batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        share = self.batch_size * self.world
        order = np.resize(order, self.batches * share)
        for batch in range(self.first, self.batches):
            begin = batch * share + self.rank * self.batch_size
            yield [(self.epoch, int(row)) for row in order[begin : begin + self.batch_size]]
