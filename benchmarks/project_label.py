"""How long `malcli label` takes for whole data sets, from a rate that is measured or given.

    python benchmarks/project_label.py --rate 1500                      a rate measured elsewhere
    python benchmarks/project_label.py [--checkpoint RUN|FILE] [--device auto|cpu|cuda]
        [--batch-size 16] [--seconds 20] [--tta flip] [--refine crf]

Without `--rate`, the network's rate is measured here on crops of noise, as `label` runs it (views,
refining and copies back to the host included, decoding and writing not). The hours are that rate
multiplied: they hold where the host keeps up (`label_host.py`) and, for several devices, where each
has its own share of cores; nothing of them but the rate is measured.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from malcli.config import LabelConfig
from malcli.data.rois import Roi
from malcli.engine.inference import open_predictor
from malcli.engine.jobs import Job, Manifest
from malcli.engine.launch import choose_device, choose_precision
from malcli.model.checkpoint import load_checkpoint
from malcli.model.locate import locate_checkpoint

BOXES = {
    "COCO train2017": 860_000,
    "LVIS v1 train": 1_270_000,
    "Open Images V7 train": 14_600_000,
    "Objects365 v2 train": 25_000_000,
}
DEVICES = (1, 8)


def measure(given: argparse.Namespace) -> float:
    """Return boxes a second of the network, and print on what they were measured."""
    path = locate_checkpoint(given.checkpoint)
    checkpoint = load_checkpoint(path)
    config = LabelConfig(boxes=Path(), device=given.device, tta=given.tta, refine=given.refine)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    side, batch = checkpoint.architecture.crop_size, given.batch_size
    job = Job("", "", {})
    manifest = Manifest(job, 0, 0, batch, precision, checkpoint.threshold, side)
    predictor = open_predictor(config, manifest, checkpoint)
    rng = np.random.default_rng(0)
    crops_BSS3 = rng.integers(0, 255, (batch, side, side, 3), dtype=np.uint8)
    inside = np.array([side // 8, side // 8, side - side // 8, side - side // 8])
    rois = [
        Roi(0, crops_BSS3[0], np.array([0, 0, side, side]), inside, i % 3) for i in range(batch)
    ]

    def predict() -> None:
        for values in predictor(crops_BSS3, rois):
            values.cpu()

    predict()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < given.seconds:
        predict()
        done += batch
    seconds = time.perf_counter() - start
    print(
        f"measured here: {done} crops of {side} x {side} pixels in {seconds:.1f} s on {device}, "
        f"{precision}, batches of {batch}, tta {given.tta}, refine {given.refine}, {path.name}"
    )
    return done / seconds


def print_hours(rate: float, source: str) -> None:
    """Print the hours for each data set as a table."""
    print(f"{rate:.4g} boxes/s on one device ({source}); every hour below is multiplied from it\n")
    heads = [f"{count} device{'s' * (count > 1)}, h" for count in DEVICES]
    print(f"{'data set':<22}{'boxes':>12}" + "".join(f"{head:>14}" for head in heads))
    for name, boxes in BOXES.items():
        hours = [boxes / (rate * count) / 3600 for count in DEVICES]
        print(f"{name:<22}{boxes:>12,}" + "".join(f"{value:>14,.2f}" for value in hours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, help="boxes a second on one device, measured before")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tta", default="flip", choices=("none", "flip"))
    parser.add_argument("--refine", default="crf", choices=("none", "crf"))
    given = parser.parse_args()
    if given.rate is not None:
        print_hours(given.rate, "given, not measured here")
    else:
        print_hours(measure(given), "measured")


if __name__ == "__main__":
    main()
