"""What labelling costs beside the network, per box: decode, crop, paste, encode and write.

    python benchmarks/label_host.py [--data BOXES.json [--images DIR]] [--crop-size 512] [--refine]
        [--workers 2] [--repeat 5] [--profile]
    python benchmarks/label_host.py [--boxes 8] [--count 40] [--height 480] [--width 640] ...

Labels the boxes of a data set, or of drawn stand-ins for photographs (JPEG, noise on shapes), with
a network that answers at once with drawn ellipses, commits the result as parts, and prints CPU
milliseconds per box by stage: the median of the repetitions, and the least. `other` is what no
stage counts: queues, threads, generators. The target is at most 1 ms a box at 640 x 480 with 8 or
more boxes an image.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from malcli.data.formats.open import open_boxes
from malcli.data.images.find import ImageFolder, find_images
from malcli.engine.label.parts import PartFolder
from malcli.engine.label.pipeline import Pipeline
from malcli.engine.label.predictor import LabelRule
from malcli.engine.machine.clock import Clock
from malcli.records import BoxTable

STAGES = ("read", "decode", "crop", "network", "paste", "encode", "write")


class Ellipses:
    """A network that finds an ellipse in every box, in no time."""

    size_classes = "half-open"

    def __init__(self, refine: bool, crop_size: int) -> None:
        """Draw the ellipse, and with `refine` a second one at the crop's resolution."""
        how = "crf" if refine else "none"
        self.rule = LabelRule("student", "none", how, (0.5,) * 3, crop_size, 0.4, 0.0, 10**9)
        self.maps = [draw_ellipse(crop_size // 4)]
        if refine:
            self.maps.append((draw_ellipse(crop_size) > 0.5).to(torch.uint8))

    def __call__(self, crops: object, rois: list[object]) -> list[torch.Tensor]:
        """Return it for every crop."""
        return [each.expand(len(rois), *each.shape) for each in self.maps]


def draw_ellipse(side: int) -> torch.Tensor:
    """Return probabilities, (side, side) float32, of a wobbly disc."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    wobble = 0.05 * np.sin(9 * np.arctan2(y, x))
    prob = 1 / (1 + np.exp(20 * (np.hypot(x, y) + wobble - 0.7)))
    return torch.from_numpy(prob.astype(np.float32))


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


def label_once(
    table: BoxTable, found: ImageFolder, network: Ellipses, workers: int, folder: Path
) -> dict[str, float]:
    """Label all boxes, commit them as a part, and return CPU milliseconds a box by stage."""
    seconds = dict.fromkeys((*STAGES, "wait"), 0.0)
    clock = Clock(seconds)
    parts = PartFolder(folder / "parts", table)
    pipeline = Pipeline(table, found, network, clock, workers)
    cpu, wall = time.process_time(), time.perf_counter()
    count = 0
    for index in range(len(parts)):
        batches = list(pipeline.label(parts.rows(index), 16))
        outcomes = [one for batch in batches for one in batch]
        assert not any(one.status.endswith("image") for one in outcomes)
        with clock.cpu("write"):
            parts.write(index, outcomes)
        count += len(outcomes)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    pipeline.close()
    spent = {stage: 1e3 * seconds[stage] / count for stage in STAGES}
    spent["other"] = 1e3 * cpu / count - sum(spent.values())
    return spent | {"all CPU": 1e3 * cpu / count, "wall": 1e3 * wall / count}


def measure_host(crop_size: int, refine: bool, repeat: int = 3) -> float:
    """Return the least of some runs' CPU milliseconds a box, on 40 drawn images of 8 boxes."""
    with tempfile.TemporaryDirectory() as name:
        path = draw(Path(name), 40, 8, (480, 640))
        table = open_boxes(path)
        pipeline = (table, find_images(path, table, None), Ellipses(refine, crop_size))
        runs = [label_once(*pipeline, 2, Path(name)) for _ in range(repeat + 1)]
    return min(run["all CPU"] for run in runs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="boxes on photographs; else they are drawn")
    parser.add_argument("--images", type=Path, help="their folder")
    for name, default in (("boxes", 8), ("count", 40), ("height", 480), ("width", 640)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--crop-size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--refine", action="store_true", help="a second map, of the crop's size")
    parser.add_argument("--profile", action="store_true", help="functions of one run, no threads")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = given.data
        if path is None:
            path = draw(folder, given.count, given.boxes, (given.height, given.width))
        table = open_boxes(path)
        found = find_images(path, table, given.images)
        pipeline = (table, found, Ellipses(given.refine, given.crop_size))
        print(f"{table.boxes.num_rows} boxes on {table.images.num_rows} images")
        label_once(*pipeline, given.workers, folder)
        if given.profile:
            with cProfile.Profile() as profile:
                label_once(*pipeline, 0, folder)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
            return
        runs = [label_once(*pipeline, given.workers, folder) for _ in range(given.repeat)]
    for stage in runs[0]:
        values = [run[stage] for run in runs]
        print(f"{stage:8} {statistics.median(values):7.3f} ms/box, least {min(values):7.3f}")


if __name__ == "__main__":
    main()
