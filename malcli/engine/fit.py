"""`malcli fit`: boxes in, a labeler out. Sets everything up; the loop is in `trainer`.

Masks in the boxes' file, and areas that came from them, are never read.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from malcli.config import EvalConfig, FitConfig
from malcli.data.augment import ViewOdds
from malcli.data.formats import open_boxes, select
from malcli.data.images import find_images
from malcli.data.training import CropRule, TrainingCrops, training_rows
from malcli.engine import launch, runs
from malcli.engine.signals import StopFlag
from malcli.engine.trainer import Trainer
from malcli.errors import DataFormatError
from malcli.files import hash_file
from malcli.model.checkpoint import (
    Checkpoint,
    load_labeler_weights,
    read_tensors,
    with_quality,
)
from malcli.model.encoders import licence_of, load_encoder_weights, load_hub_weights
from malcli.model.labeler import Architecture, MaskLabeler, build_labeler
from malcli.model.locate import CHECKPOINT_NAME
from malcli.records import BoxTable
from malcli.report.progress import log
from malcli.settings import parse_thresholds, to_plain


@dataclass
class FitResult:
    """What a run did.

    Attributes:
        run: Its folder.
        checkpoint: The labeler.
        steps: Optimiser steps, those before a resume included.
        crops_per_s: Crops over wall time, this start only, all processes.
        seconds: Wall time by kind of work, this start only, this process.
        last: The last logged line.
        val: Scores on `--val`, with the keys of `eval`.
    """

    run: Path
    checkpoint: Path
    steps: int
    crops_per_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        plain = dataclasses.asdict(self)
        return plain | {"run": str(self.run), "checkpoint": str(self.checkpoint)}


def fit(config: FitConfig) -> FitResult:
    """Train a Mask Auto-Labeler from boxes alone.

    Raises:
        MalcliError: Settings, boxes, images or weights that cannot be used; a NaN loss (RunError);
            SIGINT or SIGTERM, with the state saved (Interrupted).

    Source: Secs. 3 and 4.2.
    """
    threshold = parse_thresholds(config.threshold)
    device = launch.choose_device(config.device)
    precision = launch.choose_precision(config.precision, device)
    accelerator = launch.make_accelerator(device, precision)
    run, continued = runs.choose_run(config)
    accelerator.wait_for_everyone()  # before the first process makes the folder
    table = select(
        open_boxes(config.data, config.format, config.images), config.categories, config.limit
    )
    rows = _rows(config, table)
    folder = find_images(config.data, table, config.images)
    crops = TrainingCrops(table, folder, _rule(config))
    torch.manual_seed(config.seed)
    student, teacher, architecture = _networks(config, continued)
    saved = Checkpoint(student, teacher, architecture, threshold, _public(config))
    if accelerator.is_main_process:
        _describe(config, table, rows, run, f"{device.type}, {precision}")
        runs.prepare_folder(run, config, hash_file(config.data), continued)
    accelerator.wait_for_everyone()
    check = partial(validate, config, run) if config.val else None
    trainer = Trainer(config, run, accelerator, saved, crops, rows, check)
    with StopFlag() as stop, _flush_denormals():
        trainer.train(stop, continued)
    result = FitResult(
        run=run,
        checkpoint=run / CHECKPOINT_NAME,
        steps=trainer.loop.step,
        crops_per_s=trainer.crops_per_s(),
        seconds={kind: round(value, 2) for kind, value in trainer.watch.seconds.items()},
        last=trainer.last,
    )
    if accelerator.is_main_process:
        if check:
            result.val = check(trainer.loop.step, trainer.epochs_done())
            with_quality(result.checkpoint, _quality(config, result.val))
        runs.finish(run)
    accelerator.wait_for_everyone()
    return result


def validate(config: FitConfig, run: Path, step: int, epoch: float) -> dict[str, Any]:
    """Label and score the validation boxes with the run's checkpoint; add a line to the metrics.

    Human masks are read here only, after training on boxes alone.
    """
    from malcli.engine.evaluate import evaluate

    assert config.val is not None
    scores: dict[str, Any] = evaluate(
        EvalConfig(
            gt=config.val,
            images=config.val_images,
            checkpoint=run / CHECKPOINT_NAME,
            device=config.device,
            max_pixels=config.max_pixels,
            bootstrap=0,
        )
    ).to_json()
    runs.append_line(run, {"step": step, "epoch": round(epoch, 4), "val": scores})
    return scores


def _rows(config: FitConfig, table: BoxTable) -> NDArray[np.int64]:
    """Return the rows to train on; none is an error."""
    rows = training_rows(table, config.min_box_area, config.keep_crowd)
    if not len(rows):
        raise DataFormatError(
            config.data,
            f"none of its {table.boxes.num_rows} boxes can be trained on (area above "
            f"{config.min_box_area:g} square pixels); lower --min-box-area",
        )
    return rows


def _rule(config: FitConfig) -> CropRule:
    """Return how boxes become crops."""
    return CropRule(
        crop_size=config.crop_size,
        theta=config.theta,
        expansion=config.expansion,
        border=config.border,
        max_pixels=config.max_pixels,
        seed=config.seed,
        odds=ViewOdds(config.flip, config.jitter, config.grey, config.blur),
    )


def _networks(config: FitConfig, continued: bool) -> tuple[MaskLabeler, MaskLabeler, Architecture]:
    """Return student, teacher and what builds them, with their starting weights."""
    architecture = Architecture(
        encoder=config.encoder,
        decoder=config.decoder,
        crop_size=config.crop_size,
        channels=config.channels,
        key_pool=config.key_pool,
        key_layers=config.key_layers,
        upsample_before=config.upsample_before,
        size_scaling=config.size_scaling,
    )
    student = build_labeler(architecture)
    # A resumed run has all weights in its own state.
    if not continued:
        _start_weights(config, student)
    if config.teacher_start == "copy":
        teacher = copy.deepcopy(student)
    else:
        teacher = build_labeler(architecture)
        teacher.encoder.load_state_dict(student.encoder.state_dict())
    return student.train(), teacher.eval().requires_grad_(False), architecture


def _start_weights(config: FitConfig, student: MaskLabeler) -> None:
    """Load pretrained weights: from the hub, a local file, or none."""
    if config.weights == "none":
        return
    if config.weights is None:
        load_hub_weights(student.encoder, config.encoder, config.crop_size)
        return
    path = Path(config.weights)
    tensors = read_tensors(path)
    if any(key.startswith("student.") for key in tensors):
        load_labeler_weights(student, tensors, path)
    else:
        load_encoder_weights(student.encoder, tensors, path, config.crop_size)


def _public(config: FitConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint carries: files by name only, no machine's folders."""
    machine = ("out", "images", "val_images", "workers", "resume", "overwrite")
    plain = {key: value for key, value in to_plain(config).items() if key not in machine}
    for key in ("data", "val", "weights"):
        if plain.get(key) not in (None, "none"):
            plain[key] = Path(plain[key]).name
    return plain | {"encoder_licence": licence_of(config.encoder)}


def _quality(config: FitConfig, scores: dict[str, Any]) -> dict[str, Any]:
    """Return what the checkpoint says of its measured quality."""
    assert config.val is not None
    return {
        "data": config.val.name,
        "instances": scores["counts"]["instances"],
        "miou": scores["miou"],
        "boundary_iou": scores["boundary_iou"],
        "AP": scores["ap"]["AP"],
    }


def _describe(
    config: FitConfig, table: BoxTable, rows: NDArray[np.int64], run: Path, machine: str
) -> None:
    """Say on stderr what is about to happen."""
    log(f"fit: {len(rows)} of {table.boxes.num_rows} boxes in {table.images.num_rows} images")
    for kind, count in table.problems.counts.items():
        log(f"fit: {count} {kind}, such as {table.problems.examples[kind][0]}")
    log(f"fit: encoder {config.encoder}, its weights' licence: {licence_of(config.encoder)}")
    log(f"fit: {machine}; run folder {run}")


@contextlib.contextmanager
def _flush_denormals() -> Iterator[None]:
    """Count denormal floats as zero on the CPU, where they slow the mean field down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
