"""How long `malcli label` takes for whole data sets, from rates measured here or given.

    python benchmarks/project_label.py [--checkpoint RUN|FILE] [--device auto|cpu|cuda]
        [--precision auto] [--batch-size 16] [--seconds 20] [--tta flip] [--refine crf]
    python benchmarks/project_label.py --rate 1500 --host 0.9     rates measured before

Measures the network on crops of noise, as `label` runs it (views, refining and copies back to the
host included), and what the host does beside it (`label_host.py`). On a GPU the rate is crops over
time; on a CPU processor time counts, which a busy machine hardly changes, and host and network
share the cores. Every hour is such a rate multiplied; for several devices each one needs its own
cores. `--assume` lists rates that nobody measured, for a table of the cores that they would need.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from label_host import measure_host

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi
from malcli.engine.label.pipeline import open_predictor
from malcli.engine.label.predictor import Predictor
from malcli.engine.label.settings import resolve_label
from malcli.engine.machine.processes import choose_device, choose_precision
from malcli.model.checkpoint import Checkpoint, load_checkpoint
from malcli.model.locate import locate_checkpoint

BOXES = {"COCO": 860_000, "LVIS": 1_270_000, "Open Images": 14_600_000, "Objects365": 25_000_000}
DEVICES = (1, 8)


def open_network(config: LabelConfig, checkpoint: Checkpoint) -> Predictor:
    """Return what predicts in a job of these settings."""
    precision = choose_precision(config.precision, choose_device(config.device))
    side = checkpoint.architecture.crop_size
    return open_predictor(
        config, checkpoint, threshold=checkpoint.threshold, crop_size=side, precision=precision
    )


def measure_network(predictor: Predictor, batch: int, seconds: float) -> float:
    """Return the network's seconds a crop: of time on a GPU, of one core's work on a CPU."""
    side = predictor.rule.crop_size
    crops_BSS3 = np.random.default_rng(0).integers(0, 255, (batch, side, side, 3), dtype=np.uint8)
    roi = np.array([0, 0, side, side])
    inside = np.array([side // 7, side // 7, side - side // 7, side - side // 7])
    rois = [Roi(0, crops_BSS3[0], roi, inside, i % 3) for i in range(batch)]
    clock = time.process_time if predictor.device.type == "cpu" else time.perf_counter

    def predict() -> None:
        for values in predictor(crops_BSS3, rois):
            values.cpu()

    predict()
    done, start, end = 0, clock(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        predict()
        done += batch
    return (clock() - start) / done


def print_row(name: str, rate: float, cores: str) -> None:
    hours = "".join(f"{boxes / rate / 3600:>13,.2f}" for boxes in BOXES.values())
    print(f"{name:<34}{hours}{cores:>18}")


def print_hours(rate: float, host_ms: float, said: str) -> None:
    """Print the hours of a device, and of eight, and the cores that each needs."""
    for count in DEVICES:
        name = f"{count} device{'s' * (count > 1)} at {rate:,.0f}/s ({said})"
        print_row(name, rate * count, f"{rate * host_ms / 1e3:.1f} each")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, help="crops a second of one device, measured before")
    parser.add_argument("--host", type=float, help="CPU milliseconds a box beside the network")
    parser.add_argument(
        "--assume", default="300,1700", help="crops a second that were not measured"
    )
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    for name in ("device", "precision", "tta", "refine"):
        parser.add_argument(f"--{name}", help="default: that of label")
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("device", "precision", "tta", "refine")}
    config = resolve_label({"boxes": Path()} | {k: v for k, v in options.items() if v is not None})
    path = locate_checkpoint(given.checkpoint)
    checkpoint = load_checkpoint(path)
    side = checkpoint.architecture.crop_size
    host = given.host or measure_host(side, config.refine != "none")
    print(
        f"host: {host:.2f} ms of CPU a box beside the network ({side} px, refine {config.refine})"
    )
    each = None
    if given.rate is None:
        config = replace(config, checkpoint=path)
        predictor = open_network(config, checkpoint)
        each = measure_network(predictor, given.batch_size, given.seconds)
        print(
            f"network: {1e3 * each:.2f} ms a crop of {side} x {side} on {predictor.device}, "
            f"{predictor.dtype}, batches of {given.batch_size}, tta {config.tta}, "
            f"refine {config.refine}, {path.name}"
        )
    print(f"\n{'hours':<34}" + "".join(f"{name:>13}" for name in BOXES) + f"{'cores needed':>18}")
    if each is not None and predictor.device.type == "cpu":
        cores = os.cpu_count() or 1
        rate = cores / (each + host / 1e3)
        print_row(f"{cores} cores at {rate:.1f} boxes/s (measured)", rate, "")
    else:
        print_hours(given.rate or 1 / (each or 1), host, "measured" if each else "given")
    for rate in map(float, filter(None, given.assume.split(","))):
        print_hours(rate, host, "assumed")


if __name__ == "__main__":
    main()
