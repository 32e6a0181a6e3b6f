"""MIL loss against bags written out by hand, and against finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from malcli.losses.mil import mil_loss, outside_loss

PROB = torch.tensor([[[0.2, 0.9, 0.1], [0.4, 0.6, 0.3], [0.5, 0.1, 0.0]]])
BOX = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]])
# Bags of PROB: columns .5 .9 .3, rows .9 .6 .5; of BOX: columns 0 1 .5, rows 1 1 0.
SQUARES_COLUMNS = (0.25 + 0.81 + 0.09) + (1 + 0.25)
SQUARES_ROWS = (0.81 + 0.36 + 0.25) + 2


def test_rows_and_columns_are_two_dice_terms():
    columns = 1 - 2 * (0.9 * 1 + 0.3 * 0.5) / (SQUARES_COLUMNS + 0.002)
    rows = 1 - 2 * (0.9 + 0.6) / (SQUARES_ROWS + 0.002)
    assert mil_loss(PROB, BOX).tolist() == pytest.approx([columns + rows])


def test_joint_is_one_term_with_the_squared_maximum():
    product = (0.81 * 1 + 0.09 * 0.5) + (0.81 + 0.36)
    joint = 1 - 2 * product / (SQUARES_COLUMNS + SQUARES_ROWS + 0.002)
    assert mil_loss(PROB, BOX, "joint").tolist() == pytest.approx([joint])


def test_two_by_two_by_hand():
    prob = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    box = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # columns: 1 0 against 1 1: 1 - 2 / (1 + 2 + .002); rows: 1 .5 against 1 0: 1 - 2 / 2.252
    assert mil_loss(prob, box).item() == pytest.approx((1 - 2 / 3.002) + (1 - 2 / 2.252))
    # joint: bags 1 0 1 .5, labels 1 1 1 0: 1 - 2 (1 + 1) / (2.25 + 3 + .002)
    assert mil_loss(prob, box, "joint").item() == pytest.approx(1 - 4 / 5.252)


def test_any_mask_that_touches_every_side_of_its_box_is_perfect():
    box = torch.zeros(1, 5, 6)
    box[:, 1:4, 2:5] = 1
    mask = torch.zeros(1, 5, 6)
    mask[0, [1, 2, 3], [2, 3, 4]] = 1  # a diagonal
    for form in ("rows+columns", "joint"):
        assert mil_loss(mask, box, form).item() == pytest.approx(mil_loss(box, box, form).item())
        assert mil_loss(box, box, form).item() < 1e-3
    assert mil_loss(mask[:, :, :3].clone(), box[:, :, :3]).item() > 0.3  # now columns are missed


@pytest.mark.parametrize(("form", "wanted"), [("rows+columns", 2.0), ("joint", 1.0)])
def test_all_zero_inputs_give_the_range_s_end_and_no_nan(form, wanted):
    prob = torch.zeros(2, 3, 4, requires_grad=True)
    loss = mil_loss(prob, torch.zeros(2, 3, 4), form)
    assert loss.tolist() == [wanted, wanted]
    loss.sum().backward()
    assert prob.grad is not None
    assert prob.grad.isfinite().all()


@pytest.mark.parametrize("form", ["rows+columns", "joint"])
def test_samples_do_not_mix(form):
    generator = torch.Generator().manual_seed(1)
    prob, box = torch.rand(4, 5, 7, generator=generator), torch.rand(4, 5, 7, generator=generator)
    single = [mil_loss(prob[i : i + 1], box[i : i + 1], form).item() for i in range(4)]
    assert mil_loss(prob, box, form).tolist() == pytest.approx(single)


@pytest.mark.parametrize("form", ["rows+columns", "joint"])
def test_gradient_matches_finite_differences(form):
    generator = torch.Generator().manual_seed(2)
    # Distinct values: a maximum has no derivative where two are equal.
    prob = (torch.randperm(24, generator=generator).double() / 24).view(2, 3, 4).requires_grad_()
    box = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    inside = torch.ones(2, 3, 4, dtype=torch.float64)
    inside[:, :, 3] = 0
    assert gradcheck(lambda p: mil_loss(p, box, form, inside), (prob,))
    assert gradcheck(lambda p: mil_loss(p, box, form), (prob,))


@pytest.mark.parametrize("form", ["rows+columns", "joint"])
def test_pixels_outside_the_image_belong_to_no_bag(form):
    inside = torch.ones(1, 3, 3)
    inside[:, :, 2] = 0
    loud = PROB.clone()
    loud[:, :, 2] = 1.0  # would win every row
    loud.requires_grad_()
    loss = mil_loss(loud, BOX, form, inside)
    quiet, box = PROB.clone(), BOX.clone()
    quiet[:, :, 2] = box[:, :, 2] = 0
    assert loss.item() == pytest.approx(mil_loss(quiet, box, form).item())
    loss.backward()
    assert loud.grad is not None
    assert (loud.grad[:, :, 2] == 0).all()
    assert loud.grad[:, :, :2].abs().sum() > 0


def test_gradient_reaches_the_maxima_only():
    prob = PROB.clone().requires_grad_()
    mil_loss(prob, BOX).backward()
    assert prob.grad is not None
    # Maxima: columns (2,0) (0,1) (1,2); rows (0,1) (1,1) (2,0).
    touched = prob.grad[0].nonzero().tolist()
    assert touched == [[0, 1], [1, 1], [1, 2], [2, 0]]


def test_outside_is_the_mean_surprise_of_cells_that_the_box_does_not_touch():
    # BOX touches (0,1), (1,1) and, by half, (1,2); six cells are outside.
    outside = [0.2, 0.1, 0.4, 0.5, 0.1, 0.0]
    expected = sum(-math.log(1 - p) for p in outside) / 6
    assert outside_loss(PROB, BOX).tolist() == pytest.approx([expected])


def test_outside_ignores_cells_beyond_the_image_and_survives_having_none():
    inside = torch.ones(1, 3, 3)
    inside[:, :, 2] = 0
    expected = sum(-math.log(1 - p) for p in [0.2, 0.4, 0.5, 0.1]) / 4
    assert outside_loss(PROB, BOX, inside).tolist() == pytest.approx([expected])
    assert outside_loss(PROB, torch.ones(1, 3, 3)).tolist() == [0.0]
    assert torch.isfinite(outside_loss(torch.ones(1, 3, 3), torch.zeros(1, 3, 3))).all()


def test_outside_pushes_background_down_and_leaves_the_box_alone():
    prob = PROB.double().clamp(0.05, 0.95).requires_grad_()
    box = BOX.double()
    assert gradcheck(lambda p: outside_loss(p, box), (prob,))
    outside_loss(prob, box).sum().backward()
    assert prob.grad is not None
    assert (prob.grad[0][box[0] > 0] == 0).all()
    assert (prob.grad[0][box[0] == 0] > 0).all()
