"""Trains a student of phase 2: what its steps do; `TrainingLoop` takes them.

    FOLDER/metrics.jsonl         one line a logged step
    FOLDER/state/step-00000500/  what resuming needs, until the student is trained
    FOLDER/student.safetensors   the student, once it is trained

All that is random comes from (seed, step, process), so students that differ in their masks alone
start, are fed and are stepped alike. Knows nothing of who made the masks.

Source: Sec. 4.2, phase 2.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from malcli.config.retention import RetentionConfig
from malcli.data.crops.epoch_order import EpochOrder
from malcli.data.crops.student_images import Sample, StudentImages, same_samples
from malcli.engine.fit.batches import BATCHES_AHEAD, READ_TIMEOUT, default_workers
from malcli.engine.fit.loop import Losses, TrainingLoop
from malcli.engine.machine.signals import StopFlag, command_of
from malcli.engine.retention.student_batches import StepRates, make_optimizer, solver_of
from malcli.errors import CheckpointError, Interrupted
from malcli.files import replacing
from malcli.model.checkpoint import write_tensors

SAVE_EVERY = 500  # steps
LOG_EVERY = 20
NAME = "student.safetensors"


class StudentTrainer:
    """One student's training, from its start or its last state to its last step.

    Args:
        config: The study's settings.
        folder: The student's own.
        accelerator: Device, precision and processes.
        student: At its start; it has a mask branch if masks are to be learnt.
        images: With targets.
    """

    def __init__(
        self,
        config: RetentionConfig,
        folder: Path,
        accelerator: Accelerator,
        student: nn.Module,
        images: StudentImages,
    ) -> None:
        """Put everything on this process's device."""
        assert images.targets is not None
        self.config, self.folder, self.accelerator, self.images = (
            config, folder, accelerator, images,
        )  # fmt: skip
        world = accelerator.num_processes
        rows = np.unique(images.targets.image)
        self.order = EpochOrder(
            rows, config.batch_size, accelerator.process_index, world, config.seed
        )
        self.solver = solver_of(student)
        lr = self.solver.lr if config.lr is None else config.lr
        self.rates = StepRates(lr * config.batch_size * world, self.order.batches, config.epochs)
        self.student = student.to(accelerator.device)
        optimizer = make_optimizer(self.student, self.solver)
        self.model, self.optimizer = accelerator.prepare(self.student, optimizer)
        self.loop = TrainingLoop(
            folder,
            accelerator,
            self.order,
            {"student": self.student},
            self.optimizer,
            last_step=min(self.rates.total, config.max_steps or self.rates.total),
            log_every=LOG_EVERY,
            save_every=SAVE_EVERY,
            remedy="with another --out",
        )

    def train(self, stop: StopFlag, label: str) -> None:
        """Run to the last step, saving as it goes; a saved state is continued.

        Raises:
            Interrupted: A signal came; the state is saved.
            RunError: The loss is not a number.
            CheckpointError: States are there but none can be read.
        """
        self.loop.restore()
        self.loop.train(
            label,
            stop,
            batches=lambda: batches(self.images, self.order, self.accelerator, self.config),
            step=self._step,
            line=self._line,
            interrupted=lambda signum: interrupted(
                self.config, f"{self.folder.name}: step {self.loop.place.step}", signum
            ),
        )

    def _step(self, samples: list[Sample]) -> Losses:
        """Take one optimiser step; return the student's own losses."""
        place, accelerator = self.loop.place, self.accelerator
        self.rate = self.rates.at(place.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["scale"]
        images, targets = on_device(samples, accelerator.device)
        losses: Losses = {
            name: value.float() for name, value in self.model(images, targets).items()
        }
        self.loop.check_finite(losses, place.step + 1)
        accelerator.backward(torch.stack([*losses.values()]).sum())
        if self.solver.clip is not None:
            accelerator.clip_grad_norm_(self.student.parameters(), self.solver.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loop.seen += len(samples) * accelerator.num_processes
        place.unreadable += sum(not sample.readable for sample in samples)
        return {name: value.detach() for name, value in losses.items()}

    def _line(self, losses: dict[str, float]) -> dict[str, Any]:
        """Return what metrics.jsonl says of a step."""
        return {
            "loss": sum(losses.values()),
            **losses,
            "lr": self.rate,
            "images_per_s": self.loop.per_second(),
            "memory_mb": self.loop.memory_mb(),
            "unreadable": self.loop.place.unreadable,
        }


def batches(
    images: StudentImages,
    order: Iterable[list[tuple[int, int]]],
    accelerator: Accelerator,
    config: RetentionConfig,
) -> Iterator[list[Sample]]:
    """Yield the samples of each batch of (epoch, row) keys, read by worker processes."""
    device = accelerator.device
    workers = default_workers(device) if config.workers is None else config.workers
    loader: DataLoader[Sample] = DataLoader(
        images,  # type: ignore[arg-type]  # has what a Dataset needs, without torch
        batch_sampler=order,
        collate_fn=same_samples,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        timeout=READ_TIMEOUT if workers else 0,
    )
    yield from loader


def on_device(
    samples: list[Sample], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images (3, H, W) in [0, 1] and targets as torchvision's detectors take them."""
    images = [pixels_of(sample, device) for sample in samples]
    targets = [
        {
            "boxes": torch.from_numpy(sample.xyxy_N4).to(device),
            "labels": torch.from_numpy(sample.label_N).to(device),
            "masks": torch.from_numpy(np.ascontiguousarray(sample.mask_NHW)).to(device),
        }
        for sample in samples
    ]
    return images, targets


def pixels_of(sample: Sample, device: torch.device) -> Tensor:
    """Return an image as (3, H, W) float32 RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(sample.pixels_CHW)).to(device).float() / 255


def interrupted(config: RetentionConfig, where: str, signum: int) -> Interrupted:
    """Return the error of a study that a signal ended; it says how to go on."""
    again = replace(config, overwrite=False, resume=True)
    return Interrupted(
        f"stopped ({where}), state kept; resume with: {command_of(again, 'retention')}", signum
    )


def is_trained(folder: Path) -> bool:
    """Return whether a student's training has ended."""
    return (folder / NAME).is_file()


def write_student(student: nn.Module, folder: Path) -> None:
    """Write a trained student, which then needs its states no more."""
    plain = {key: value.detach().cpu().contiguous() for key, value in student.state_dict().items()}
    with replacing(folder / NAME) as temporary:
        write_tensors(plain, temporary)
    shutil.rmtree(folder / "state", ignore_errors=True)


def read_student(student: nn.Module, folder: Path) -> None:
    """Load a trained student's values in place.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        student.load_state_dict(load_file(folder / NAME))
    except Exception as error:
        raise CheckpointError(
            f"{folder / NAME}: damaged; remove it and start the same command again, which trains "
            f"this student anew"
        ) from error
