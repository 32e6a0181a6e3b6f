"""Where the labeler is that `label` uses. Reads no tensor, so it answers without torch."""

import contextlib
import json
from pathlib import Path
from typing import Any

from malcli.errors import CheckpointError

CHECKPOINT_NAME = "checkpoint.safetensors"
SHIPPED = Path(__file__).parent.parent / "weights" / "labeler.safetensors"
TORCH_HEADS = (b"PK\x03\x04", b"\x80")  # a zip file; a bare pickle, the form before torch 1.6
LONGEST_HEADER = 1 << 24  # bytes; that of a ViT-L takes 120,000


def locate_checkpoint(given: Path | None, runs: Path = Path("runs")) -> Path:
    """Return the checkpoint file that `label` uses.

    Args:
        given: A run folder or file; None: the newest finished run, else the one that ships.
        runs: Where runs are looked for.

    Raises:
        CheckpointError: Nothing there.
    """
    if given is None:
        finished = [flag.parent.parent for flag in runs.glob("*/state/finished")]
        usable = [run for run in finished if (run / CHECKPOINT_NAME).is_file()]
        if usable:
            newest = max(usable, key=lambda run: (run / "state" / "finished").stat().st_mtime)
            return newest / CHECKPOINT_NAME
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
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        settings = json.loads(header["__metadata__"]["malcli"])["settings"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None
