"""Where the labeler is that `label` uses. Reads no tensor, so it answers without torch."""

from pathlib import Path

from malcli.errors import CheckpointError

CHECKPOINT_NAME = "checkpoint.safetensors"
SHIPPED = Path(__file__).parent.parent / "weights" / "labeler.safetensors"


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
        if not SHIPPED.is_file():
            raise CheckpointError(
                f"{SHIPPED.name}: the labeler that ships with malcli is missing from the "
                f"installation; install malcli again, or give --checkpoint, or run malcli fit"
            )
        return SHIPPED
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
