"""Read a large COCO file into columns: `open_boxes` against pycocotools' `COCO()`.

    python benchmarks/read_coco.py [--boxes 1000000] [--repeat 5] [--kind plain] [--folder DIR]

Each reading is a process of its own, in turns; CPU seconds and the peak of resident memory beyond
what the process had after its imports. The last row opens the same file again from the cache. The
kinds are the keys that files have: `plain` COCO boxes, `polygons` of 20 numbers, the flags of
`objects365`, the compressed RLE and scores of `malcli`, nested `attributes`, or ids that are text
(`text-ids`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COMMON = """
import contextlib, sys, time
from pathlib import Path
def memory(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) / 1024
{imports}
before = memory("VmRSS")
begin, wall = time.process_time(), time.perf_counter()
with contextlib.redirect_stdout(None):
    count = {work}
assert count == int(sys.argv[2])
print(time.process_time() - begin, time.perf_counter() - wall, memory("VmHWM") - before)
"""
MALCLI = COMMON.format(
    imports="import pyarrow\nfrom malcli.data.formats.open import open_boxes\npyarrow.array([0])",
    work="open_boxes(Path(sys.argv[1])).boxes.num_rows",
)
PYCOCOTOOLS = COMMON.format(
    imports="from pycocotools.coco import COCO", work="len(COCO(sys.argv[1]).anns)"
)


KINDS: dict[str, Callable[[int, list[float]], dict[str, Any]]] = {
    "plain": lambda n, numbers: {},
    "polygons": lambda n, numbers: {"segmentation": [numbers]},
    "objects365": lambda n, numbers: {"isfake": 0, "isreflected": n % 2},
    "malcli": lambda n, numbers: {
        "segmentation": {"size": [480, 640], "counts": "abc`1def`2`3[oP1" * 4},
        "malcli_score": numbers[0] / 300,
        "malcli_status": "ok",
    },
    "text-ids": lambda n, numbers: {"id": f"{n * 2654435761 % 2**64:016x}"},
    "attributes": lambda n, numbers: {"attributes": {"occluded": False, "tags": ["a", n]}},
}


def write_file(path: Path, boxes: int, images: int, kind: str) -> None:
    """Write annotations in random image order, six keys each and those of the kind."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write('{"images":[')
        for n in range(images):
            record = {"id": n, "file_name": f"images/v1/patch8/objects365_v1_{n:08}.jpg"}
            file.write(("," if n else "") + json.dumps(record | {"height": 480, "width": 640}))
        file.write('],"annotations":[')
        for begin in range(0, boxes, 10_000):
            xywh = np.round(rng.uniform(1, 300, (10_000, 4)), 2).tolist()
            image = rng.integers(images, size=10_000).tolist()
            polygons = np.round(rng.uniform(1, 300, (10_000, 20)), 2).tolist()
            for n in range(min(10_000, boxes - begin)):
                record = {"iscrowd": 0, "area": xywh[n][2] * xywh[n][3], "bbox": xywh[n]}
                record |= {"category_id": n % 365 + 1, "id": begin + n, "image_id": image[n]}
                record |= KINDS[kind](n, polygons[n])
                file.write(("," if begin + n else "") + json.dumps(record))
        categories = [{"id": n, "name": f"c{n}"} for n in range(1, 366)]
        file.write(f'],"categories":{json.dumps(categories)}}}')


def measure(code: str, path: Path, boxes: int, cache: str) -> list[float]:
    command = [sys.executable, "-c", code, str(path), str(boxes)]
    environment = os.environ | {"MALCLI_CACHE": cache, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, default="plain")
    parser.add_argument("--folder", help="where the file is made (default: the temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "boxes.json"
        write_file(path, args.boxes, max(args.boxes // 16, 1), args.kind)
        print(f"{args.boxes:,} boxes, {path.stat().st_size / 1e6:.0f} MB")
        cache = str(Path(folder) / "cache")
        rows: dict[str, list[list[float]]] = {"open_boxes": [], "COCO()": [], "from the cache": []}
        measure(MALCLI, path, args.boxes, cache)
        for _ in range(args.repeat):
            rows["open_boxes"].append(measure(MALCLI, path, args.boxes, "off"))
            rows["COCO()"].append(measure(PYCOCOTOOLS, path, args.boxes, "off"))
            rows["from the cache"].append(measure(MALCLI, path, args.boxes, cache))
        slow = statistics.median(row[0] for row in rows["COCO()"])
        for name, values in rows.items():
            cpu, wall, memory = (statistics.median(column) for column in zip(*values, strict=True))
            ratio = f"{slow / max(cpu, 0.01):6.1f}x"
            print(f"{name:<16}{cpu:8.2f} s CPU{ratio}{wall:8.2f} s{memory:8.0f} MB")


if __name__ == "__main__":
    main()
