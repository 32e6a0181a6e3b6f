"""What a labelling job is: its settings and hashes, and whose an output or its parts are.

    OUT                      `info.malcli` says which job made it
    OUT.parts/manifest.json  an unfinished job: what the first start decided for all others

Two starts are the same job if annotations, checkpoint and result-changing settings are equal.
Knows nothing of networks, and reads no box.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from malcli import files, identity
from malcli.checksums import seal, unseal
from malcli.config.label import LabelConfig
from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.formats.open import recognise
from malcli.data.formats.parquet import images_path
from malcli.data.formats.registry import KINDS, folder_of_data
from malcli.engine.label.crop_sizes import AUTO
from malcli.errors import DataFormatError, OutputError, RunError
from malcli.files import replacing
from malcli.model.locate import SHIPPED
from malcli.report.progress import log
from malcli.version import __version__

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Job:
    """What decides a job's result.

    Attributes:
        boxes: SHA-256 of the annotations.
        checkpoint: SHA-256 of the checkpoint.
        settings: Result-changing settings as given, plain values; what is not given is left out.
        checkpoint_path: Where this start found the checkpoint, for messages alone.
    """

    boxes: str
    checkpoint: str
    settings: dict[str, Any]
    checkpoint_path: Path | None = field(default=None, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """Return what outputs and parts say of their job."""
        return {"boxes": self.boxes, "checkpoint": self.checkpoint, "settings": self.settings}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return how this job differs from the fields of another one, one phrase each."""
        found = [] if other.get("boxes") == self.boxes else ["boxes changed"]
        was = other.get("checkpoint")
        if was != self.checkpoint:
            now = _checkpoint_name(self.checkpoint, self.checkpoint_path)
            found.append(f"checkpoint was {_checkpoint_name(was)}, now {now}")
        settings = other.get("settings")
        before = settings if isinstance(settings, dict) else {}
        return found + identity.differences(before, self.settings)


def _checkpoint_name(sha256: object, path: Path | None = None) -> str:
    """Return how a checkpoint is named: its file where that is known, and its hash."""
    if SHIPPED.is_file() and files.hash_file(SHIPPED) == sha256:
        return f"the one that ships ({str(sha256)[:12]})"
    return f"{path} ({str(sha256)[:12]})" if path else str(sha256)[:12]


@dataclass(frozen=True)
class Manifest:
    """What the first start decides and every other start obeys.

    Attributes:
        job: What decides the result.
        boxes: Number of boxes.
        parts: Number of parts.
        batch_size: Crops per network call.
        precision: Number format of the network.
        threshold: Thresholds by size class.
        crop_size: Side of the network's input, pixels, or `auto`.
    """

    job: Job
    boxes: int
    parts: int
    batch_size: int
    precision: str
    threshold: tuple[float, float, float]
    crop_size: int | str

    def digest(self) -> str:
        """Return what the parts of this job carry: all that decides what is in them."""
        decided = [self.job.to_plain(), self.precision, self.threshold, self.crop_size]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def job_of(config: LabelConfig, settings: dict[str, Any], checkpoint: Path) -> Job:
    """Return the job of a command.

    Raises:
        DataFormatError: The annotations cannot be read.
    """
    boxes = hash_input(config.boxes, config.out)
    settings = settings | {"format": config.format or recognise(config.boxes)}
    return Job(boxes, _digest(checkpoint), settings, checkpoint)


def job_to_merge(config: LabelConfig, out: Path) -> Job:
    """Return the job of the parts, or else of the output, that is there: only it knows.

    Raises:
        OutputError: The annotations are not the job's.
        RunError: There is no part.
    """
    boxes = hash_input(config.boxes, out)
    manifest = read_manifest(out)
    source = manifest.job.to_plain() if manifest else read_stamp(out)
    if not source:
        raise RunError(f"{parts_path(out)}: no part is there; run malcli label without --merge")
    settings = source.get("settings")
    job = Job(boxes, str(source.get("checkpoint")), settings if isinstance(settings, dict) else {})
    refuse_other(job, source, out)
    return job


def hash_input(path: Path, out: Path | None = None) -> str:
    """Return the SHA-256 of an annotation file, or of the text and table files of a folder.

    A Parquet file's images file counts, too. An output in the folder is no part of the input.

    Args:
        path: The file or folder.
        out: The output; its parts lie beside it.

    Raises:
        DataFormatError: Missing or unreadable.
    """
    path = folder_of_data(path)
    if path.is_dir():
        found = (one for one in path.rglob("*") if one.suffix in KINDS and one.is_file())
        files = sorted(one for one in found if out is None or not _is_output(one, out))
    else:
        files = [one for one in (path, images_path(path)) if one == path or one.is_file()]
    if files == [path]:
        open_regular(path).close()
        return _digest(path)
    base = path if path.is_dir() else path.parent
    listing = [(str(one.relative_to(base)), _digest(one)) for one in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _is_output(path: Path, out: Path) -> bool:
    path, out = Path(os.path.abspath(path)), Path(os.path.abspath(out))
    return path in (out, images_path(out)) or parts_path(out) in path.parents


def _digest(path: Path) -> str:
    try:
        return files.hash_file(path)
    except OSError as error:
        raise DataFormatError(path, f"cannot be read: {error.strerror}") from None


def parts_path(out: Path) -> Path:
    """Return the folder of an output's parts."""
    return out.with_name(out.name + ".parts")


def read_stamp(out: Path) -> dict[str, Any] | None:
    """Return `info.malcli` of an output; {} if it has none; None if there is no such file.

    Our own JSON begins with `info`, so that a file of any size is told at once.
    """
    if not out.exists():
        return None
    try:
        if out.suffix.lower() == ".parquet":
            info = json.loads((pq.read_schema(out).metadata or {})[b"info"])
        else:
            with open_regular(out) as file:
                text = JsonText(out, file)
                info = text.value() if next(text.members(), None) == "info" else {}
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException, DataFormatError):
        return {}
    stamp = info.get("malcli") if isinstance(info, dict) else None
    return stamp if isinstance(stamp, dict) else {}


def stamp_of(job: Job, manifest: Manifest, counts: dict[str, int]) -> dict[str, Any]:
    """Return `info.malcli`: nothing that differs between equal jobs."""
    return {
        "version": __version__,
        **job.to_plain(),
        "threshold": list(manifest.threshold),
        "crop_size": manifest.crop_size,
        "precision": manifest.precision,
        "counts": counts,
    }


def is_finished(out: Path, job: Job) -> bool:
    """Return whether the output is there and this job's."""
    stamp = read_stamp(out)
    if out.suffix.lower() == ".parquet" and not images_path(out).is_file():
        return False
    return bool(stamp) and not job.differences(stamp or {})


def refuse_other(job: Job, other: Mapping[str, Any] | None, place: Path) -> None:
    """Raise OutputError if what stands at a place is not this job's; None: nothing is there."""
    if other is None:
        return
    if not other:
        raise OutputError(
            f"{place}: exists and is no output of malcli label; give another --out or --overwrite"
        )
    identity.refuse(place, "job", job.differences(other))


def find_unfinished(job: Job, out: Path, overwrite: bool) -> Manifest | None:
    """Return the manifest of this job's parts; with `overwrite`, parts of another are removed.

    Raises:
        OutputError: The parts are another job's.
    """
    try:
        manifest = read_manifest(out)
        if manifest:
            refuse_other(job, manifest.job.to_plain(), parts_path(out))
    except OutputError:
        if not overwrite:
            raise
        log(f"{parts_path(out)}: parts of another job, removed")
        remove_parts(out)
        return None
    return manifest


def remove_parts(out: Path) -> None:
    """Remove the folder of parts; another process that does the same is no error."""
    shutil.rmtree(parts_path(out), ignore_errors=True)


def remove_parts_of(out: Path, job: Job) -> None:
    """Remove the folder of parts unless another job is at work in it."""
    try:
        manifest = read_manifest(out)
    except OutputError:
        return
    if manifest is None or manifest.job == job:
        remove_parts(out)


def read_manifest(out: Path) -> Manifest | None:
    """Return the manifest of an unfinished job, or None if there is none.

    Raises:
        OutputError: It cannot be understood.
    """
    path = parts_path(out) / MANIFEST
    try:
        values = unseal(path.read_bytes())
        small, medium, large = (float(value) for value in values.pop("threshold"))
        job = Job(**values.pop("job"))
        manifest = Manifest(job=job, threshold=(small, medium, large), **values)
        side = 0 if manifest.crop_size == AUTO else manifest.crop_size
        numbers = (manifest.boxes, manifest.parts, manifest.batch_size, side)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a number is wrong")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise OutputError(
            f"{path}: cannot be understood ({str(error)[:80]}); --overwrite starts the job anew"
        ) from None
    return manifest


def write_manifest(out: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a new job, or return that of a process that was faster.

    Raises:
        OutputError: The folder cannot be written to, or another job was faster.
        RunError: The disk is full.
    """
    with replacing(parts_path(out) / MANIFEST, first_wins=True) as temporary:
        temporary.write_text(_text(manifest), encoding="utf-8")
    return manifest_at_work(out, manifest)


def manifest_at_work(out: Path, manifest: Manifest) -> Manifest:
    """Return the manifest that is in the folder of parts.

    Raises:
        OutputError: It is gone, or another job's, since this start read or wrote its own.
    """
    found = read_manifest(out)
    if found is None:
        raise OutputError(
            f"{parts_path(out)}: was removed while this job was at work; start the same command "
            f"again"
        )
    refuse_other(manifest.job, found.job.to_plain(), parts_path(out))
    return found


def write_manifest_to(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a folder that no other process knows yet."""
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")


def with_batch_size(out: Path, manifest: Manifest, batch_size: int) -> Manifest:
    """Record a smaller batch, for the parts to come.

    Raises:
        OutputError: As `manifest_at_work`.
    """
    manifest_at_work(out, manifest)
    changed = dataclasses.replace(manifest, batch_size=batch_size)
    with replacing(parts_path(out) / MANIFEST) as temporary:
        temporary.write_text(_text(changed), encoding="utf-8")
    return changed


def _text(manifest: Manifest) -> str:
    return seal(dataclasses.asdict(manifest) | {"job": manifest.job.to_plain()})
