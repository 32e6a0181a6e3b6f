"""The teacher against the formula, step by step."""

import copy

import pytest
import torch
from torch import nn

from malcli.model.ema import update_teacher


@pytest.fixture
def networks():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return teacher, student


def test_the_teacher_follows_the_formula_over_several_steps(networks):
    teacher, student = networks
    wanted = [p.detach().double().clone() for p in teacher.parameters()]
    for step in range(5):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * (step + 1))
        update_teacher(teacher, student, 0.9)
        wanted = [
            0.9 * t + 0.1 * s.double() for t, s in zip(wanted, student.parameters(), strict=True)
        ]
    for t, w in zip(teacher.parameters(), wanted, strict=True):
        assert torch.allclose(t.double(), w, atol=1e-6)


def test_one_number_by_hand():
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 2.0)
    update_teacher(teacher, student, 0.996)
    assert teacher.weight.item() == pytest.approx(1.004)  # 0.996 * 1 + 0.004 * 2
    update_teacher(teacher, student, 0.996)
    assert teacher.weight.item() == pytest.approx(1.007984)  # 0.996 * 1.004 + 0.004 * 2


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum_are_exact(networks, momentum):
    teacher, student = networks
    kept = copy.deepcopy(teacher if momentum else student)
    update_teacher(teacher, student, momentum)
    for t, k in zip(teacher.parameters(), kept.parameters(), strict=True):
        assert torch.equal(t, k)


def test_the_student_is_not_changed_and_no_gradient_flows(networks):
    teacher, student = networks
    before = copy.deepcopy(student)
    student(torch.ones(2, 3)).sum().backward()
    update_teacher(teacher, student, 0.5)
    for s, b in zip(student.parameters(), before.parameters(), strict=True):
        assert torch.equal(s, b)
    assert all(t.grad is None and t.grad_fn is None for t in teacher.parameters())
    assert all(s.grad is not None for s in student.parameters())


def test_a_half_precision_student_moves_a_full_precision_teacher():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2).half()
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 1.001)  # 1.0009765625 in half precision
    update_teacher(teacher, student, 0.996)
    assert teacher.weight.dtype == torch.float32
    wanted = 1 + 0.004 * 0.0009765625  # smaller than half precision can tell from 1
    assert teacher.weight[0, 0].item() == pytest.approx(wanted, abs=1e-7)


def test_running_statistics_are_copied():
    torch.manual_seed(0)
    teacher, student = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    student(torch.randn(4, 3, 5, 5) * 2 + 7)
    update_teacher(teacher, student, 0.996)
    assert torch.equal(teacher.running_mean, student.running_mean)
    assert torch.equal(teacher.running_var, student.running_var)
    assert teacher.running_mean.abs().min() > 0.1
