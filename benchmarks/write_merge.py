"""Merge the parts of a labelling job into its output: COCO JSON and Parquet.

    python benchmarks/write_merge.py [--rows 100000] [--repeat 5]

CPU microseconds a box, in turns; and the same for writing the parts.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from malcli.data.formats.coco import read_coco
from malcli.engine.label.parts import Outcome, PartFolder, merge
from malcli.geometry.rle import encode_crop
from malcli.records import BoxTable

BOXES = 8  # of an image


def draw_table(folder: Path, rows: int) -> BoxTable:
    """Return boxes in random order of images, as COCO has them."""
    images = rows // BOXES + 1
    order = np.random.default_rng(0).permutation(rows) % images
    records = [
        {
            "id": n,
            "image_id": int(image),
            "category_id": n % 80,
            "iscrowd": 0,
            "area": n % 997 + 0.5,
        }
        | {"bbox": [30.5, 40.25, 100.0, n % 300 + 0.125]}
        for n, image in enumerate(order)
    ]
    named = [{"id": n, "file_name": f"{n}.jpg", "height": 480, "width": 640} for n in range(images)]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": named, "annotations": records}))
    return read_coco(path)


def draw_counts(number: int) -> list[str]:
    """Return run lengths of discs of several sizes."""
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(number):
        side = int(rng.uniform(10, 200))
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        disc = x**2 + y**2 < rng.uniform(0.5, 1)
        counts.append(encode_crop(disc, 30, 40, (480, 640))["counts"])
    return counts


def microseconds(work: Callable[[], object], rows: int) -> float:
    begin = time.process_time()
    work()
    return 1e6 * (time.process_time() - begin) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    counts = draw_counts(500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = draw_table(folder, args.rows)
        outcomes = [
            Outcome(row, "ok", 480, 640, counts[row % 500], 5000 + row % 997, row % 1009 / 1009)
            for row in range(args.rows)
        ]

        def write_parts() -> None:
            shutil.rmtree(folder / "parts", ignore_errors=True)
            (folder / "parts").mkdir()
            parts = PartFolder(folder / "parts", table)
            for index in range(len(parts)):
                parts.write(index, [outcomes[row] for row in parts.rows(index)])

        def merge_into(file: str) -> None:
            merge(PartFolder(folder / "parts", table), folder / file, {}, lambda: None)

        ways: dict[str, Callable[[], object]] = {
            "parts": write_parts,
            "merge, JSON": lambda: merge_into("masks.json"),
            "merge, Parquet": lambda: merge_into("masks.parquet"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.repeat):
            for way, work in ways.items():
                times[way].append(microseconds(work, args.rows))
    for way, values in times.items():
        print(f"{way:<16}{statistics.median(values):8.2f} us a box")


if __name__ == "__main__":
    main()
