"""Saved states: read as they were written or not at all, and no more of them than are needed."""

import random

import torch
from torch import nn

from malcli.engine.fit.states import LoopState, load_state, remove_old_states, save_state


def start():
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    return student, teacher, torch.optim.AdamW(student.parameters())


def save(run, step):
    student, teacher, optimizer = start()
    student(torch.ones(3)).sum().backward()
    optimizer.step()
    networks = {"student": student, "teacher": teacher}
    save_state(run, LoopState(step=step), networks, optimizer, None)


def test_no_flipped_bit_of_a_state_is_taken_up(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest, rng = tmp_path / "state/step-00000002", random.Random(0)
    for name in ("tensors.safetensors", "loop.json"):
        whole = (newest / name).read_bytes()
        for _ in range(60):
            flipped = bytearray(whole)
            flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            (newest / name).write_bytes(flipped)
            student, teacher, optimizer = start()
            before = student.weight.clone()
            loop = load_state(tmp_path, {"student": student, "teacher": teacher}, optimizer, None)
            assert loop.step in (1, 2)
            assert loop.step == 1 or name == "loop.json"  # its blanks
            assert loop == LoopState(step=loop.step)
            assert torch.allclose(student.weight, before - 0.001, atol=1e-4)
        (newest / name).write_bytes(whole)


def test_states_that_a_kill_left_half_written_go_and_the_newest_two_stay(tmp_path):
    (tmp_path / "state/.step-00000007.x.tmp").mkdir(parents=True)
    for step in (1, 2, 3):
        save(tmp_path, step)
    remove_old_states(tmp_path)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["step-00000002", "step-00000003"]
