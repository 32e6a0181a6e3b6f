"""What the first start of a labelling job decides for all others."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from malcli.config.label import LabelConfig
from malcli.data.images.find import ImageFolder
from malcli.engine.label.crop_sizes import AUTO
from malcli.engine.label.job import Job, Manifest
from malcli.engine.label.parts import PartFolder
from malcli.engine.label.settings import auto_batch, batch_size_of
from malcli.engine.label.thresholds import auto_thresholds
from malcli.engine.machine.processes import choose_device, choose_precision
from malcli.errors import OutputError
from malcli.model.checkpoint import Checkpoint


def manifest_of_output(
    config: LabelConfig, job: Job, parts: PartFolder, stamp: Mapping[str, Any]
) -> Manifest:
    """Return the manifest of a finished job: what its output says of itself decides again.

    Raises:
        OutputError: It does not say it.
        ConfigError: The device is not there.
    """
    try:
        small, medium, large = (float(value) for value in stamp["threshold"])
        crop_size, precision = stamp["crop_size"], str(stamp["precision"])
    except (KeyError, TypeError, ValueError):
        raise OutputError("the output does not say how it was made; use --overwrite") from None
    device = choose_device(config.device)
    return Manifest(
        job=job,
        boxes=parts.table.boxes.num_rows,
        parts=len(parts),
        batch_size=batch_size_of(config) or auto_batch(device.type, crop_size),
        precision=precision,
        threshold=(small, medium, large),
        crop_size=crop_size,
    )


def first_manifest(
    config: LabelConfig, job: Job, parts: PartFolder, folder: ImageFolder, checkpoint: Checkpoint
) -> Manifest:
    """Return what every start of the job will obey.

    Args:
        config: The settings of this start.
        job: Its result-changing settings win over the checkpoint's values.
        parts: The plan, with the boxes.
        folder: Their images, which automatic thresholds look at.
        checkpoint: What labels.

    Raises:
        ConfigError: The device is not there, or cannot take the precision.
    """
    manifest = manifest_of(config, job, checkpoint, parts.table.boxes.num_rows, len(parts))
    if job.settings.get("threshold") != AUTO:
        return manifest
    found = auto_thresholds(
        config,
        checkpoint,
        parts.table,
        folder,
        batch_size=manifest.batch_size,
        precision=manifest.precision,
        crop_size=manifest.crop_size,
    )
    return dataclasses.replace(manifest, threshold=found)


def manifest_of(
    config: LabelConfig, job: Job, checkpoint: Checkpoint, boxes: int, parts: int
) -> Manifest:
    """Return what settings and checkpoint decide; for automatic thresholds the checkpoint's."""
    device = choose_device(config.device)
    threshold = job.settings.get("threshold", AUTO)
    crop_size = job.settings.get("crop_size", checkpoint.architecture.crop_size)
    return Manifest(
        job=job,
        boxes=boxes,
        parts=parts,
        batch_size=batch_size_of(config) or auto_batch(device.type, crop_size),
        precision=choose_precision(config.precision, device),
        threshold=checkpoint.threshold if threshold == AUTO else tuple(threshold),
        crop_size=crop_size,
    )
