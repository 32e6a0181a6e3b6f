"""The dice form against sums written out by hand."""

import pytest
import torch
from torch.autograd import gradcheck

from malcli.losses.dice import dice_loss, flat


def test_dice_of_two_small_vectors():
    a = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    # first: 1 - 2 (0.5 + 1) / (0.25 + 1 + 1 + 1 + 0.002) = 1 - 3 / 3.252; second: nothing shared
    assert dice_loss(a, b).tolist() == pytest.approx([1 - 3 / 3.252, 1.0])


def test_dice_of_equal_masks_is_nearly_zero_and_symmetric():
    a = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    b = torch.tensor([[0.2, 0.9, 0.4, 0.0]])
    assert dice_loss(a, a).item() == pytest.approx(1 - 6 / 6.002, abs=1e-6)
    assert dice_loss(a, b).item() == dice_loss(b, a).item()


def test_all_zero_inputs_give_one_and_a_zero_gradient():
    a = torch.zeros(2, 5, requires_grad=True)
    loss = dice_loss(a, torch.zeros(2, 5))
    assert loss.tolist() == [1.0, 1.0]
    loss.sum().backward()
    assert a.grad is not None
    assert (a.grad == 0).all()


def test_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.rand(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert gradcheck(dice_loss, (a, b))


def test_flat_keeps_sums_out_of_half_precision():
    values = torch.ones(2, 300, 300, dtype=torch.float16)
    assert flat(values).shape == (2, 90_000)
    assert flat(values).sum(dim=1).tolist() == [90_000.0, 90_000.0]  # fp16 ends at 65,504
