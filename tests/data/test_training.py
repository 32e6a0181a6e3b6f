import numpy as np
import pytest
import torch

from malcli.data.training import EpochOrder, rectangle_mask


def keys(order):
    return [key for batch in order for key in batch]


def test_processes_together_see_the_global_batches_of_one_process():
    rows = np.arange(100, 123)
    one = EpochOrder(rows, 4, rank=0, world=1, seed=5)
    halves = [EpochOrder(rows, 2, rank=rank, world=2, seed=5) for rank in (0, 1)]
    for epoch in (0, 1):
        for order in (one, *halves):
            order.start(epoch, 0)
        joined = [left + right for left, right in zip(*halves, strict=True)]
        assert joined == list(one)


def test_an_epoch_visits_every_row_and_differs_from_the_next():
    rows = np.arange(23)
    order = EpochOrder(rows, 4, rank=0, world=1, seed=0)
    order.start(0, 0)
    first = keys(order)
    order.start(1, 0)
    second = keys(order)
    assert {row for _, row in first} == set(range(23))
    assert len(first) == 24  # the last batch is filled from the start
    assert [row for _, row in first] != [row for _, row in second]


def test_a_resumed_epoch_goes_on_where_it_stopped():
    order = EpochOrder(np.arange(23), 4, rank=0, world=1, seed=0)
    order.start(3, 0)
    whole = list(order)
    order.start(3, 4)
    assert list(order) == whole[4:]
    assert len(order) == len(whole) - 4


def covered_by_counting(rectangle, side, samples=200):
    ticks = (np.arange(side * samples) + 0.5) / (side * samples)
    x0, y0, x1, y1 = rectangle
    along = [
        ((ticks > low) & (ticks < high)).reshape(side, samples).mean(1)
        for low, high in ((y0, y1), (x0, x1))
    ]
    return np.outer(*along)


@pytest.mark.parametrize(
    "rectangle", [(0.1, 0.2, 0.8, 0.9), (-0.3, -0.1, 0.5, 1.4), (0.26, 0.26, 0.3, 0.3)]
)
def test_rectangle_mask_is_the_share_of_each_cell_that_is_covered(rectangle):
    found = rectangle_mask(torch.tensor([rectangle]), 6)[0].numpy()
    np.testing.assert_allclose(found, covered_by_counting(rectangle, 6), atol=2e-2)
