"""Memory and processor time of a whole labelling job by its number of boxes.

    python benchmarks/label_memory.py [--boxes 20000,60000,180000] [--per-image 8]

Draws boxes on small images, labels them by `malcli label` in a process of its own (reading,
parts, merge and JSON as in every job), with a network that answers at once with an ellipse, and
prints the peak of resident memory and the processor time. Memory should not grow with the boxes,
but for the 12 bytes a box of their order and image that are held.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HW = (72, 96)
FILES = 16
CHILD = """
import json, resource, sys, time
import numpy as np, torch
from malcli import label
from malcli.engine import inference

class Ellipses:
    size_classes = "half-open"
    def __init__(self, checkpoint, rule, device, precision, compiled=False):
        self.rule, self.device = rule, device
        y, x = np.mgrid[-1:1:16j, -1:1:16j]
        self.prob = torch.from_numpy((1 / (1 + np.exp(8 * (np.hypot(x, y) - 0.7)))).astype("f4"))
    def __call__(self, crops, rois):
        return [self.prob.expand(len(rois), 16, 16)]

inference.Predictor = Ellipses
boxes, images, out = sys.argv[1:]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = label(boxes=boxes, images=images, out=out, refine="none", tta="none", crop_size="32")
used = resource.getrusage(resource.RUSAGE_SELF)
assert result.merged, result
print(json.dumps({"base": base / 1e3, "peak": used.ru_maxrss / 1e3,
                  "cpu": used.ru_utime + used.ru_stime, "boxes": sum(result.counts.values())}))
"""


def draw(folder: Path, boxes: int, per_image: int) -> Path:
    """Write a COCO file of so many boxes, in random order of images, piece by piece."""
    rng = np.random.default_rng(0)
    images = -(-boxes // per_image)
    path = folder / "boxes.json"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": [')
        for number in range(images):
            record = {"id": number, "file_name": f"{number % FILES}.png"}
            record |= {"height": HW[0], "width": HW[1]}
            file.write((", " if number else "") + json.dumps(record))
        file.write('], "annotations": [')
        for number, image in enumerate(rng.permutation(boxes) % images):
            w, h = rng.uniform(6, 60, 2).round(2).tolist()
            bbox = [round(rng.uniform(0, HW[1] - w), 2), round(rng.uniform(0, HW[0] - h), 2), w, h]
            record = {"id": number, "image_id": int(image), "category_id": 1, "bbox": bbox}
            file.write((", " if number else "") + json.dumps(record))
        file.write("]}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", default="20000,60000,180000")
    parser.add_argument("--per-image", type=int, default=8)
    given = parser.parse_args()
    print(f"{'boxes':>10} {'imports, MB':>12} {'peak, MB':>10} {'CPU us a box':>13}")
    for boxes in map(int, given.boxes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pixels = np.random.default_rng(1).integers(0, 255, (FILES, *HW, 3), dtype=np.uint8)
            for number, image in enumerate(pixels):
                Image.fromarray(image).save(folder / f"{number}.png", compress_level=0)
            path = draw(folder, boxes, given.per_image)
            command = [sys.executable, "-c", CHILD, str(path), name, str(folder / "masks.json")]
            environment = {**os.environ, "MALCLI_CACHE": str(folder / "cache")}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, check=True, text=True
            )
        used = json.loads(done.stdout.splitlines()[-1])
        assert used["boxes"] == boxes
        each = 1e6 * used["cpu"] / boxes
        print(f"{boxes:>10,} {used['base']:>12.0f} {used['peak']:>10.0f} {each:>13.0f}", flush=True)


if __name__ == "__main__":
    main()
