"""`malcli fit`: boxes in, a labeler out. Sets everything up; the steps are in `trainer`.

Masks in the boxes' file, and areas that came from them, are never read.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.data.crops.augment import ViewOdds
from malcli.data.crops.composites import Composites
from malcli.data.crops.training_crops import CropRule, TrainingCrops, training_rows
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import ImageFolder, find_images
from malcli.engine.fit import run_folder
from malcli.engine.fit.networks import build_networks, with_architecture_of_weights
from malcli.engine.fit.states import has_state
from malcli.engine.fit.trainer import Trainer, resumable
from malcli.engine.inputs import with_sizes
from malcli.engine.label.crop_sizes import AUTO
from malcli.engine.label.settings import auto_batch
from malcli.engine.label.thresholds import auto_thresholds
from malcli.engine.machine import processes
from malcli.engine.machine.failures import failures_named
from malcli.engine.machine.signals import StopFlag
from malcli.errors import DataFormatError
from malcli.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    with_quality,
)
from malcli.model.locate import CHECKPOINT_NAME
from malcli.model.pretrained import licence_of
from malcli.records import BoxTable
from malcli.report.progress import log
from malcli.report.shown import Shown
from malcli.settings import parse_thresholds, to_public

if TYPE_CHECKING:
    from rich.console import RenderableType

UNTIL_KNOWN = (0.5, 0.5, 0.5)  # thresholds of `auto` while training goes on


@dataclass
class FitResult(Shown):
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

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.tables import fit_table

        return fit_table(self.to_json())

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
    is_auto = config.threshold == AUTO
    threshold = UNTIL_KNOWN if is_auto else parse_thresholds(config.threshold)
    device = processes.choose_device(config.device)
    precision = processes.choose_precision(config.precision, device)
    accelerator = processes.make_accelerator(device, precision)
    given, config = config, with_architecture_of_weights(config)
    run, continued = run_folder.choose_run(config)
    accelerator.wait_for_everyone()  # before the first process makes the folder
    read = open_boxes(config.data, config.format, config.images, with_masks=False, exif=config.exif)
    sized = with_sizes(read, config.data, config.images, config.exif)
    table = select(sized, config.categories, config.limit)
    rows = _rows(config, table)
    folder = find_images(config.data, table, config.images, config.exif, config.max_failures)
    crops = TrainingCrops(table, folder, _rule(config), _composites(config, table))
    with StopFlag() as stop, failures_named(run):
        with _flush_denormals():
            torch.manual_seed(config.seed)
            student, teacher, architecture = build_networks(config, continued and has_state(run))
            saved = Checkpoint(student, teacher, architecture, threshold, _public(config))
            check = partial(validate, config, run, stop) if config.val else None
            trainer = Trainer(config, run, accelerator, saved, crops, rows, check)
            if accelerator.is_main_process:
                _describe_data(crops, table, rows)
                _describe_start(given, trainer, f"{device.type}, {precision}", continued)
                run_folder.prepare_folder(run, config, continued)
            accelerator.wait_for_everyone()
            trainer.train(stop, continued)
        result = _result(trainer)
        if accelerator.is_main_process:
            if is_auto:
                with resumable(config, run, "while it chose the thresholds", stop):
                    save_thresholds(config, result.checkpoint, table, crops.folder)
            if check:
                result.val = check(result.steps, trainer.loop.epochs_done())
                with_quality(result.checkpoint, _quality(config, result.val))
            finished = load_checkpoint(result.checkpoint)
            run_folder.finish(run, finished.trained, measured=bool(finished.quality))
        accelerator.wait_for_everyone()
    return result


def _result(trainer: Trainer) -> FitResult:
    """Return what a run did, before it is measured."""
    return FitResult(
        run=trainer.run,
        checkpoint=trainer.run / CHECKPOINT_NAME,
        steps=trainer.loop.place.step,
        crops_per_s=trainer.loop.per_second(),
        seconds={kind: round(value, 2) for kind, value in trainer.clock.seconds.items()},
        last=trainer.loop.last,
    )


def validate(
    config: FitConfig, run: Path, stop: StopFlag, step: int, epoch: float
) -> dict[str, Any]:
    """Label and score the validation boxes with the run's checkpoint; add a line to the metrics.

    Human masks are read here only, after training on boxes alone.

    Raises:
        Interrupted: A signal came; it says how to resume the run.
    """
    from malcli.engine.eval.masks import evaluate

    assert config.val is not None
    with resumable(config, run, f"in the validation at step {step}", stop):
        scores: dict[str, Any] = evaluate(
            EvalConfig(
                gt=config.val,
                images=config.val_images,
                checkpoint=run / CHECKPOINT_NAME,
                device=config.device,
                max_pixels=config.max_pixels,
                exif=config.exif,
                max_failures=config.max_failures,
                bootstrap=0,
            )
        ).to_json()
    run_folder.write_validation(run, step, {"epoch": round(epoch, 4), "val": scores})
    return scores


def save_thresholds(
    config: FitConfig, checkpoint: Path, table: BoxTable, folder: ImageFolder
) -> None:
    """Write into a checkpoint the thresholds that fit the training boxes best."""
    loaded = load_checkpoint(checkpoint)
    crop_size = loaded.architecture.crop_size
    found = auto_thresholds(
        LabelConfig(
            boxes=config.data,
            device=config.device,
            workers=config.workers,
            max_pixels=config.max_pixels,
            exif=config.exif,
        ),
        loaded,
        table,
        folder,
        batch_size=auto_batch(processes.choose_device(config.device).type, crop_size),
        precision="auto",
        crop_size=crop_size,
    )
    save_checkpoint(dataclasses.replace(loaded, threshold=found), checkpoint)


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
        box_mask=config.box_mask,
        size_classes=config.size_classes,
        max_pixels=config.max_pixels,
        seed=config.seed,
        odds=ViewOdds(config.flip, config.jitter, config.grey, config.blur),
    )


def _composites(config: FitConfig, table: BoxTable) -> Composites | None:
    """Return what pastes objects over images; None without `--paste`."""
    if config.paste is None:
        return None
    masks = open_boxes(config.paste, None, config.images)
    folder = find_images(config.paste, masks, config.images, config.exif, config.max_failures)
    return Composites(table, masks, folder, config.paste_share, config.max_pixels)


def _public(config: FitConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint carries: files by name only, no machine's folders."""
    return to_public(config) | {"encoder_licence": licence_of(config.encoder)}


def _quality(config: FitConfig, scores: dict[str, Any]) -> dict[str, Any]:
    """Return what the checkpoint says of its measured quality; empty if no mask was compared."""
    assert config.val is not None
    if scores["miou"] is None or scores["miou"]["all"] is None:
        return {}
    return {
        "data": config.val.name,
        "instances": scores["counts"]["instances"],
        "miou": scores["miou"],
        "boundary_iou": scores["boundary_iou"],
        "AP": scores["ap"]["AP"],
    }


def _describe_data(crops: TrainingCrops, table: BoxTable, rows: NDArray[np.int64]) -> None:
    """Say on stderr what is trained on."""
    log(f"fit: {len(rows)} of {table.boxes.num_rows} boxes in {table.images.num_rows} images")
    for kind, count in table.problems.counts.items():
        log(f"fit: {count} {kind}, such as {table.problems.examples[kind][0]}")
    if crops.composites:
        known = sum(mask is not None for mask in crops.composites.masks)
        log(f"fit: {len(crops.composites.donors)} of {known} masks give objects to paste")


def _describe_start(given: FitConfig, trainer: Trainer, machine: str, continued: bool) -> None:
    """Say on stderr what is trained, how, and where to.

    Args:
        given: The settings before the weights' own architecture took their place.
        trainer: Ready to start.
        machine: Device and precision.
        continued: The values are those of an earlier start.
    """
    config, student = trainer.config, trainer.student
    encoder = student.encoder
    if config != given:
        log(f"fit: the architecture is that of {given.weights}, at crops of {config.crop_size}")
    elif config.stem == "convolutional" and config.weights != "none" and not continued:
        log("fit: the convolutional stem starts from random values, not from a pretrained one")
    side = config.crop_size // encoder.stride
    log(
        f"fit: encoder {config.encoder} (weights: {licence_of(config.encoder)}), "
        f"{encoder.channels} x {side} x {side} features at stride {encoder.stride}"
    )
    millions = sum(parameter.numel() for parameter in student.parameters()) / 1e6
    log(
        f"fit: decoder {config.decoder}, {student.grid} x {student.grid} masks; "
        f"{millions:.1f} million parameters; {machine}"
    )
    world = trainer.accelerator.num_processes
    log(
        f"fit: batches of {trainer.global_batch} ({config.batch_size} x {config.grad_accum} "
        f"accumulated x {world} process{'es' if world > 1 else ''}), peak learning rate "
        f"{trainer.schedule.peak:.3g}, {trainer.steps_per_epoch} steps an epoch, "
        f"{trainer.loop.last_step} in all; run folder {trainer.run}"
    )


@contextlib.contextmanager
def _flush_denormals() -> Iterator[None]:
    """Count denormal floats as zero on the CPU, where they slow the mean field down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
