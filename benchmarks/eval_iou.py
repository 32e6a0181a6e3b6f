"""IoU of pairs of masks: malcli with and without hotcoco, against pycocotools one by one.

    python benchmarks/eval_iou.py [--instances 36000] [--repeat 5]

CPU microseconds a pair, one thread, interleaved, best of the repetitions; all must be equal.
"""

import argparse
import contextlib
import time
from unittest import mock

import numpy as np
from eval_ap import draw_sides  # beside this file; sets one thread first
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from malcli.metrics import matching
from malcli.records import Rle


def one_by_one(a: list[Rle], b: list[Rle]) -> NDArray[np.float64]:
    pairs = zip(a, b, strict=True)
    return np.array([coco_mask.iou([one], [other], [0])[0, 0] for one, other in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=36_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    sides = draw_sides(args.instances, 5_000)
    a, b = ([rle for rle in side.rles if rle is not None] for side in sides)
    hidden = mock.patch.object(matching, "hotcoco", None)
    ways = {
        "pycocotools, one by one": (one_by_one, contextlib.nullcontext()),
        "malcli, without hotcoco": (matching.mask_iou, hidden),
    }
    if matching.hotcoco is not None:
        ways["malcli, with hotcoco"] = (matching.mask_iou, contextlib.nullcontext())
    best: dict[str, float] = {}
    expected = one_by_one(a, b)
    for _ in range(args.repeat):
        for name, (work, around) in ways.items():
            with around:
                start = time.process_time()
                found = work(a, b)
                spent = 1e6 * (time.process_time() - start) / len(a)
            assert np.array_equal(found, expected)
            best[name] = min(spent, best.get(name, spent))
    for name, spent in best.items():
        print(f"{name:<26}{spent:7.1f} us a pair")


if __name__ == "__main__":
    main()
