"""Which crop sizes boxes need: mIoU by a box's longest side, and the time, of each crop size.

    python benchmarks/crop_sizes.py --gt instances.json [--images DIR] [--checkpoint FILE]
        [--sizes 96,128,192,auto] [--boxes 600] [--tta none] [--refine none]

Labels the same boxes (those of images drawn by `--seed`) once with each crop size, multiples of
the encoder's stride or `auto`, and prints mIoU against the human masks and milliseconds a box. The
sizes take turns, so that a busy machine slows all of them alike; on a CPU, processor time counts.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes
from malcli.data.images.find import find_images
from malcli.engine.eval.read_instances import read_frame, read_human
from malcli.engine.label.crop_sizes import AUTO, crop_sides
from malcli.engine.label.parts import Outcome
from malcli.engine.label.pipeline import Pipeline
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.engine.label.settings import resolve_label
from malcli.engine.machine.clock import Clock
from malcli.engine.machine.processes import choose_device, choose_precision
from malcli.geometry.boxes import SIZE_NAMES, size_class
from malcli.metrics.miou import instance_scores
from malcli.metrics.pairing import Instances
from malcli.model.checkpoint import load_checkpoint
from malcli.model.locate import locate_checkpoint
from malcli.records import BoxTable, Problems, Rle

EDGES = (0, 16, 24, 32, 48, 64, 96, 128, 192, 256, 10**6)  # longest side of a box, pixels
BATCH = 16  # crops per network call
TURN = 256  # boxes between two changes of the crop size


def open_pipeline(config: LabelConfig, table: BoxTable, size: int | str) -> Pipeline:
    """Return the pipeline that labels with one crop size."""
    checkpoint = load_checkpoint(locate_checkpoint(config.checkpoint))
    native, stride = checkpoint.architecture.crop_size, checkpoint.student.encoder.stride
    *smaller, largest = crop_sides(size, native, stride)
    rule = LabelRule(
        network=config.network, tta=config.tta, refine=config.refine,
        threshold=checkpoint.threshold, crop_size=largest, margin=config.margin, min_score=0.0,
        max_pixels=config.max_pixels, geometry=config.geometry, smaller_crops=tuple(smaller),
    )  # fmt: skip
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    predictor = Predictor(checkpoint, rule, device, precision)
    found = find_images(config.boxes, table, config.images)
    return Pipeline(table, found, predictor, Clock(defaultdict(float)), 0)


def drawn_rows(table: BoxTable, count: int, seed: int) -> NDArray[np.int64]:
    """Return rows of boxes, those of an image next to each other, images in random order."""
    images = np.random.default_rng(seed).permutation(len(table.starts) - 1)
    parts = [table.order[table.starts[i] : table.starts[i + 1]] for i in images]
    return np.concatenate(parts)[:count]


def measure(
    roads: dict[str, Pipeline], rows: NDArray[np.int64], clock: Callable[[], float]
) -> tuple[dict[str, dict[int, Outcome]], dict[str, float]]:
    """Return what each pipeline makes of the rows, and its seconds."""
    made: dict[str, dict[int, Outcome]] = {name: {} for name in roads}
    seconds = dict.fromkeys(roads, 0.0)
    for pipeline in roads.values():  # the first call warms up
        list(pipeline.label(rows[:BATCH], BATCH))
    for begin in range(0, len(rows), TURN):
        for name, pipeline in roads.items():
            start = clock()
            for batch in pipeline.label(rows[begin : begin + TURN], BATCH):
                made[name] |= {one.row: one for one in batch}
            seconds[name] += clock() - start
    return made, seconds


def ious(
    outcomes: dict[int, Outcome], human: Instances, row_of: dict[object, int]
) -> NDArray[np.float64]:
    """Return the IoU of each human instance that was labelled; NaN for the others."""
    iou = np.full(len(human), np.nan)
    for place, (number, rle) in enumerate(zip(human.ids, human.rles, strict=True)):
        one = outcomes.get(row_of[number])
        if one is None or rle is None or human.crowd[place]:
            continue
        made: Rle | None = None
        if one.height and one.width and one.counts:
            made = {"size": [one.height, one.width], "counts": one.counts}
        iou[place] = instance_scores([rle], [made])["iou"][0]
    return iou


def show(iou: dict[str, NDArray[np.float64]], human: Instances, ms: dict[str, float]) -> None:
    """Print mIoU by crop size: all, by size class, by longest side."""
    longest = human.xywh[:, 2:].max(axis=1)
    sizes = size_class(human.xywh[:, 2] * human.xywh[:, 3])
    known = ~np.isnan(next(iter(iou.values())))
    groups = {"all": known} | {name: known & (sizes == i) for i, name in enumerate(SIZE_NAMES)}
    for low, high in pairwise(EDGES):
        name = f"<={high}" if high < EDGES[-1] else f">{low}"
        groups[name] = known & (longest > low) & (longest <= high)
    print(f"{'boxes':8} {'count':>5} " + " ".join(f"{name:>7}" for name in iou))
    for name, group in groups.items():
        means = " ".join(f"{100 * one[group].mean():7.2f}" for one in iou.values() if group.any())
        print(f"{name:8} {group.sum():5d} {means}")
    print(f"{'ms a box':14} " + " ".join(f"{ms[name]:7.1f}" for name in iou))
    print(f"{'boxes a second':14} " + " ".join(f"{1e3 / ms[name]:7.1f}" for name in iou))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gt", type=Path, required=True, help="human masks")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sizes", default="96,128,160,192,224,auto", help="crop sizes to try")
    parser.add_argument("--boxes", type=int, default=600, help="most boxes to label")
    parser.add_argument("--tta", help="none or flip; default: that of label")
    parser.add_argument("--refine", help="none or crf; default: that of label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="IoU of each box and size, as .npz")
    given = parser.parse_args()
    options = {"boxes": given.gt, "images": given.images, "checkpoint": given.checkpoint}
    options |= {"tta": given.tta, "refine": given.refine}
    config = resolve_label({name: value for name, value in options.items() if value is not None})
    table = open_boxes(given.gt, None, given.images)
    human = read_human(table, read_frame(table), Problems())
    rows = drawn_rows(table, given.boxes, given.seed)
    numbers = table.boxes["id"].to_pylist()
    row_of = {number: row for row, number in enumerate(numbers)}
    roads = {
        size: open_pipeline(config, table, size if size == AUTO else int(size))
        for size in given.sizes.split(",")
    }
    on_cpu = choose_device(config.device).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    made, seconds = measure(roads, rows, clock)
    iou = {size: ious(outcomes, human, row_of) for size, outcomes in made.items()}
    show(iou, human, {size: 1e3 * value / len(rows) for size, value in seconds.items()})
    if given.save:
        columns: dict[str, Any] = {"longest": human.xywh[:, 2:].max(axis=1), **iou}
        np.savez(given.save, **columns)


if __name__ == "__main__":
    main()
