"""One training step of `malcli fit`, stage by stage, against the dense rate of the device.

    python benchmarks/fit_step.py [--encoder vit_mae_base] [--crop-size 512] [--batch-size 32]
                                  [--precision auto] [--steps 20] [--json]

Crops are random and on the device already: this is the step without its data. Rates:

* dense: a large matrix product in the step's number format, the rate that can be had;
* step: floating-point operations of four forward passes (student, teacher, and twice a forward for
  the backward) over the time of a whole step, without waiting between the stages.

The breakdown comes from further steps that wait for the device after each stage. Wanted on a GPU:
step at 40 % of dense or more, mean field at 5 % of the step or less. On a CPU it runs at small
sizes, to see that it runs.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from malcli.config.fit import FitConfig
from malcli.data.crops.augment import ViewOdds, draw_views
from malcli.data.crops.training_crops import RoiBatch
from malcli.engine.fit.networks import build_networks
from malcli.engine.fit.objective import batch_losses
from malcli.engine.fit.schedule import build_optimizer
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.processes import (
    DTYPES,
    choose_device,
    choose_precision,
    make_accelerator,
)
from malcli.model.ema import update_teacher

STAGES = ("views", "student", "teacher", "mean field", "backward", "update", "ema")
PASSES = 4  # forward passes that a step is worth: student, teacher, twice one for the backward


def draw_batch(config: FitConfig, device: torch.device) -> RoiBatch:
    """Return random crops with boxes of all sizes, on the device."""
    rng = np.random.default_rng(config.seed)
    count, side = config.batch_size, config.crop_size
    margins = rng.random((count, 4)) * 0.25
    box = np.concatenate([margins[:, :2], 1 - margins[:, 2:]], axis=1)
    odds = ViewOdds(config.flip, config.jitter, config.grey, config.blur)
    batch = RoiBatch(
        crop_BCHW=torch.from_numpy(rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)),
        box_B4=torch.from_numpy(box.astype(np.float32)),
        image_B4=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        size_B=torch.from_numpy(rng.integers(0, 3, count)),
        views_BN=torch.from_numpy(np.stack([draw_views(rng, odds) for _ in range(count)])),
        valid_B=torch.ones(count),
        row_B=torch.arange(count),
        profile_B2S=torch.zeros(count, 2, 0, dtype=torch.uint8),
    )
    return batch.to(device)


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, over `repeats` calls without waiting between them."""
    work()
    wait(device)
    before = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - before) / repeats


def dense_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = seconds_of(lambda: left @ right, 20 if device.type == "cuda" else 3, device)
    return float(2 * side**3 / seconds)


class WaitingClock(Clock):
    """Waits for the device around each stage, so that its time is its own."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing."""
        super().__init__()
        self.device = device

    @contextlib.contextmanager
    def wall(self, stage: str) -> Iterator[None]:
        """Add the body's time on the device."""
        wait(self.device)
        with super().wall(stage):
            yield
            wait(self.device)


class Step:
    """One optimiser step as the trainer takes it."""

    def __init__(self, config: FitConfig, accelerator: Accelerator) -> None:
        """Build networks of random values and the optimiser."""
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.batch = draw_batch(config, device)
        student, teacher, _ = build_networks(config, continued=False)
        self.student, self.teacher = student.to(device), teacher.to(device)
        optimizer = build_optimizer(config, self.student.encoder, self.student.decoder, 1e-6)
        self.model, self.optimizer = accelerator.prepare(self.student, optimizer)

    def __call__(self, clock: Clock) -> None:
        """Take the step."""
        mil, crf, _ = batch_losses(
            self.config,
            self.batch,
            self.student,
            self.teacher,
            self.model,
            self.accelerator.autocast,
            clock,
        )
        loss = self.config.mil_weight * mil + self.config.crf_weight * crf
        with clock.wall("backward"):
            self.accelerator.backward(loss)
        with clock.wall("update"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with clock.wall("ema"):
            update_teacher(self.teacher, self.student, self.config.teacher_momentum)

    def forward_flop(self) -> int:
        """Return the floating-point operations of one forward pass of the batch."""
        image_BCHW = self.student.normalise(self.batch.crop_BCHW)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.student(image_BCHW, self.batch.size_B)
        return int(counter.get_total_flops())


def measure(config: FitConfig, repeats: int) -> dict[str, object]:
    """Return rates and the breakdown of a step."""
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    step = Step(config, make_accelerator(device, precision))
    flop = PASSES * step.forward_flop()
    plain, waiting = Clock(), WaitingClock(device)
    seconds = seconds_of(lambda: step(plain), repeats, device)
    before = time.perf_counter()
    for _ in range(repeats):
        step(waiting)
    waited = (time.perf_counter() - before) / repeats
    stages = {name: waiting.seconds[name] / repeats for name in STAGES}
    stages["losses and the rest"] = waited - sum(stages.values())
    dense = dense_rate(device, DTYPES[precision])
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "crops_per_s": config.batch_size / seconds,
        "dense_tflops": dense / 1e12,
        "step_tflops": flop / seconds / 1e12,
        "share_of_dense": flop / seconds / dense,
        "mean_field_share": stages["mean field"] / waited,
        "seconds": stages,
        "memory_gb": memory,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="vit_mae_base")
    parser.add_argument("--crop-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = FitConfig(
        data=Path("unused"),
        encoder=options.encoder,
        weights="none",
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        precision=options.precision,
        device=options.device,
    )
    found = measure(config, options.steps)
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            whole = sum(value.values())
            for name, seconds in value.items():
                print(f"  {name:<20} {1000 * seconds:9.2f} ms {100 * seconds / whole:5.1f} %")
        else:
            print(f"{key:<18} {value:.4g}" if isinstance(value, float) else f"{key:<18} {value}")


if __name__ == "__main__":
    main()
