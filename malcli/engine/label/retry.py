"""`label --retry-skipped`: does again the boxes of a finished job that the machine kept from it.

    OUT.parts/kept/part-00003.parquet   what part 3 keeps from the output

The output becomes an unfinished job again, whose parts lack those boxes alone; it stays in place
until the merge replaces it, so that shards, processes and restarts work as in any job.
"""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes
from malcli.engine.label import job as jobs
from malcli.engine.label.job import Job, Manifest
from malcli.engine.label.parts import Outcome, PartFolder
from malcli.engine.machine.signals import command_of
from malcli.errors import OutputError
from malcli.files import write_error
from malcli.records import BoxTable, Record, records_of
from malcli.report.progress import log

RETRIED = ("skipped:no-image", "skipped:bad-image", "skipped:memory")
KEPT = "kept"


def retried_boxes(counts: Mapping[str, Any]) -> int:
    """Return how many boxes of a job with these counts another try may label."""
    return sum(int(counts.get(status, 0)) for status in RETRIED)


def tell_retried(config: LabelConfig, counts: Mapping[str, Any]) -> None:
    """Say how many boxes of a finished job another try may label, and the command that does."""
    if count := retried_boxes(counts):
        again = dataclasses.replace(
            config, retry_skipped=True, merge=False, resume=False, overwrite=False
        )
        log(
            f"label: {count} boxes were skipped since their image was not there or unreadable, or "
            "memory did not suffice; once that is mended, do them again with: "
            + command_of(again, "label")
        )


def identity(path: Path) -> tuple[int, ...]:
    """Return what tells a file from another one that took its place."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def is_retry(out: Path) -> bool:
    """Return whether the parts of an output are those of a retry."""
    return (jobs.parts_path(out) / KEPT).is_dir()


def reopen(config: LabelConfig, job: Job, out: Path, parts: PartFolder) -> Manifest:
    """Make parts of a finished output, without the boxes to retry, and return their manifest.

    Args:
        config: For the batch size and the device.
        job: Whose output it is.
        out: The output.
        parts: The plan; its folder is made. If another process was faster, its parts hold.

    Raises:
        OutputError: The output is not as the job left it, or its folder cannot be written to.
        RunError: The disk is full.
    """
    from malcli.engine.label.plan import manifest_of_output

    made = open_boxes(out)
    if made.boxes.num_rows != parts.table.boxes.num_rows:
        raise OutputError(f"{out}: lacks boxes of its job; start anew with --overwrite")
    manifest = manifest_of_output(config, job, parts, jobs.read_stamp(out) or {})
    try:
        draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
        draft.mkdir()
        try:
            _fill(draft, made, parts, manifest.digest())
            jobs.write_manifest_to(draft, manifest)
            os.rename(draft, parts.path)  # fails where another process was faster
        except OSError:
            if not is_retry(out):
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise write_error(error, parts.path) from error
    return jobs.read_manifest(out) or manifest


def kept_outcomes(parts: PartFolder, index: int) -> list[Outcome]:
    """Return what a part keeps from the output; nothing where it is made anew."""
    kept = PartFolder(parts.path / KEPT, parts.table)
    kept.job = parts.job
    try:
        return kept.outcomes(index)
    except (OSError, ValueError, OutputError):  # no retry, all of its boxes are retried, or damaged
        return []


def _fill(folder: Path, made: BoxTable, parts: PartFolder, job: str) -> None:
    """Write the parts that are whole, and of the others what they keep."""
    whole, kept = (PartFolder(path, parts.table) for path in (folder, folder / KEPT))
    whole.job = kept.job = job
    kept.path.mkdir()
    for index in range(len(parts)):
        rows = parts.rows(index)
        outcomes = [
            _outcome(int(row), record)
            for row, record in zip(rows, records_of(made, rows), strict=True)
        ]
        again = [one for one in outcomes if one.status in RETRIED]
        if not again:
            whole.write(index, outcomes)
        elif len(again) < len(outcomes):
            kept.write(index, [one for one in outcomes if one.status not in RETRIED])


def _outcome(row: int, record: Record) -> Outcome:
    """Return what became of a box from its annotation in the output."""
    mask, status = record.get("segmentation"), str(record.get("malcli_status"))
    if not isinstance(mask, dict):
        return Outcome(row, status)
    height, width = mask["size"]
    score = float(record["malcli_score"])
    return Outcome(row, status, height, width, mask["counts"], int(record["area"]), score)
