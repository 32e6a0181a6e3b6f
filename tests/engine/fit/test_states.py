"""States of a run, damaged and left over."""

import os
import random

import torch
from torch import nn

from malcli import files
from malcli.engine.fit.states import LoopState, load_state, remove_old_states, save_state


def networks():
    torch.manual_seed(0)
    found = {"student": nn.Linear(3, 2), "teacher": nn.Linear(3, 2)}
    return found, torch.optim.AdamW(found["student"].parameters())


def save(run, step):
    found, optimizer = networks()
    found["student"](torch.ones(3)).sum().backward()
    optimizer.step()
    save_state(run, LoopState(step=step), found, optimizer, None)


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
            found, optimizer = networks()
            before = found["student"].weight.clone()
            loop = load_state(tmp_path, found, optimizer, None)
            assert loop.step in (1, 2)
            assert loop.step == 1 or name == "loop.json"  # its blanks
            assert loop == LoopState(step=loop.step)
            assert torch.allclose(found["student"].weight, before - 0.001, atol=1e-4)
        (newest / name).write_bytes(whole)


def test_states_that_a_kill_left_half_written_go_with_the_old_ones(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    left = files.beside(tmp_path / "state/step-00000007")
    left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")).mkdir()
    remove_old_states(tmp_path)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["step-00000002", "step-00000003"]
