"""Where the labeler is that `label` uses. Reads no tensor, so it answers without torch."""

import contextlib
import json
from pathlib import Path
from typing import Any

from malcli.errors import CheckpointError

CHECKPOINT_NAME = "checkpoint.safetensors"
SHIPPED = Path(__file__).parent.parent / "weights" / "labeler.safetensors"
SHIPPED_NAME = "shipped"
TORCH_HEADS = (b"PK\x03\x04", b"\x80")  # a zip file; a bare pickle, the form before torch 1.6
LONGEST_HEADER = 1 << 24  # bytes; that of a ViT-L takes 120,000


def locate_checkpoint(given: Path | None, runs: Path = Path("runs")) -> Path:
    """Return the checkpoint file that `label` uses.

    Args:
        given: A run folder or file, or `shipped`; None: the newest run that `usable_runs` has, else
            the one that ships.
        runs: Where runs are looked for.

    Raises:
        CheckpointError: Nothing there.
    """
    if given is None and (usable := usable_runs(runs)[0]):
        return usable[-1] / CHECKPOINT_NAME
    if given is None or given == Path(SHIPPED_NAME):
        return shipped_labeler()
    if given.is_dir():
        inside = given / CHECKPOINT_NAME
        if not inside.is_file():
            raise CheckpointError(
                f"{given}: no {CHECKPOINT_NAME} in this folder; give the folder of a malcli fit "
                f"that has saved one"
            )
        return inside
    if not given.is_file():
        raise CheckpointError(f"{given}: no such file; give a run folder or a checkpoint")
    return given


def shipped_labeler() -> Path:
    """Return the labeler that comes with the package.

    Raises:
        CheckpointError: It is not there.
    """
    if not SHIPPED.is_file():
        raise CheckpointError(
            f"{SHIPPED.name}: the labeler that ships with malcli is missing from the "
            f"installation; install malcli again, or give --checkpoint, or run malcli fit"
        )
    return SHIPPED


def usable_runs(runs: Path = Path("runs")) -> tuple[list[Path], dict[Path, str]]:
    """Return the finished runs that may be taken unasked, the newest last, and why others not.

    A run of a few steps, or that nothing is known of, must not take the shipped labeler's place.
    """
    finished = [flag.parent.parent for flag in runs.glob("*/state/finished")]
    finished = [run for run in finished if (run / CHECKPOINT_NAME).is_file()]
    finished.sort(key=lambda run: (run / "state" / "finished").stat().st_mtime)
    usable, passed = [], {}
    for run in finished:
        epochs = _epochs_of(run)
        if quality_of(run / CHECKPOINT_NAME) is None:
            passed[run] = "never measured on human masks, as fit --val does"
        elif epochs is not None and epochs < 1:
            passed[run] = f"ended after {epochs:.2g} epochs"
        else:
            usable.append(run)
    return usable, passed


def quality_of(path: Path) -> dict[str, Any] | None:
    """Return what a malcli checkpoint says of its quality on human masks; None: not measured."""
    quality = (_meta_of(path) or {}).get("quality")
    return quality if isinstance(quality, dict) and quality.get("miou") else None


def name_of(path: Path) -> str:
    """Return a checkpoint's name for results: its path, or `shipped`."""
    return SHIPPED_NAME if path == SHIPPED else str(path)


def _epochs_of(run: Path) -> float | None:
    """Return the epochs that a run's metrics end with; None if they do not say."""
    last = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            last = float(json.loads(line)["epoch"])
    return last


def preset_of(path: Path) -> str | None:
    """Return `released` for a checkpoint of the released code, which implies that preset.

    That is a torch file, or a safetensors file that malcli made of one; told by content. A file
    that is neither, or not there, implies nothing: who loads it says what is wrong.
    """
    settings = settings_of(path)
    if settings is not None:
        return "released" if settings.get("preset") == "released" else None
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(9)
        # Safetensors start with a length, whose bytes may be anything, and then this.
        if head[8:] != b"{" and head.startswith(TORCH_HEADS):
            return "released"
    return None


def settings_of(path: Path) -> dict[str, Any] | None:
    """Return the settings that a malcli checkpoint carries; None for a file of another kind."""
    settings = (_meta_of(path) or {}).get("settings")
    return settings if isinstance(settings, dict) else None


def _meta_of(path: Path) -> dict[str, Any] | None:
    """Return what a malcli checkpoint says of itself; None for a file of another kind."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        meta = json.loads(header["__metadata__"]["malcli"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return meta if isinstance(meta, dict) else None
