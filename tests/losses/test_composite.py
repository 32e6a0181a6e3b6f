"""The paste loss against hand-computed cases."""

import math

import pytest
import torch

from malcli.losses.composite import composite_loss
from malcli.records import BEHIND, NOTHING_PASTED, PASTED

PROB = torch.tensor([[[0.9, 0.5], [0.2, 0.1]]])
SHARE = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
BOX = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]])


def loss(kind, prob=PROB, inside=None):
    return composite_loss(prob, SHARE, torch.tensor([kind]), BOX, inside).item()


def test_where_nothing_was_pasted_there_is_no_loss():
    assert loss(NOTHING_PASTED) == 0


def test_pasted_pixels_in_the_box_are_background_of_the_object_behind():
    wanted = -(math.log(0.1) + 0.5 * math.log(0.5)) / 2.5
    assert loss(BEHIND) == pytest.approx(wanted)


def test_a_pasted_object_is_known_in_the_whole_crop():
    cells = (math.log(0.9), 0.5 * math.log(0.5) + 0.5 * math.log(0.5), math.log(0.8), math.log(0.1))
    assert loss(PASTED) == pytest.approx(-sum(cells) / 2.5)


def test_cells_outside_the_image_do_not_count():
    inside = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    assert loss(BEHIND, inside=inside) == pytest.approx(-0.5 * math.log(0.5) / 1.5)
    cells = math.log(0.5) + math.log(0.8) + math.log(0.1)
    assert loss(PASTED, inside=inside) == pytest.approx(-cells / 1.5)


@pytest.mark.parametrize("kind", [BEHIND, PASTED])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain_probabilities_give_numbers_and_gradients(kind, value):
    prob = torch.full((1, 2, 2), value, requires_grad=True)
    found = composite_loss(prob, SHARE, torch.tensor([kind]), torch.zeros(1, 2, 2))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(prob.grad).all()
