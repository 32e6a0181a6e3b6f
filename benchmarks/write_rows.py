"""Write masks that are in memory as records: `write_coco` and `write_parquet` against json.dump.

    python benchmarks/write_rows.py [--rows 100000] [--repeat 3]

CPU microseconds a mask, in turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from malcli.data.formats.coco import read_coco, write_coco
from malcli.data.formats.parquet import write_parquet
from malcli.geometry.rle import encode_crop
from malcli.records import BoxTable, Record

BATCH = 1024


def draw_records(rows: int) -> list[Record]:
    """Return annotations as `label` makes them."""
    rng = np.random.default_rng(0)
    rles = []
    for _ in range(200):
        side = int(rng.uniform(10, 200))
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        rles.append(encode_crop(x**2 + y**2 < rng.uniform(0.5, 1), 30, 40, (480, 640)))
    return [
        {"id": n, "image_id": n // 8, "category_id": n % 80, "bbox": [30.5, 40.25, 100.0, 80.0]}
        | {"iscrowd": 0, "segmentation": rles[n % 200], "area": 5000 + n % 997}
        | {"malcli_score": round(n % 1009 / 1009, 6), "malcli_status": "ok"}
        for n in range(rows)
    ]


def microseconds(work: Callable[[], object], rows: int) -> float:
    begin = time.process_time()
    work()
    return 1e6 * (time.process_time() - begin) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    records = draw_records(args.rows)
    batches = [records[begin : begin + BATCH] for begin in range(0, args.rows, BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        images = [
            {"id": n, "file_name": f"{n}.jpg", "height": 480, "width": 640}
            for n in range(args.rows // 8 + 1)
        ]
        path.write_text(json.dumps({"images": images, "annotations": []}))
        table: BoxTable = read_coco(path)

        def plainly() -> None:
            with (Path(folder) / "plain.json").open("w") as file:
                json.dump({"images": images, "annotations": records}, file)

        ways: dict[str, Callable[[], object]] = {
            "json.dump": plainly,
            "write_coco": lambda: write_coco(Path(folder) / "b.json", table, batches),
            "write_parquet": lambda: write_parquet(Path(folder) / "b.parquet", table, batches),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, work in ways.items():
                times[name].append(microseconds(work, args.rows))
    slow = statistics.median(times["json.dump"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:<14}{middle:8.2f} us a mask{slow / middle:8.1f}x")


if __name__ == "__main__":
    main()
