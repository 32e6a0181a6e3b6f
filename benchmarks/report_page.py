"""`malcli eval --report` on 1,000 drawn instances: seconds from start to the written page.

    python benchmarks/report_page.py [--scenes 200]

CPU and wall seconds of one process, with intervals and pictures; masks are the human ones moved.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from malcli.config.evaluate import EvalConfig
from malcli.data.scenes import draw_scenes
from malcli.engine.eval.masks import evaluate
from malcli.geometry.rle import from_segmentation
from malcli.report.progress import set_quiet

HW = (480, 640)


def move_masks(source: Path, target: Path) -> int:
    """Write the masks moved by some pixels, with scores; return how many there are."""
    rng = np.random.default_rng(0)
    data = json.loads(source.read_text("utf-8"))
    for record in data["annotations"]:
        mask = coco_mask.decode(from_segmentation(record["segmentation"], HW))
        moved = np.roll(mask, tuple(rng.integers(-8, 9, 2)), axis=(0, 1))
        rle = coco_mask.encode(np.asfortranarray(moved))
        record["segmentation"] = {"size": list(HW), "counts": rle["counts"].decode()}
        record["malcli_score"] = float(rng.random())
    target.write_text(json.dumps(data), "utf-8")
    return len(data["annotations"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    set_quiet(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = draw_scenes(folder, args.scenes, seed=0, size_hw=HW, split="val", objects=(4, 6))
        pred, page = folder / "pred.json", folder / "report.html"
        count = move_masks(scenes.instances, pred)
        start, wall = time.process_time(), time.perf_counter()
        evaluate(EvalConfig(gt=scenes.instances, pred=pred, images=scenes.images, report=page))
        spent, wall = time.process_time() - start, time.perf_counter() - wall
        size = page.stat().st_size / 1e6
    print(f"{count} instances: {spent:.1f} s CPU, {wall:.1f} s wall, a page of {size:.1f} MB")


if __name__ == "__main__":
    main()
