"""Encode masks of crops as full-image RLE: `encode_crop` against building the whole image.

    python benchmarks/rle_encode.py [--image-hw 480 640] [--repeat 9]

CPU time of one core, interleaved, median of the repetitions; sizes follow COCO's mix of boxes
(41 % small, 34 % medium, 24 % large). Both ways give the same bytes, which is checked.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from malcli.geometry.rle import encode_crop

Case = tuple[NDArray[np.bool_], int, int]
SIDES = {"small": (8, 32, 41), "medium": (32, 96, 34), "large": (96, 400, 24)}


def draw_cases(image_hw: tuple[int, int], kind: str, rng: np.random.Generator) -> list[Case]:
    low, high, count = SIDES[kind]
    cases = []
    for _ in range(count):
        h, w = (int(min(rng.uniform(low, high), side)) for side in image_hw)
        noise = cv2.GaussianBlur(rng.standard_normal((h, w)), (0, 0), max(h, w) / 10)
        mask = noise > np.median(noise)
        y, x = int(rng.integers(image_hw[0] - h + 1)), int(rng.integers(image_hw[1] - w + 1))
        cases.append((mask, x, y))
    return cases


def encode_whole(mask: NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> bytes:
    image = np.zeros(image_hw, dtype=np.uint8, order="F")
    image[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    counts: bytes = coco_mask.encode(image)["counts"]
    return counts


def microseconds(work: Callable[[Case], object], cases: list[Case]) -> float:
    start = time.process_time()
    for case in cases:
        work(case)
    return 1e6 * (time.process_time() - start) / len(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-hw", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    image_hw = (args.image_hw[0], args.image_hw[1])
    rng = np.random.default_rng(0)
    groups = {kind: draw_cases(image_hw, kind, rng) for kind in SIDES}
    groups["COCO mix"] = [case for cases in groups.values() for case in cases]
    for case in groups["COCO mix"]:
        assert encode_crop(*case, image_hw)["counts"].encode() == encode_whole(*case, image_hw)
    print(f"{image_hw[1]}x{image_hw[0]}, microseconds a mask")
    for kind, cases in groups.items():
        strip, whole = [], []
        for _ in range(args.repeat):
            strip.append(microseconds(lambda case: encode_crop(*case, image_hw), cases))
            whole.append(microseconds(lambda case: encode_whole(*case, image_hw), cases))
        fast, slow = statistics.median(strip), statistics.median(whole)
        print(f"{kind:<10}{fast:8.0f} encode_crop{slow:8.0f} whole image{slow / fast:7.1f}x")


if __name__ == "__main__":
    main()
