"""What labelling costs beside the network, per box: decode, crop, paste and encode.

    python benchmarks/label_host.py [--boxes 16] [--images 40] [--height 480] [--width 640]

Draws photographs' stand-ins (JPEG, noise on shapes), labels their boxes with a network that answers
at once with drawn ellipses, and prints CPU milliseconds per box by stage. The target is below 1 ms
a box and core at 640 x 480 with 16 boxes an image.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from malcli.data.formats import open_boxes
from malcli.data.images import find_images
from malcli.engine.inference import Road, Watch
from malcli.engine.predictor import LabelRule

STAGES = ("read", "decode", "crop", "network", "paste", "encode", "wait")
CROP_SIZE = 512
GRID = 128


class Ellipses:
    """A network that finds an ellipse in every box, in no time."""

    def __init__(self) -> None:
        """Draw the ellipse."""
        self.rule = LabelRule("student", "none", "none", (0.5,) * 3, CROP_SIZE, 0.6, 0.0, 10**9)
        y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
        wobble = 0.05 * np.sin(9 * np.arctan2(y, x))
        prob = 1 / (1 + np.exp(20 * (np.hypot(x, y) + wobble - 0.7)))
        self.prob_GG = torch.from_numpy(prob.astype(np.float32))

    def __call__(self, crops: object, rois: list[object]) -> list[torch.Tensor]:
        """Return it for every crop."""
        return [self.prob_GG.expand(len(rois), GRID, GRID)]


def draw(folder: Path, images: int, boxes: int, hw: tuple[int, int]) -> Path:
    """Write a COCO file with its images."""
    rng = np.random.default_rng(0)
    height, width = hw
    records, annotations = [], []
    for number in range(images):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.int16)
        noisy = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        name = f"{number}.jpg"
        Image.fromarray(noisy).save(folder / name, quality=90)
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(boxes):
            side = np.exp(rng.uniform(np.log(12), np.log(height * 0.8), 2))
            corner = rng.random(2) * (np.array([width, height]) - side)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [*corner.tolist(), *side.tolist()],
                }
            )
    path = folder / "boxes.json"
    header = {"categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(header | {"images": records, "annotations": annotations}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("boxes", 16), ("images", 40), ("height", 480), ("width", 640)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = draw(Path(folder), given.images, given.boxes, (given.height, given.width))
        table = open_boxes(path)
        seconds = dict.fromkeys(STAGES, 0.0)
        found = find_images(path, table, None)
        road = Road(table, found, Ellipses(), Watch(seconds), given.workers)
        cpu, wall = time.process_time(), time.perf_counter()
        outcomes = [one for batch in road.label(table.order, 16) for one in batch]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        road.close()
    count = len(outcomes)
    assert all(one.status == "ok" for one in outcomes)
    for stage in STAGES:
        print(f"{stage:8} {1e3 * seconds[stage] / count:7.3f} ms/box")
    print(f"{'all CPU':8} {1e3 * cpu / count:7.3f} ms/box, {count / wall:.0f} boxes/s")


if __name__ == "__main__":
    main()
