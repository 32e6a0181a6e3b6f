import pytest
from torch import nn

from malcli.engine.retention.student_batches import ADAMW, SGD, StepRates, make_optimizer


def test_rates_warm_up_then_drop_at_two_thirds_and_eleven_twelfths_of_the_epochs():
    rates = StepRates(peak=0.02, steps_per_epoch=1000, epochs=12)
    assert rates.total == 12_000
    assert 0 < rates.at(0) < 1e-4
    assert all(rates.at(step) < rates.at(step + 1) for step in range(500))
    assert rates.at(500) == rates.at(7999) == pytest.approx(0.02)
    assert rates.at(8000) == rates.at(10_999) == pytest.approx(0.002)
    assert rates.at(11_000) == rates.at(11_999) == pytest.approx(0.0002)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_short_trainings_warm_up_in_a_tenth_of_their_steps_and_never_stand_still(epochs):
    rates = StepRates(peak=1.0, steps_per_epoch=20, epochs=epochs)
    assert max(rates.at(step) for step in range(rates.total)) == 1.0
    assert rates.at(rates.total // 10) == 1.0
    assert min(rates.at(step) for step in range(rates.total)) > 0


class Student(nn.Module):
    """A backbone and a head, with names as in a model of transformers; one layer is frozen."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"pixel_level_module": nn.ModuleDict()})
        self.model["pixel_level_module"]["encoder"] = nn.Linear(2, 3)
        self.head = nn.Linear(3, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def test_backbones_are_slowed_down_and_only_matrices_decay_under_adamw():
    student = Student()
    groups = make_optimizer(student, ADAMW).param_groups
    found = {
        id(one): (group["scale"], group["weight_decay"])
        for group in groups
        for one in group["params"]
    }
    backbone, head = student.model["pixel_level_module"]["encoder"], student.head
    assert found == {
        id(backbone.weight): (0.1, 0.05),
        id(backbone.bias): (0.1, 0.0),
        id(head.weight): (1.0, 0.05),
        id(head.bias): (1.0, 0.0),
    }


def test_sgd_steps_all_that_learns_alike():
    student = Student()
    (group,) = make_optimizer(student, SGD).param_groups
    assert (group["momentum"], group["weight_decay"], group["scale"]) == (0.9, 1e-4, 1.0)
    assert len(group["params"]) == 4
