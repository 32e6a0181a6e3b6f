"""Read a box CSV of Open Images: `read_openimages` against csv.reader into columns.

    python benchmarks/read_csv.py [--rows 1000000] [--repeat 3]

CPU seconds of one process, in turns; image sizes are given, not read from headers. The peak of
resident memory is that of one more process, beyond what it had at its start.
"""

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from malcli.data.formats.openimages import boxes as openimages
from malcli.data.images.find import ImageFolder
from malcli.data.images.sizes import Found

COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside"
)


def write_file(path: Path, rows: int) -> None:
    """Write boxes sorted by image, eight an image, as the originals are."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(COLUMNS + "\n")
        for row in range(rows):
            a, b, c, d = rng.uniform(0, 0.5, 4)
            sides = f"{a:.6f},{a + b:.6f},{c:.6f},{c + d:.6f}"
            label = f"/m/0{row * 7 % 600:03}"
            file.write(f"{row // 8:016x},xclick,{label},1,{sides},0,{row % 2},0,0,0\n")


def read_plainly(path: Path) -> int:
    """Read ids, labels, four sides and five flags with csv.reader."""
    images: dict[str, int] = {}
    labels: dict[str, int] = {}
    with path.open(newline="") as file:
        reader = csv.reader(file)
        next(reader)
        rows, sides, flags = [], [], []
        for row in reader:
            image = images.setdefault(row[0], len(images))
            rows.append((image, labels.setdefault(row[2], len(labels))))
            sides.append([float(side) for side in row[4:8]])
            flags.append([int(flag) for flag in row[8:13]])
    return len(np.array(rows)) + 0 * (len(np.array(sides)) + len(np.array(flags)))


def parse_only(path: Path) -> int:
    """Read columns as `read_openimages` does, without grouping, checks and ids."""
    ids, labels = openimages._first_pass(path)
    numbers = {label: n for n, label in enumerate(labels)}
    sizes = np.full((len(ids), 2), 500.0)
    return sum(batch.num_rows for batch in openimages._boxes(path, ids, numbers, sizes, None))


def seconds(work: Callable[[Path], int], path: Path, rows: int) -> float:
    begin = time.process_time()
    assert work(path) == rows
    return time.process_time() - begin


def peak(work: Callable[[Path], int], path: Path) -> float:
    """Return the MB that a child process needs beyond what it starts with."""
    child = os.fork()
    if not child:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far counts no more
        before = status("VmRSS")
        work(path)
        path.with_suffix(".peak").write_text(str(status("VmHWM") - before))
        os._exit(0)
    os.waitpid(child, 0)
    return float(path.with_suffix(".peak").read_text())


def status(key: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    sizes = [Found(f"{n:016x}.jpg", 500, 500) for n in range(-(-args.rows // 8))]
    openimages.read_sizes = lambda root, names, *_: sizes[: len(names)]
    openimages.find_folder = lambda path, *_: ImageFolder(path.parent, 0, 0)
    ways: dict[str, Callable[[Path], int]] = {
        "csv.reader": read_plainly,
        "parse only": parse_only,
        "read_openimages": lambda path: openimages.read_openimages(path).boxes.num_rows,
    }
    pa.array([0])  # imports pandas where there is one
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boxes.csv"
        write_file(path, args.rows)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, work in ways.items():
                times[name].append(seconds(work, path, args.rows))
        slow = statistics.median(times["csv.reader"])
        for name, values in times.items():
            middle = statistics.median(values)
            print(f"{name:<16}{middle:8.2f} s CPU{slow / middle:8.1f}x")
        print(f"peak of read_openimages{peak(ways['read_openimages'], path):8.0f} MB")


if __name__ == "__main__":
    main()
