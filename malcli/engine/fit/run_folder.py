"""Run folders of `fit`: where a run lives, its saved states, and how it is continued.

    RUN/config.toml             the settings
    RUN/metrics.jsonl           one line a logged step or validation
    RUN/checkpoint.safetensors  the labeler
    RUN/pictures/               fixed crops as training goes on
    RUN/state/step-000500/      what resuming needs: tensors.safetensors, loop.json
    RUN/state/finished          there once the run has ended

A state is complete once its folder has its final name; the newest readable one is continued.
"""

import contextlib
import json
import re
import shutil
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from malcli.checksums import DamagedError, seal, unseal
from malcli.config.fit import FitConfig
from malcli.errors import CheckpointError, ConfigError, OutputError
from malcli.files import hash_file, replacing, replacing_folder
from malcli.identity import HASH, differences, refuse
from malcli.report.progress import log
from malcli.settings import names_of, to_plain, to_toml

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


def choose_run(config: FitConfig, runs: Path = Path("runs")) -> tuple[Path, bool]:
    """Return the run folder and whether it continues an earlier run.

    Raises:
        OutputError: `--out` exists and neither `--resume` nor `--overwrite` is given, or its
            settings differ.
    """
    stem = f"{config.data.stem}-{config.encoder.replace('/', '-')}"
    if config.out is not None:
        run = config.out
    elif config.resume and (unfinished := _unfinished(runs, stem)):
        run = unfinished[-1]
    else:
        taken = [number for number, _ in _numbered(runs, stem)]
        run = runs / f"{stem}-{max(taken, default=0) + 1}"
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        if config.resume:
            log(f"{run}: nothing to resume; starting")
        return run, False
    if not run.is_dir():
        raise OutputError(f"{run}: is a file; give a folder as --out")
    if config.resume:
        _check_same_job(run, config)
        return run, True
    if not config.overwrite:
        raise OutputError(
            f"{run}: holds another run; continue it with --resume, replace it with --overwrite, or "
            f"give another --out"
        )
    if not (run / "config.toml").is_file():
        raise OutputError(f"{run}: is not a run of malcli, so --overwrite leaves it alone")
    return run, False


def _numbered(runs: Path, stem: str) -> list[tuple[int, Path]]:
    """Return the runs `<stem>-<n>` by number."""
    pattern = re.compile(re.escape(stem) + r"-(\d+)")
    found = [(pattern.fullmatch(path.name), path) for path in runs.glob("*") if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def _unfinished(runs: Path, stem: str) -> list[Path]:
    """Return unfinished runs of a data set and encoder, the newest last."""
    return [path for _, path in _numbered(runs, stem) if not (path / "state/finished").exists()]


def _check_same_job(run: Path, config: FitConfig) -> None:
    """Raise OutputError if a setting differs that resuming must not change."""
    path = run / "state" / "settings.json"
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputError(f"{run}: no readable settings, so it cannot be resumed") from None
    # A run of an earlier malcli lacks the settings that came later: it ran with their defaults.
    before = _defaults() | before
    free = names_of(FitConfig, "input", "file", "free", "private")
    was, now = (
        {key: value for key, value in one.items() if key not in free and not key.endswith(HASH)}
        for one in (before, to_plain(config))
    )
    refuse(run, "run", differences(was, now))


def _defaults() -> dict[str, Any]:
    """Return the settings' defaults, but those that are None, as plain values."""
    known = {item.name: item.default for item in fields(FitConfig) if item.default is not MISSING}
    return {key: value for key, value in known.items() if value is not None}


def prepare_folder(run: Path, config: FitConfig, continued: bool) -> None:
    """Make the run folder and write its settings; those of a resumed run take their place.

    An earlier run that `--overwrite` replaces is removed here, once all else is known to be good.

    Raises:
        OutputError: A resumed run was started from other boxes or masks to paste.
    """
    if config.overwrite and not continued:
        shutil.rmtree(run, ignore_errors=True)
    settings = run / "state" / "settings.json"
    inputs = {"data": config.data, "paste": config.paste}
    hashes = {key + HASH: hash_file(path) for key, path in inputs.items() if path}
    if settings.is_file():
        before = json.loads(settings.read_text(encoding="utf-8"))
        was = {key: before[key] for key in hashes if key in before}
        refuse(run, "run", differences(was, {key: hashes[key] for key in was}))
    plain = to_plain(config) | hashes
    with replacing(settings) as temporary:
        temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    with replacing(run / "config.toml") as temporary:
        temporary.write_text(to_toml(config, "fit"), encoding="utf-8")
    (run / "state" / "finished").unlink(missing_ok=True)


def finish(run: Path) -> None:
    """Mark a run as finished."""
    with replacing(run / "state" / "finished") as temporary:
        temporary.touch()


def append_line(run: Path, values: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def cut_metrics(run: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which a resumed run takes again."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def write_picture(run: Path, step: int, png: bytes) -> None:
    """Write the picture of a step."""
    with replacing(run / "pictures" / f"step-{step:08d}.png") as temporary:
        temporary.write_bytes(png)


def check_world(loop: LoopState, world: int, config: FitConfig, run: Path) -> LoopState:
    """Return where to continue with this number of processes.

    Raises:
        ConfigError: The number changed, and `--allow-world-change` is not given.
    """
    if loop.world == world:
        return loop
    if not config.allow_world_change:
        raise ConfigError(
            f"{run}: was started with {loop.world} processes, now {world}; take {loop.world} "
            f"again, or --allow-world-change, which restarts the epoch"
        )
    log(f"{run}: {loop.world} processes before, {world} now; epoch {loop.epoch} restarts")
    return replace(loop, world=world, batch=0)


def save_state(
    run: Path,
    loop: LoopState,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Write everything that resuming needs, whole or not at all; keep the newest two."""
    tensors = {f"student.{key}": value for key, value in student.state_dict().items()}
    tensors |= {f"teacher.{key}": value for key, value in teacher.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    contents = asdict(loop) | {"scaler": scaler.state_dict() if scaler else {}}
    folder = run / "state" / f"step-{loop.step:08d}"
    with replacing_folder(folder) as made:
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(plain, made / TENSORS)
        contents[TENSORS_HASH] = hash_file(made / TENSORS)
        (made / "loop.json").write_text(seal(contents), encoding="utf-8")
    # Also what a kill left of an unfinished state: only this process writes here.
    for old in (*_states(run)[:-KEPT_STATES], *folder.parent.glob(".step-*.tmp")):
        shutil.rmtree(old, ignore_errors=True)


def load_state(
    run: Path,
    student: nn.Module,
    teacher: nn.Module,
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
            student.load_state_dict(_part(tensors, "student."))
            teacher.load_state_dict(_part(tensors, "teacher."))
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
