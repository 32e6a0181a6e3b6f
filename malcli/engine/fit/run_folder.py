"""Run folders of `fit`: where a run lives, what is in it, and which settings continue it.

RUN/config.toml             the settings
RUN/metrics.jsonl           one line a logged step or validation
RUN/checkpoint.safetensors  the labeler
RUN/pictures/               fixed crops as training goes on
RUN/state/settings.json     the settings, and hashes of the inputs: what resuming compares
RUN/state/step-00000500/    what resuming needs (`states`)
RUN/state/finished          there once the run has ended: steps, epochs, whether measured
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from malcli.config.fit import FitConfig
from malcli.engine.fit.states import LoopState
from malcli.errors import ConfigError, OutputError
from malcli.files import hash_file, remove_leftovers, replacing, sync, write_error
from malcli.identity import HASH, differences, refuse
from malcli.report.progress import log
from malcli.settings import names_of, to_plain, to_toml

# What `files.beside` makes.
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{6}-\d+-[0-9a-f]{8}\.tmp", re.DOTALL)


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
    if not run.exists() or (run.is_dir() and _is_empty(run)):
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
    if not any((run / name).is_file() for name in ("config.toml", "state/settings.json")):
        raise OutputError(f"{run}: is not a run of malcli, so --overwrite leaves it alone")
    return run, False


def _is_empty(run: Path) -> bool:
    """Return whether a folder holds no file but what a start that was killed at once left."""
    return all(LEFTOVER.fullmatch(path.name) for path in run.rglob("*") if not path.is_dir())


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
        raise OutputError(
            f"{run}: no readable settings, so it cannot be resumed; start it anew with --overwrite"
        ) from None
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
    settings = run / "state" / "settings.json"
    if run.exists() and not continued:
        _clear(run)
    for folder in (run, run / "state", run / "pictures"):
        remove_leftovers(folder)
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


def _clear(run: Path) -> None:
    """Remove an earlier run; one that is cut short by a kill can be started over, never resumed."""
    (run / "state" / "settings.json").unlink(missing_ok=True)
    (run / "config.toml").touch()  # says that the folder is malcli's, until it is written anew
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "config.toml":
            path.unlink()


def finish(run: Path, trained: Mapping[str, Any], measured: bool) -> None:
    """Mark a run as finished.

    Args:
        run: The run folder.
        trained: `steps` and `epochs` that are done.
        measured: Whether its labeler was measured against human masks.
    """
    with replacing(run / "state" / "finished") as temporary:
        temporary.write_text(json.dumps({**trained, "measured": measured}) + "\n")


def append_line(run: Path, values: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    path = run / "metrics.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        raise write_error(error, path) from error


def sync_metrics(run: Path) -> None:
    """Flush metrics.jsonl to the disk: a state must not be newer than its line."""
    path = run / "metrics.jsonl"
    try:
        if path.is_file():
            sync(path)
    except OSError as error:
        raise write_error(error, path) from error


def write_validation(run: Path, step: int, values: dict[str, Any]) -> None:
    """Write the scores of a step into metrics.jsonl, in the place of earlier ones of the step."""
    kept = [line for line in _lines(run) if not _is_scores(line, step)]
    _write_lines(run, [*kept, {"step": step, **values}])


def is_validated(run: Path, step: int) -> bool:
    """Return whether metrics.jsonl has the scores of a step."""
    return any(_is_scores(line, step) for line in _lines(run))


def cut_metrics(run: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which a resumed run takes again, and cut ones."""
    if (run / "metrics.jsonl").is_file():
        _write_lines(run, [line for line in _lines(run) if line["step"] <= step])


def _lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, but those that a kill cut."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    found.append(line)
    return found


def _is_scores(line: Mapping[str, Any], step: int) -> bool:
    """Return whether a line holds the scores of a step."""
    return line["step"] == step and "val" in line


def _write_lines(run: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace metrics.jsonl."""
    with replacing(run / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


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
