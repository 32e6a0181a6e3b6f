"""Mask AP of malcli against plain pycocotools, with and without hotcoco, on the same masks.

    python benchmarks/eval_ap.py [--instances 36000] [--images 5000] [--repeat 3]

CPU seconds of one process with one thread, interleaved, best of the repetitions. Every way starts
from the same columns of checked masks and must give the same twelve numbers. The last line is the
time of eval's other numbers (IoU, Dice, boundary IoU of masks, box and ellipse, and their
intervals), which must stay below pycocotools' AP.
"""

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries start

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from malcli.engine.eval.pair_scores import score_pairs
from malcli.geometry.rle import area, encode_crop, rle_box
from malcli.metrics import ap, matching
from malcli.metrics.miou import resample_images
from malcli.metrics.pairing import Instances
from malcli.records import Rle

HW = (480, 640)
CATEGORIES = 80
CROWD = 300
SHARES = ((8, 32, 0.41), (32, 96, 0.75), (96, 400, 1.0))  # COCO's mix of box sides, cumulative
RESULT = ("image_id", "category_id", "segmentation", "score")
SHAPES = 600  # different masks; drawing more takes long and measures nothing


def draw_shapes(rng: np.random.Generator) -> list[tuple[Rle, Rle]]:
    shapes = []
    for _ in range(SHAPES):
        pick = rng.random()
        low, high = next((low, high) for low, high, share in SHARES if pick < share)
        h, w = (int(min(rng.uniform(low, high), side)) for side in HW)
        noise = cv2.GaussianBlur(rng.standard_normal((h, w)), (0, 0), max(h, w) / 8)
        wobble = cv2.GaussianBlur(rng.standard_normal((h, w)), (0, 0), max(h, w) / 16)
        y, x = int(rng.integers(HW[0] - h + 1)), int(rng.integers(HW[1] - w + 1))
        inner = noise > np.median(noise)
        other = noise / noise.std() + 0.5 * wobble / wobble.std() > 0
        shapes.append((encode_crop(inner, x, y, HW), encode_crop(other, x, y, HW)))
    return shapes


def draw_sides(count: int, images: int) -> tuple[Instances, Instances]:
    rng = np.random.default_rng(0)
    shapes = draw_shapes(rng)
    picked = rng.integers(0, SHAPES, count)
    image = np.sort(rng.integers(0, images, count))
    category = np.minimum(rng.geometric(0.05, count), CATEGORIES)
    crowd = np.zeros(count, dtype=bool)
    crowd[rng.choice(count, min(CROWD, count // 10), replace=False)] = True
    score = rng.random(count)

    def side(which: int) -> Instances:
        rles = [shapes[n][which] for n in picked]
        return Instances(
            ids=list(range(1, count + 1)),
            image=image,
            category=category,
            xywh=np.array([rle_box(rle) for rle in rles], dtype=float),
            rles=list(rles),
            crowd=crowd if which == 0 else np.zeros(count, dtype=bool),
            score=score if which else np.ones(count),
            area=np.array([float(area(rle)) for rle in rles]),
        )

    return side(0), side(1)


def records(side: Instances) -> list[dict[str, Any]]:
    """Return a side as pycocotools wants it; not timed."""
    return [
        {
            "id": n + 1,
            "image_id": int(side.image[n]),
            "category_id": int(side.category[n]),
            "bbox": side.xywh[n].tolist(),
            "segmentation": dict(rle or {}),
            "area": float(side.area[n]),
            "iscrowd": int(side.crowd[n]),
            "score": float(side.score[n]),
        }
        for n, rle in enumerate(side.rles)
    ]


def plain(human: list[dict[str, Any]], found: list[dict[str, Any]], images: int) -> list[float]:
    """Return the twelve numbers as a script that uses pycocotools gets them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n, "height": HW[0], "width": HW[1]} for n in range(images)],
            "categories": [{"id": n} for n in sorted({one["category_id"] for one in human})],
            "annotations": human,
        }
        truth.createIndex()
        # Without their boxes, so that areas are those of the masks.
        results = [{key: one[key] for key in RESULT} for one in found]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats.tolist()
    return stats


def ours(human: Instances, found: Instances, images: int, fast: bool, drawn: bool) -> list[float]:
    hidden = contextlib.nullcontext() if fast else mock.patch.object(matching, "hotcoco", None)
    with hidden:
        stats = ap.mask_ap(human, found, images, keep_cells=drawn).stats
    return [-1.0 if value is None else value for value in stats.values()]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def other_numbers(human: Instances, found: Instances, images: int) -> None:
    score_pairs(human, found, resample_images(images, 1000, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=36_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    human, found = draw_sides(args.instances, args.images)
    lists = records(human), records(found)
    ways: dict[str, Callable[[], Any]] = {
        "pycocotools": lambda: plain(*lists, args.images),
        "malcli, without hotcoco": lambda: ours(human, found, args.images, False, False),
        "  and kept for intervals": lambda: ours(human, found, args.images, False, True),
    }
    if matching.hotcoco is not None:
        ways["malcli, with hotcoco"] = lambda: ours(human, found, args.images, True, False)
        ways["  and kept for intervals "] = lambda: ours(human, found, args.images, True, True)
    best: dict[str, float] = {}
    for _ in range(args.repeat):
        for name, work in ways.items():
            spent, stats = seconds(work)
            if name == "pycocotools":
                expected = stats
            np.testing.assert_allclose(stats, expected, atol=1e-6, rtol=0)
            best[name] = min(spent, best.get(name, spent))
    others = min(seconds(lambda: other_numbers(human, found, args.images))[0] for _ in range(2))
    base = best["pycocotools"]
    print(f"{args.instances} instances, {args.images} images, CPU seconds")
    for name, spent in {**best, "eval's other numbers": others}.items():
        print(f"{name:<28}{spent:8.2f}{base / spent:8.1f}x the speed of pycocotools")


if __name__ == "__main__":
    main()
