"""Which runs of `fit` may be resumed with which settings."""

import random
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from malcli.config.fit import FitConfig
from malcli.engine.fit.run_folder import (
    LoopState,
    choose_run,
    load_state,
    prepare_folder,
    save_state,
)
from malcli.errors import OutputError

# Settings that a resumed run may change: where things are, how far it goes, what is written when.
FREE = {
    "resume", "overwrite", "allow_world_change", "out", "epochs", "max_steps", "device",
    "num_processes", "workers", "val", "val_images", "images", "data", "log_every", "save_every",
    "pictures_every", "val_every", "weights", "threshold", "grad_checkpointing",
}  # fmt: skip


@pytest.fixture
def started(tmp_path):
    """Returns the settings of a run of which nothing but the folder is there yet."""
    for name in ("boxes", "another"):
        (tmp_path / f"{name}.json").write_text("[]")
    paths = {"data": tmp_path / "boxes.json", "paste": tmp_path / "boxes.json"}
    return FitConfig(**paths, out=tmp_path / "run", encoder="vit/192x12")


@pytest.mark.parametrize("name", sorted(FREE | {item.name for item in fields(FitConfig)}))
def test_every_setting_ends_a_run_or_is_free(started, tmp_path, another, name):
    value = tmp_path / "another.json" if name in ("data", "paste") else another(started, name)
    prepare_folder(started.out, replace(started, **{name: value}), continued=False)
    resumed = replace(started, resume=True)
    if name in FREE:
        assert choose_run(resumed) == (started.out, True)
    else:
        with pytest.raises(OutputError, match=f"belongs to another run: {name} was "):
            choose_run(resumed)


@pytest.mark.parametrize("name", ["data", "paste"])
def test_an_input_that_changed_ends_a_run(started, tmp_path, name):
    paths = {"data": tmp_path / "boxes.json", "paste": tmp_path / "another.json"}
    config = replace(started, **paths)
    prepare_folder(config.out, config, continued=False)
    paths[name].write_text("[ ]")
    with pytest.raises(OutputError, match=f"belongs to another run: {name} changed; give"):
        prepare_folder(config.out, replace(config, resume=True), continued=True)


def networks():
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    return student, teacher, torch.optim.AdamW(student.parameters())


def save(run, step):
    student, teacher, optimizer = networks()
    student(torch.ones(3)).sum().backward()
    optimizer.step()
    save_state(run, LoopState(step=step), student, teacher, optimizer, None)


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
            student, teacher, optimizer = networks()
            before = student.weight.clone()
            loop = load_state(tmp_path, student, teacher, optimizer, None)
            assert loop.step in (1, 2)
            assert loop.step == 1 or name == "loop.json"  # its blanks
            assert loop == LoopState(step=loop.step)
            assert torch.allclose(student.weight, before - 0.001, atol=1e-4)
        (newest / name).write_bytes(whole)


def test_states_that_a_kill_left_half_written_go(tmp_path):
    (tmp_path / "state/.step-00000007.x.tmp").mkdir(parents=True)
    for step in (1, 2, 3):
        save(tmp_path, step)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["step-00000002", "step-00000003"]
