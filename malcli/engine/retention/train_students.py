"""Phase 2: every student of a study is trained, or taken up where it was, and predicts.

Source: Sec. 4.2, phase 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from malcli.config.retention import RetentionConfig
from malcli.data.crops.student_images import StudentImages, Targets
from malcli.engine.machine import processes
from malcli.engine.machine.failures import failures_named
from malcli.engine.machine.signals import StopFlag
from malcli.engine.retention.student_results import predict
from malcli.engine.retention.student_trainer import (
    StudentTrainer,
    is_trained,
    read_student,
    write_student,
)
from malcli.engine.retention.study import TrainingSide, ValidationSide, prepare_study
from malcli.model.student import build_student, without_masks
from malcli.report.progress import log


def run_students(
    config: RetentionConfig,
    names: Sequence[str],
    job: dict[str, Any],
    training: TrainingSide,
    validation: ValidationSide,
) -> bool:
    """Leave `OUT/<name>.json` of every student; what is there already stays.

    Args:
        config: The study's settings.
        names: `human`, `malcli`, `boxes`.
        job: What the folder says of the study.
        training: What they learn.
        validation: What they predict.

    Returns:
        Whether this is the first process.

    Raises:
        MalcliError: As `retention`.
    """
    device = processes.choose_device(config.device)
    precision = processes.choose_precision(config.precision, device)
    accelerator = processes.make_accelerator(device, precision)
    with accelerator.local_main_process_first():  # one process loads down for all
        _start(config, names[-1], len(training.categories))  # refused before anything is written
    accelerator.wait_for_everyone()  # before the first process makes the folder
    started = {"precision": precision, "processes": accelerator.num_processes}
    prepare_study(config, job, started, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    log(f"retention: student {config.student}, {device.type}, {precision}")
    with StopFlag() as stop, failures_named(config.out):
        for name in names:
            if not (config.out / f"{name}.json").is_file():
                targets = training.malcli if name == "malcli" else training.human
                _run_student(config, name, targets, training, validation, precision, stop)
    return bool(accelerator.is_main_process)


def _start(config: RetentionConfig, name: str, classes: int) -> nn.Module:
    """Return a student at the start that all students of the study share."""
    torch.manual_seed(config.seed)
    sides = config.image_size, config.max_image_size
    student = build_student(config.student, classes, *sides, config.weights)
    return without_masks(student) if name == "boxes" else student


def _run_student(
    config: RetentionConfig,
    name: str,
    targets: Targets,
    training: TrainingSide,
    validation: ValidationSide,
    precision: str,
    stop: StopFlag,
) -> None:
    """Train one student, unless it is trained, and write what it finds."""
    # One for each student: a scaler's state must not go from one to the next.
    device = processes.choose_device(config.device)
    accelerator = processes.make_accelerator(device, precision)
    folder = config.out / "students" / name
    student = _start(config, name, len(training.categories))
    if is_trained(folder):
        read_student(student, folder)
    else:
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        learnt = StudentImages(
            training.folder, training.images, targets, config.max_pixels, config.seed
        )
        trainer = StudentTrainer(config, folder, accelerator, student, learnt)
        trainer.train(stop, f"train on {name}")
        if accelerator.is_main_process:
            write_student(student, folder)
        accelerator.wait_for_everyone()
    shown = StudentImages(
        validation.folder, validation.table.images, None, config.max_pixels, config.seed
    )
    ids = validation.table.images["id"].to_pylist()
    target = config.out / f"{name}.json"
    predict(student, shown, accelerator, config, sorted(training.categories), ids, target, stop)
    accelerator.free_memory()
