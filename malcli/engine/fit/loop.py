"""The loop of a training, of `fit` and of a student alike: resume, step, log, save, stop.

Knows nothing of what a step does, only that it returns losses. What is on disk after a kill at any
moment leads to the same end: what belongs to a step is written before the state that says so.
"""

import resource
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from malcli.data.crops.epoch_order import EpochOrder
from malcli.engine.fit import run_folder
from malcli.engine.fit.states import LoopState, load_state, remove_old_states, save_state
from malcli.engine.machine.signals import StopFlag
from malcli.errors import Interrupted, RunError
from malcli.report.progress import Progress

SIGNAL_STEPS = 10  # between two looks for signals of other processes, each of which waits for a GPU
Batch = TypeVar("Batch")
Losses = dict[str, Tensor]  # scalars by the names that metrics.jsonl gives them


class TrainingLoop:
    """Takes steps from the last saved state to the last step.

    Attributes:
        place: Where training stands.
        last: The last logged line.
        seen: Samples since this start, all processes; counted by the steps.
    """

    def __init__(
        self,
        run: Path,
        accelerator: Accelerator,
        order: EpochOrder,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        last_step: int,
        accumulated: int = 1,
        log_every: int,
        save_every: int,
        remedy: str,
        save_also: Callable[[], None] | None = None,
    ) -> None:
        """Start the clock of the speed.

        Args:
            run: Folder of the metrics and states.
            accelerator: Device, precision and processes.
            order: The batches of an epoch, and the seed.
            networks: What a state holds, by name.
            optimizer: As prepared; a state holds its moments.
            last_step: The step at which training ends.
            accumulated: Batches of an optimiser step.
            log_every: Steps between lines of metrics.jsonl; the first and last step have one, too.
            save_every: Steps between states.
            remedy: How to go on after a loss that is not a number: `and --resume`.
            save_also: Writes, on the main process, what belongs to a state beside it.
        """
        self.run = run
        self.accelerator = accelerator
        self.order = order
        self.networks = networks
        self.optimizer = optimizer
        self.last_step = last_step
        self.accumulated = accumulated
        self.log_every, self.save_every = log_every, save_every
        self.remedy = remedy
        self.save_also = save_also
        self.place = LoopState(world=accelerator.num_processes)
        self.last: dict[str, Any] = {}
        self.seen = 0
        self._started = time.perf_counter()
        self._losses: Losses = {}
        self._restored = self._saved = -1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.order.batches // self.accumulated

    @property
    def at_end(self) -> bool:
        """Whether the last step is done."""
        return self.place.step >= self.last_step

    def epochs_done(self) -> float:
        """Return the epochs done, with fraction."""
        return self.place.step / self.steps_per_epoch

    def per_second(self) -> float:
        """Return samples over wall time since this start, all processes."""
        return round(self.seen / (time.perf_counter() - self._started), 2)

    def memory_mb(self) -> int:
        """Return the most memory that was taken: the GPU's, or on CPU this process's."""
        device = self.accelerator.device
        if device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(device) / 1e6)
        return round(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)

    def restore(self) -> bool:
        """Continue from the newest saved state; return whether there is one.

        Raises:
            CheckpointError: States are there but none can be read.
        """
        scaler = self.accelerator.scaler
        place = load_state(self.run, self.networks, self.optimizer, scaler)
        if place is not None:
            self.place = place
            self._restored = place.step
        if self.accelerator.is_main_process:
            run_folder.cut_metrics(self.run, self.place.step)
        return place is not None

    def train(
        self,
        label: str,
        stop: StopFlag,
        *,
        batches: Callable[[], Iterable[Batch]],
        step: Callable[[Batch], Losses],
        line: Callable[[dict[str, float]], dict[str, Any]],
        interrupted: Callable[[int], Interrupted],
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Run to the last step, saving as it goes, but not at the end.

        Args:
            label: What the progress is called.
            stop: Looked at between two steps.
            batches: What the steps of the rest of an epoch take, `order` being at its start.
            step: Takes one optimiser step.
            line: What metrics.jsonl says of a step beside its number and epoch, from the losses'
                means over processes.
            interrupted: The error of a signal.
            after_step: Called once a step is counted and logged, before its state is saved.

        Raises:
            Interrupted: A signal came; the state is saved.
            RunError: The loss is not a number, or the disk is full.
        """
        with Progress(self.last_step, "steps", label, done=self.place.step) as progress:
            while not self.at_end:
                self.order.start(self.place.epoch, self.place.batch)
                for batch in batches():
                    self._seed_step()
                    self._losses = step(batch)
                    self._count()
                    if self.at_end or self.place.step % self.log_every == 0 or self.place.step == 1:
                        self._log(line)
                    if after_step:
                        after_step()
                    if self.place.step % self.save_every == 0 and not self.at_end:
                        self.save()
                    progress.advance(1)
                    if self.at_end:
                        break
                    self._stop_if_asked(stop, interrupted)

    def check_finite(self, losses: Losses, step: int) -> None:
        """Raise RunError if a step's loss is NaN or infinite."""
        if losses and not torch.isfinite(torch.stack([*losses.values()])).all():
            raise RunError(
                f"{self.run}: the loss is not a number at step {step}; the last good state is "
                f"kept; lower --lr, or take --precision fp32, {self.remedy}"
            )

    def save(self) -> None:
        """Write the state, and what belongs to it, unless this step's is written.

        A state that was just restored stays as it is: replacing it would risk it for nothing.
        """
        if self._saved == self.place.step:
            return
        self.check_finite(self._losses, self.place.step)
        if self.accelerator.is_main_process:
            if self._restored != self.place.step:
                scaler = self.accelerator.scaler
                run_folder.sync_metrics(self.run)
                save_state(self.run, self.place, self.networks, self.optimizer, scaler)
            remove_old_states(self.run)
            if self.save_also:
                self.save_also()
        self._saved = self.place.step
        self.accelerator.wait_for_everyone()

    def _seed_step(self) -> None:
        """Seed by step and process, so that a resumed run draws the same."""
        place = (self.order.seed, self.place.step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _count(self) -> None:
        """Count a step."""
        place = self.place
        place.step += 1
        place.batch += self.accumulated
        if place.batch >= self.order.batches:
            place.epoch, place.batch = place.epoch + 1, 0

    def _log(self, line: Callable[[dict[str, float]], dict[str, Any]]) -> None:
        """Append one line to metrics.jsonl."""
        self.check_finite(self._losses, self.place.step)
        values = torch.stack([*self._losses.values()])
        means: list[float] = self.accelerator.reduce(values, reduction="mean").tolist()
        named = dict(zip(self._losses, means, strict=True))
        where = {"step": self.place.step, "epoch": round(self.epochs_done(), 4)}
        self.last = where | line(named)
        if self.accelerator.is_main_process:
            run_folder.append_line(self.run, self.last)

    def _stop_if_asked(self, stop: StopFlag, interrupted: Callable[[int], Interrupted]) -> None:
        """Save and raise Interrupted if a signal reached any process: all stop at the same step."""
        signum = stop.signum
        if self.accelerator.num_processes > 1:
            if self.accelerator.device.type == "cuda" and self.place.step % SIGNAL_STEPS:
                return
            told = torch.tensor(signum, device=self.accelerator.device)
            signums: Tensor = self.accelerator.gather(told)
            signum = int(signums.max())
        if signum:
            self.save()
            raise interrupted(signum)
