"""The training loop, in view: step, log, save, draw, stop (Sec. 4.2)."""

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
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
from malcli.engine.fit.objective import batch_losses
from malcli.engine.fit.pictures import draw_crops
from malcli.engine.fit.schedule import build_optimizer, build_schedule, ramp
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.signals import StopFlag, command_of
from malcli.errors import Interrupted, RunError
from malcli.model.checkpoint import Checkpoint, save_checkpoint
from malcli.model.ema import update_teacher
from malcli.model.locate import CHECKPOINT_NAME
from malcli.report.progress import Progress, log

MAX_SKIPPED = 50  # optimiser steps in a row that the loss scaler may skip
SIGNAL_STEPS = 10  # between two looks for signals of other processes, each of which waits for a GPU


class Trainer:
    """The loop and all that it moves: networks, optimiser, order of crops, place in training."""

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
        world = accelerator.num_processes
        self.order = EpochOrder(
            rows,
            config.batch_size,
            accelerator.process_index,
            world,
            config.seed,
            config.grad_accum,
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
        self.loop = run_folder.LoopState(world=world)
        self.clock = Clock()
        self.seen = 0
        self.started = time.perf_counter()
        self.last: dict[str, Any] = {}
        self.skipped_in_row = 0

    @property
    def last_step(self) -> int:
        """The step at which training ends."""
        total = self.schedule.total
        return min(total, self.config.max_steps) if self.config.max_steps else total

    def train(self, stop: StopFlag, continued: bool) -> None:
        """Run to the last step, saving as it goes.

        Raises:
            Interrupted: A signal came; the state is saved.
            RunError: The loss is not a number, or no gradient fits its format.
        """
        if continued:
            self._restore()
        if self.accelerator.is_main_process:
            run_folder.cut_metrics(self.run, self.loop.step)
        with Progress(self.last_step, "steps", "fit", done=self.loop.step) as progress:
            while self.loop.step < self.last_step:
                for batches in self._rest_of_epoch():
                    self._step(batches)
                    self._advance(len(batches))
                    progress.advance(1)
                    if self.loop.step >= self.last_step:
                        break
                    self._stop_if_asked(stop)
        self.save()

    def _rest_of_epoch(self) -> Iterator[list[RoiBatch]]:
        """Return the micro-batches of each optimiser step left in the epoch."""
        self.order.start(self.loop.epoch, self.loop.batch)
        device = self.accelerator.device
        return epoch_batches(self.crops, self.order, device, self.config.workers, self.clock)

    def _stop_if_asked(self, stop: StopFlag) -> None:
        """Save and raise Interrupted if a signal reached any process: all stop at the same step."""
        signum = stop.signum
        if self.accelerator.num_processes > 1:
            if self.accelerator.device.type == "cuda" and self.loop.step % SIGNAL_STEPS:
                return
            signums: Tensor = self.accelerator.gather(
                torch.tensor(signum, device=self.accelerator.device)
            )
            signum = int(signums.max())
        if not signum:
            return
        self.save()
        again = replace(self.config, out=self.run, resume=True, overwrite=False)
        raise Interrupted(
            f"stopped at step {self.loop.step}, state kept; resume with: "
            f"{command_of(again, 'fit')}",
            signum,
        )

    def _step(self, batches: list[RoiBatch]) -> None:
        """Take one optimiser step over its micro-batches, then move the teacher.

        Nothing here waits for a GPU, but the loss scaler of fp16.
        """
        config, loop, accelerator = self.config, self.loop, self.accelerator
        self._seed_step()
        self._set_rate(self.schedule.used(loop.step, config.lr_timing))
        sums = torch.zeros(4, device=accelerator.device)
        for number, batch in enumerate(batches):
            self.seen += len(batch.size_B) * accelerator.num_processes
            loop.unreadable += int((batch.valid_B == 0).sum())
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
        self.sums = sums

    def _seed_step(self) -> None:
        """Seed drop path by step and process, so that a resumed run drops the same paths."""
        place = (self.config.seed, self.loop.step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

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
        # The mean over the global batch becomes a sum over its size plus `mil_norm` (mal_spec 5.2).
        mil = mil * (self.global_batch / (self.global_batch + config.mil_norm))
        step = self.loop.step - self.loop.epoch * self.steps_per_epoch
        mil_ramp = ramp(step, self.loop.epoch, config.mil_ramp)
        crf_ramp = ramp(step, self.loop.epoch, config.crf_ramp)
        total = config.mil_weight * mil_ramp * mil + config.crf_weight * crf_ramp * crf  # Eq. 1
        total = total + config.outside_weight * outside + config.paste_weight * paste
        return total, mil, crf, paste

    def _set_rate(self, rate: float) -> None:
        """Write a learning rate into every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _count_skipped(self, skipped: bool) -> None:
        """Count steps that the loss scaler skipped; too many in a row end the run."""
        self.loop.skipped += skipped
        self.skipped_in_row = self.skipped_in_row + 1 if skipped else 0
        if self.skipped_in_row >= MAX_SKIPPED:
            raise RunError(
                f"{self.run}: the gradients overflowed {MAX_SKIPPED} steps in a row; the last good "
                f"state is kept; lower --lr or take --precision bf16 or fp32"
            )

    def _advance(self, batches: int) -> None:
        """Count a step, then log, save and draw where the settings say so."""
        config, loop = self.config, self.loop
        loop.step += 1
        loop.batch += batches
        if loop.batch >= self.order.batches:
            loop.epoch, loop.batch = loop.epoch + 1, 0
        step, at_end = loop.step, loop.step >= self.last_step
        if at_end or step % config.log_every == 0 or step == 1:
            self._log_line()
        if step % config.save_every == 0 and not at_end:
            self.save()
        wanted = config.pictures_every and (at_end or step % config.pictures_every == 0)
        if wanted and self.accelerator.is_main_process:
            png = draw_crops(config, self.student, self.crops, self.rows)
            run_folder.write_picture(self.run, step, png)
        if self.validate and config.val_every and step % config.val_every == 0 and not at_end:
            self.save()
            if self.accelerator.is_main_process:
                self.validate(step, self.epochs_done())
            self.accelerator.wait_for_everyone()

    def _check_finite(self) -> None:
        """Raise RunError if the last step's loss is NaN or infinite."""
        if not torch.isfinite(self.sums).all():
            raise RunError(
                f"{self.run}: the loss is not a number at step {self.loop.step}; the last good "
                f"state is kept; lower --lr, or take --precision fp32, and --resume"
            )

    def _log_line(self) -> None:
        """Append one line to metrics.jsonl."""
        self._check_finite()
        loss, mil, crf, paste = self.accelerator.reduce(self.sums, reduction="mean").tolist()
        device = self.accelerator.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        else:
            memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.last = {
            "step": self.loop.step,
            "epoch": round(self.epochs_done(), 4),
            "loss": loss,
            "loss_mil": mil,
            "loss_crf": crf,
            **({"loss_paste": paste} if self.config.paste else {}),
            "lr": self.optimizer.param_groups[0]["lr"],
            "crops_per_s": self.crops_per_s(),
            "memory_mb": round(memory / 1e6),
            "skipped": self.loop.skipped,
            "unreadable": self.loop.unreadable,
        }
        if self.accelerator.is_main_process:
            run_folder.append_line(self.run, self.last)

    def crops_per_s(self) -> float:
        """Return crops over wall time since this start, all processes."""
        return round(self.seen / (time.perf_counter() - self.started), 2)

    def epochs_done(self) -> float:
        """Return the epochs done, with fraction."""
        return self.loop.step / self.steps_per_epoch

    def save(self) -> None:
        """Write the state and the checkpoint, from the main process."""
        if self.loop.step:
            self._check_finite()
        if self.accelerator.is_main_process:
            run_folder.save_state(
                self.run,
                self.loop,
                self.student,
                self.teacher,
                self.optimizer,
                self.accelerator.scaler,
            )
            save_checkpoint(self.saved, self.run / CHECKPOINT_NAME)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        """Continue from the newest saved state."""
        loop = run_folder.load_state(
            self.run, self.student, self.teacher, self.optimizer, self.accelerator.scaler
        )
        if loop is None:
            log(f"{self.run}: no saved state; starting from the first step")
            return
        self.loop = run_folder.check_world(
            loop, self.accelerator.num_processes, self.config, self.run
        )
        log(f"{self.run}: resumed at step {loop.step}")
