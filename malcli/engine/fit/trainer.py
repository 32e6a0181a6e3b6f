"""What a step of `fit` does, and what is drawn and validated between steps (Sec. 4.2)."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from malcli.config.fit import FitConfig
from malcli.data.crops.epoch_order import EpochOrder
from malcli.data.crops.training_crops import RoiBatch, TrainingCrops
from malcli.engine.fit import run_folder
from malcli.engine.fit.batches import epoch_batches
from malcli.engine.fit.loop import Losses, TrainingLoop
from malcli.engine.fit.objective import batch_losses
from malcli.engine.fit.pictures import draw_crops
from malcli.engine.fit.schedule import build_optimizer, build_schedule, ramp
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.signals import StopFlag, command_of
from malcli.errors import Interrupted, RunError
from malcli.model.checkpoint import Checkpoint, save_checkpoint
from malcli.model.ema import update_teacher
from malcli.model.locate import CHECKPOINT_NAME
from malcli.report.progress import log

MAX_SKIPPED = 50  # optimiser steps in a row that the loss scaler may skip


class Trainer:
    """The networks, their objective and optimiser; `TrainingLoop` takes the steps."""

    def __init__(
        self,
        config: FitConfig,
        run: Path,
        accelerator: Accelerator,
        saved: Checkpoint,
        crops: TrainingCrops,
        rows: NDArray[np.int64],
        validate: Callable[[int, float], object] | None,
    ) -> None:
        """Put everything on this process's device.

        Args:
            config: The fit's settings.
            run: The run folder.
            accelerator: Device, precision and processes.
            saved: Both networks and what the checkpoint says of them.
            crops: Samples by (epoch, row).
            rows: Rows of the boxes to train on.
            validate: Called with step and epochs every `val_every` steps, after saving.
        """
        self.config = config
        self.run = run
        self.accelerator = accelerator
        self.crops = crops
        self.rows = rows
        world, rank = accelerator.num_processes, accelerator.process_index
        self.order = EpochOrder(
            rows, config.batch_size, rank, world, config.seed, config.grad_accum
        )
        self.steps_per_epoch = self.order.batches // config.grad_accum
        self.global_batch = config.batch_size * config.grad_accum * world
        self.schedule = build_schedule(config, self.global_batch, self.steps_per_epoch)
        self.saved = saved
        self.validate = validate
        self.teacher = saved.teacher.to(accelerator.device)
        self.student = saved.student.to(accelerator.device)
        optimizer = build_optimizer(config, self.student.encoder, self.student.decoder)
        self.model, self.optimizer = accelerator.prepare(self.student, optimizer)
        self.loop = TrainingLoop(
            run,
            accelerator,
            self.order,
            {"student": self.student, "teacher": self.teacher},
            self.optimizer,
            last_step=min(self.schedule.total, config.max_steps or self.schedule.total),
            accumulated=config.grad_accum,
            log_every=config.log_every,
            save_every=config.save_every,
            remedy="and --resume",
            save_also=self._save_checkpoint,
        )
        self.clock = Clock()
        self.skipped_in_row = 0

    def train(self, stop: StopFlag, continued: bool) -> None:
        """Run to the last step, saving as it goes.

        Raises:
            Interrupted: A signal came; the state is saved.
            RunError: The loss is not a number, or no gradient fits its format.
        """
        if continued:
            self._restore()
        self.loop.train(
            "fit",
            stop,
            batches=self._rest_of_epoch,
            step=self._step,
            line=self._line,
            interrupted=lambda signum: interrupted(
                self.config, self.run, f"at step {self.loop.place.step}", signum
            ),
            after_step=self._after_step,
        )
        self.loop.save()

    def _rest_of_epoch(self) -> Iterable[list[RoiBatch]]:
        """Return the micro-batches of each optimiser step left in the epoch."""
        device = self.accelerator.device
        return epoch_batches(self.crops, self.order, device, self.config.workers, self.clock)

    def _step(self, batches: list[RoiBatch]) -> Losses:
        """Take one optimiser step over its micro-batches, then move the teacher.

        Returns the total loss and its MIL, CRF and paste terms, means over the micro-batches.
        Nothing here waits for a GPU, but the loss scaler of fp16.
        """
        config, place, accelerator = self.config, self.loop.place, self.accelerator
        self._set_rate(self.schedule.used(place.step, config.lr_timing))
        sums = torch.zeros(4, device=accelerator.device)
        for number, batch in enumerate(batches):
            self.loop.seen += len(batch.size_B) * accelerator.num_processes
            place.unreadable += int((batch.valid_B == 0).sum())
            last = number == len(batches) - 1
            context = contextlib.nullcontext() if last else accelerator.no_sync(self.model)
            with context:
                losses = self._losses(batch.to(accelerator.device))
                with self.clock.wall("backward"):
                    accelerator.backward(losses[0] / len(batches))
            sums += torch.stack([loss.detach() for loss in losses]) / len(batches)
        with self.clock.wall("update"):
            if config.grad_clip is not None:
                accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
            self.optimizer.step()
            skipped = bool(accelerator.optimizer_step_was_skipped)
            self.optimizer.zero_grad(set_to_none=True)
            if not skipped:
                update_teacher(self.teacher, self.student, config.teacher_momentum)
        self._count_skipped(skipped)
        return dict(zip(("loss", "loss_mil", "loss_crf", "loss_paste"), sums, strict=True))

    def _losses(self, batch: RoiBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the total (Eq. 1), MIL, CRF and paste losses of a batch on the device."""
        config = self.config
        mil, crf, outside, paste = batch_losses(
            config,
            batch,
            self.student,
            self.teacher,
            self.model,
            self.accelerator.autocast,
            self.clock,
        )
        # The mean over the global batch becomes a sum over its size plus `mil_norm` (mal.md 5.2).
        mil = mil * (self.global_batch / (self.global_batch + config.mil_norm))
        epoch = self.loop.place.epoch
        step = self.loop.place.step - epoch * self.steps_per_epoch
        mil_ramp = ramp(step, epoch, config.mil_ramp)
        crf_ramp = ramp(step, epoch, config.crf_ramp)
        total = config.mil_weight * mil_ramp * mil + config.crf_weight * crf_ramp * crf  # Eq. 1
        total = total + config.outside_weight * outside + config.paste_weight * paste
        return total, mil, crf, paste

    def _set_rate(self, rate: float) -> None:
        """Write a learning rate into every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _count_skipped(self, skipped: bool) -> None:
        """Count steps that the loss scaler skipped; too many in a row end the run."""
        self.loop.place.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
        if self.skipped_in_row >= MAX_SKIPPED:
            raise RunError(
                f"{self.run}: the gradients overflowed {MAX_SKIPPED} steps in a row; the last good "
                f"state is kept; lower --lr or take --precision bf16 or fp32"
            )

    def _line(self, losses: dict[str, float]) -> dict[str, Any]:
        """Return what metrics.jsonl says of a step."""
        if not self.config.paste:
            losses.pop("loss_paste")
        return {
            **losses,
            "lr": self.optimizer.param_groups[0]["lr"],
            "crops_per_s": self.loop.per_second(),
            "memory_mb": self.loop.memory_mb(),
            "skipped": self.loop.place.skipped,
            "unreadable": self.loop.place.unreadable,
        }

    def _after_step(self) -> None:
        """Draw and validate where the settings say so."""
        every, step = self.config.pictures_every, self.loop.place.step
        wanted = every and (self.loop.at_end or step % every == 0)
        if wanted and self.accelerator.is_main_process:
            png = draw_crops(self.config, self.student, self.crops, self.rows)
            run_folder.write_picture(self.run, step, png)
        if self._is_validated_here():
            self.loop.save()
            self._validate()

    def _is_validated_here(self) -> bool:
        """Return whether this step's labeler is validated; the last one is by who started it."""
        every, step = self.config.val_every, self.loop.place.step
        due = step > 0 and every and step % every == 0
        return bool(self.validate and due and not self.loop.at_end)

    def _validate(self) -> None:
        """Validate the saved checkpoint, on the main process."""
        if self.validate and self.accelerator.is_main_process:
            self.validate(self.loop.place.step, self.loop.epochs_done())
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        """Write the labeler as it is now."""
        epochs = round(self.loop.epochs_done(), 4)
        trained = {"steps": self.loop.place.step, "epochs": epochs}
        save_checkpoint(replace(self.saved, trained=trained), self.run / CHECKPOINT_NAME)

    def _restore(self) -> None:
        """Continue from the newest saved state, and do what a kill kept from being done there."""
        if not self.loop.restore():
            log(f"{self.run}: no saved state; starting from the first step")
            return
        self.loop.place = run_folder.check_world(
            self.loop.place, self.accelerator.num_processes, self.config, self.run
        )
        step = self.loop.place.step
        log(f"{self.run}: resumed at step {step}")
        if self._is_validated_here() and not run_folder.is_validated(self.run, step):
            self.loop.save()  # its checkpoint may be an older one
            self._validate()


def interrupted(config: FitConfig, run: Path, where: str, signum: int) -> Interrupted:
    """Return the error of a run that a signal ended; it says how to go on."""
    again = replace(config, out=run, resume=True, overwrite=False)
    return Interrupted(
        f"stopped {where}, state kept; resume with: {command_of(again, 'fit')}", signum
    )


@contextlib.contextmanager
def resumable(config: FitConfig, run: Path, where: str, stop: StopFlag) -> Iterator[None]:
    """End work after or between steps at once when a signal comes, saying how to resume the run.

    Raises:
        Interrupted: A signal came, here or in a command that was called, which names itself.
    """
    try:
        with stop.at_once():
            yield
    except KeyboardInterrupt:
        raise interrupted(config, run, where, stop.signum or signal.SIGINT) from None
    except Interrupted as error:
        raise interrupted(config, run, where, error.signum) from None
