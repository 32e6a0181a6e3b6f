"""How long a labelling job will take and how large its output will be, said before it starts.

The time is that of the last job like it on this machine: the rate of every job is remembered, in
the cache folder. The size follows from the boxes: a mask's run lengths grow with its width.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from malcli.config.label import LabelConfig
from malcli.data.boxtable.cache import cache_folder, entry_name
from malcli.engine.label.settings import result_settings
from malcli.errors import MalcliError
from malcli.files import replacing
from malcli.model.locate import locate_checkpoint
from malcli.records import STATUS_OK, BoxTable, xywh_of
from malcli.report.progress import log
from malcli.settings import names_of

# Measured on the labelled COCO photographs (recipes' val split): 2.7 characters of compressed run
# lengths a pixel of box width (correlation 0.97), 200 bytes of other keys, a Parquet file of 0.45
# of the JSON.
BYTES_A_PIXEL, BYTES_A_RECORD, BYTES_AN_IMAGE, PARQUET_SHARE = 2.7, 200, 100, 0.45
ENOUGH = 64  # boxes, at least, whose rate is worth remembering


def estimate(
    config: LabelConfig, table: BoxTable, counts: Mapping[str, int], processes: int = 1
) -> dict[str, Any]:
    """Return what the job will take.

    Args:
        config: Its settings.
        table: Its boxes.
        counts: Boxes of each status, as `survey.check_images` gives.
        processes: How many will share the work.

    Returns:
        `json_mb`, `parquet_mb` of the output, `free_mb` of the disk it would go to; `boxes_per_s`
        of the last job with these settings and `seconds`, both None where there was none.
    """
    size = output_bytes(table)
    rate = known_rate(config)
    boxes = counts.get(STATUS_OK, 0)
    return {
        "json_mb": round(size / 1e6, 3),
        "parquet_mb": round(PARQUET_SHARE * size / 1e6, 3),
        "free_mb": round(free_bytes(config.out) / 1e6, 1),
        "boxes_per_s": rate,
        "seconds": None if rate is None else round(boxes / (rate * processes), 1),
    }


def free_bytes(out: Path | None) -> int:
    """Return what is free on the disk of an output, or of the current folder."""
    folder = Path().absolute() if out is None else out.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def warn_of_space(out: Path, table: BoxTable) -> None:
    """Say so before a job starts whose output and parts may not fit on the disk."""
    size = 2 * output_bytes(table) * (PARQUET_SHARE if out.suffix == ".parquet" else 1)
    free = free_bytes(out)
    if size > free:
        log(
            f"label: {out.parent} has {free / 1e9:.1f} GB free, and the job may need "
            f"{size / 1e9:.1f} GB; parts that are done stay when the disk is full"
        )


def output_bytes(table: BoxTable) -> float:
    """Return about how large the output is as JSON."""
    size = float(BYTES_AN_IMAGE * table.images.num_rows)
    size += pc.sum(pc.binary_length(table.images["extra"])).as_py() or 0
    for batch in table.batches("bbox", "status", "extra"):
        width = np.nan_to_num(xywh_of(batch["bbox"])[:, 2]).clip(0, 1 << 16)
        fine = pc.equal(batch["status"], STATUS_OK).to_numpy(zero_copy_only=False)
        size += BYTES_A_RECORD * batch.num_rows + BYTES_A_PIXEL * float(width[fine].sum())
        size += pc.sum(pc.binary_length(batch["extra"])).as_py() or 0
    return size


def remember_rate(config: LabelConfig, boxes: int, boxes_per_s: float) -> None:
    """Keep the rate of one process for the estimates of later jobs; nothing if it cannot be."""
    path = _rate_file(config)
    if path is None or boxes < ENOUGH:
        return
    with contextlib.suppress(OSError, MalcliError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"boxes_per_s": round(boxes_per_s, 3)}))


def known_rate(config: LabelConfig) -> float | None:
    """Return the rate of the last job with these settings on this machine, if there was one."""
    path = _rate_file(config)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        rate = float(json.loads(path.read_bytes())["boxes_per_s"]) if path else 0.0
        return rate if 0 < rate < float("inf") else None
    return None


def _rate_file(config: LabelConfig) -> Path | None:
    """Return where the rate of such jobs is kept; None if there is no cache or no checkpoint."""
    folder = cache_folder("rates")
    if folder is None:
        return None
    with contextlib.suppress(MalcliError, OSError):
        timed = names_of(LabelConfig, "result")
        about = {key: value for key, value in result_settings(config).items() if key in timed}
        about |= {"device": config.device, "batch_size": config.batch_size}
        about["checkpoint"] = entry_name(locate_checkpoint(config.checkpoint))
        text = json.dumps(about, sort_keys=True, default=str)
        return folder / hashlib.sha256(text.encode()).hexdigest()[:32]
    return None
