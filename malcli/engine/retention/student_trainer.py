"""Trains a student of phase 2: the plain loop, in view.

    FOLDER/metrics.jsonl         one line a logged step
    FOLDER/state/step-000500/    what resuming needs, until the student is trained
    FOLDER/student.safetensors   the student, once it is trained

All that is random comes from (seed, step, process), so students that differ in their masks alone
start, are fed and are stepped alike. Knows nothing of who made the masks.

Source: Sec. 4.2, phase 2.
"""

import resource
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from malcli.config.retention import RetentionConfig
from malcli.data.crops.epoch_order import EpochOrder
from malcli.data.crops.student_images import Sample, StudentImages, same_samples
from malcli.engine.fit import run_folder
from malcli.engine.fit.batches import BATCHES_AHEAD, READ_TIMEOUT, default_workers
from malcli.engine.machine.signals import StopFlag, command_of
from malcli.engine.retention.student_batches import StepRates, make_optimizer, solver_of
from malcli.errors import CheckpointError, Interrupted, RunError
from malcli.files import replacing
from malcli.report.progress import Progress

SAVE_EVERY = 500  # steps
LOG_EVERY = 20
SIGNAL_STEPS = 10  # between two looks for signals of other processes, each of which waits for a GPU
NAME = "student.safetensors"
NO_TEACHER = nn.Module()  # a run's state has room for one


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
        self.loop = run_folder.LoopState(world=world)
        self.started, self.seen = time.perf_counter(), 0

    @property
    def last_step(self) -> int:
        """The step at which training ends."""
        total = self.rates.total
        return min(total, self.config.max_steps) if self.config.max_steps else total

    def train(self, stop: StopFlag, label: str) -> None:
        """Run to the last step, saving as it goes; a saved state is continued.

        Raises:
            Interrupted: A signal came; the state is saved.
            RunError: The loss is not a number.
            CheckpointError: States are there but none can be read.
        """
        self._restore()
        if self.accelerator.is_main_process:
            run_folder.cut_metrics(self.folder, self.loop.step)
        with Progress(self.last_step, "steps", label, done=self.loop.step) as progress:
            while self.loop.step < self.last_step:
                self.order.start(self.loop.epoch, self.loop.batch)
                for samples in batches(self.images, self.order, self.accelerator, self.config):
                    self._step(samples)
                    progress.advance(1)
                    if self.loop.step >= self.last_step:
                        break
                    self._stop_if_asked(stop)

    def _step(self, samples: list[Sample]) -> None:
        """Take one optimiser step and count it."""
        loop, accelerator = self.loop, self.accelerator
        place = (self.config.seed, loop.step, accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        rate = self.rates.at(loop.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        images, targets = on_device(samples, accelerator.device)
        losses: dict[str, Tensor] = self.model(images, targets)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            raise RunError(
                f"{self.folder}: the student's loss is not a number at step {loop.step + 1}; the "
                f"last saved state is kept; lower --lr or take --precision fp32, with another --out"
            )
        accelerator.backward(total)
        if self.solver.clip is not None:
            accelerator.clip_grad_norm_(self.student.parameters(), self.solver.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seen += len(samples) * accelerator.num_processes
        loop.unreadable += sum(not sample.readable for sample in samples)
        loop.step, loop.batch = loop.step + 1, loop.batch + 1
        if loop.batch >= self.order.batches:
            loop.epoch, loop.batch = loop.epoch + 1, 0
        at_end = loop.step >= self.last_step
        if at_end or loop.step % LOG_EVERY == 0 or loop.step == 1:
            self._log_line(losses, rate)
        if loop.step % SAVE_EVERY == 0 and not at_end:
            self._save()

    def _log_line(self, losses: dict[str, Tensor], rate: float) -> None:
        """Append one line to metrics.jsonl."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        mean = self.accelerator.reduce(values, reduction="mean").tolist()
        if not self.accelerator.is_main_process:
            return
        device = self.accelerator.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        else:
            memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = {
            "step": self.loop.step,
            "epoch": round(self.loop.step / self.rates.steps_per_epoch, 4),
            "loss": sum(mean),
            **dict(zip(losses, mean, strict=True)),
            "lr": rate,
            "images_per_s": round(self.seen / (time.perf_counter() - self.started), 2),
            "memory_mb": round(memory / 1e6),
            "unreadable": self.loop.unreadable,
        }
        run_folder.append_line(self.folder, line)

    def _stop_if_asked(self, stop: StopFlag) -> None:
        """Save and raise Interrupted if a signal reached any process: all stop at the same step."""
        signum = stop.signum
        if self.accelerator.num_processes > 1:
            if self.accelerator.device.type == "cuda" and self.loop.step % SIGNAL_STEPS:
                return
            told = torch.tensor(signum, device=self.accelerator.device)
            signums: Tensor = self.accelerator.gather(told)
            signum = int(signums.max())
        if signum:
            self._save()
            raise interrupted(self.config, f"{self.folder.name}: step {self.loop.step}", signum)

    def _save(self) -> None:
        """Write the state, from the main process."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            run_folder.save_state(
                self.folder, self.loop, self.student, NO_TEACHER, self.optimizer, scaler
            )
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        """Continue from the newest saved state, if there is one."""
        loop = run_folder.load_state(
            self.folder, self.student, NO_TEACHER, self.optimizer, self.accelerator.scaler
        )
        self.loop = loop or self.loop


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
        save_file(plain, temporary)
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
