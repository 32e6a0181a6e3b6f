"""Saved states of a training, of `fit` and of a student: all that resuming needs.

    RUN/state/step-00000500/tensors.safetensors   networks, and the optimiser's moments
    RUN/state/step-00000500/loop.json             where training stands

A state is complete once its folder has its final name; the newest readable one is continued.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from malcli.checksums import DamagedError, seal, unseal
from malcli.errors import CheckpointError
from malcli.files import hash_file, remove_leftovers, replacing_folder
from malcli.model.checkpoint import write_tensors
from malcli.report.progress import log

KEPT_STATES = 2
TENSORS = "tensors.safetensors"
TENSORS_HASH = "tensors_sha256"


@dataclass
class LoopState:
    """Where training stands, between two optimiser steps."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    world: int = 1
    skipped: int = 0
    unreadable: int = 0


def save_state(
    run: Path,
    place: LoopState,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Write everything that resuming needs, whole or not at all.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full or fails.
    """
    tensors = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    contents = asdict(place) | {"scaler": scaler.state_dict() if scaler else {}}
    folder = run / "state" / f"step-{place.step:08d}"
    with replacing_folder(folder) as made:
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_tensors(plain, made / TENSORS)
        contents[TENSORS_HASH] = hash_file(made / TENSORS)
        (made / "loop.json").write_text(seal(contents), encoding="utf-8")


def remove_old_states(run: Path) -> None:
    """Remove all states but the newest two, and what kills left of unfinished ones."""
    for old in (*_states(run)[:-KEPT_STATES], *(run / "state").glob(".step-*.tmp")):
        shutil.rmtree(old, ignore_errors=True)
    remove_leftovers(run / "state")


def load_state(
    run: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> LoopState | None:
    """Restore the newest readable state in place, or return None if there is none.

    Raises:
        CheckpointError: States are there but none can be read.
    """
    states = _states(run)
    for folder in reversed(states):
        try:
            contents = unseal((folder / "loop.json").read_bytes())
            if contents.pop(TENSORS_HASH, None) not in (None, hash_file(folder / TENSORS)):
                raise DamagedError
            tensors = load_file(folder / TENSORS)
            for name, network in networks.items():
                network.load_state_dict(_part(tensors, f"{name}."))
            _load_optimizer(optimizer, _part(tensors, "optimizer."))
            scaler_state = contents.pop("scaler")
            if scaler and scaler_state:
                scaler.load_state_dict(scaler_state)
            return LoopState(**contents)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = str(error).partition("\n")[0][:100]
            log(f"{folder}: cannot be read ({reason}); trying an older one")
    if states:
        raise CheckpointError(f"{run}: none of its saved states can be read; start again")
    return None


def has_state(run: Path) -> bool:
    """Return whether a run has a state to continue: without one it starts from its weights."""
    return bool(_states(run))


def _states(run: Path) -> list[Path]:
    """Return the complete states of a run, oldest first."""
    return sorted((run / "state").glob("step-*"))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore AdamW's moments from `<number>.<name>` tensors.

    Raises:
        ValueError: Moments of other parameters.
    """
    whole = optimizer.state_dict()
    shapes = [value.shape for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        if name != "step" and value.shape != shapes[int(number)]:
            raise ValueError("the optimiser's moments belong to other parameters")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
