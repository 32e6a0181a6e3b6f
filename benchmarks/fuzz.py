"""Mutated files through every reader, every writer, eval and malcli's own files.

    python benchmarks/fuzz.py [--count 10000] [--first 0] [--workers 2] [--seconds 20]

A seed makes one file wrong in up to four ways, of its values or of its bytes. It counts what was
done, what was refused in one line (or skipped), and what is a fault: a traceback, a line break in a
message, a death, or more than 20 s. The seeds of faults are printed; each belongs into
`tests/test_fuzz.py`. Exit code 1 if there are any.
"""

import argparse
import contextlib
import copy
import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from malcli.api import convert, evaluate
from malcli.data.formats.registry import FORMATS
from malcli.data.scenes import draw_scenes
from malcli.errors import MalcliError
from malcli.report.progress import set_quiet

OWN = ("results", "recipe", "checkpoint")
KINDS = (*FORMATS, *OWN)
PIECES = [
    b"{", b"}", b"[", b"]", b",", b'"', b":", b"},{", b"null", b"NaN", b"-Infinity", b"-", b"1e999",
    b"0", b"9" * 5000, b"0x" + b"f" * 5000, b"1" + b"0" * 30, b"\\ud800", b"\xff", b"\xef\xbb\xbf",
    b"\n", b"\r\n", b"\x00", b"\x1b[2J", b"[" * 3000, b'{"a":' * 3000, b"&a ", b"*a", b"!!int ''",
    b"1:1", b"..", b"/etc/", b"\xe2\x80\xae", b"'''", b" " * 5000,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 1.5, 1e308, 2**31, 2**31 - 1, 2**63, 2**63 - 1, -(2**63), 2**100,
    10**4000, float("nan"), float("inf"), "", "1", "1.0e999", "007", "\ud800", "\x1b]0;x\x07",
    "a\r\nb", "../x.png", "/dev/zero",
    "x" * 5000, [], [[]], {}, {"id": 1}, [1, 2, 3, 4], ["1", None, 2, 3],
    [[{"a": [{}, {}]}]], [[0, 0, 9, 0, 9, 9]], [[0] * 7], [[1e9] * 6],
    {"size": [72, 96], "counts": "0"},
    {"size": [72, 96], "counts": [0] * 10 + [6912]}, {"size": [72, 96], "counts": [-1, 6913]},
    {"size": [10**9, 10**9], "counts": "PPYo0"}, 10**5, 10**9, [float("nan")] * 4, [0, 0, 1e300, 1],
]  # fmt: skip
KEYS = ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "file_name",
        "height", "width", "name", "score", "malcli_score", "malcli_status", "frequency", "size",
        "counts", "mid", "neg_category_ids", "miou"]  # fmt: skip


def suffix_of(name: str) -> str:
    """Return the ending of a format's files; none of a folder's name."""
    each = FORMATS[name]
    return "" if each.is_folder else (*each.suffixes, *each.kinds)[0]


def source_of(name: str) -> str:
    """Return where a sample's annotations are."""
    return "instances_val.json" if name == "coco" else f"a{suffix_of(name)}"


def draw_samples(root: Path) -> None:
    """Write a small file of every kind, each with its images."""
    scenes = draw_scenes(root / "coco", 3, seed=1, size_hw=(72, 96), split="val", objects=(2, 3))
    for name in FORMATS:
        folder = root / name
        folder.mkdir(exist_ok=True)
        target = folder / source_of(name)
        if name != "coco":
            convert(scenes.instances, target, to=name, images=str(scenes.images), rle="compressed")
            shutil.copytree(scenes.images, folder / "images", dirs_exist_ok=True)
    gt = json.loads(scenes.instances.read_text("utf-8"))
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{key: each[key] for key in keys} | {"score": 0.5} for each in gt["annotations"]]
    for name in OWN:
        (root / name).mkdir()
    (root / "results/a.json").write_text(json.dumps(results))
    (root / "recipe/a.toml").write_text('command = "convert"\nrle = "polygon"\nmin_score = 0.25\n')
    _save_tiny(root / "checkpoint/a.safetensors")


def _save_tiny(path: Path) -> None:
    """Save a checkpoint of timm's smallest ViT: that which ships takes seconds to build."""
    from malcli.model.checkpoint import Checkpoint, save_checkpoint
    from malcli.model.labeler import Architecture, build_labeler

    tiny = Architecture("timm/test_vit.r160_in1k", "attention", 32, 4, "mean", 2, 4, True)
    networks = build_labeler(tiny), build_labeler(tiny)
    quality = {"miou": {"all": 0.5, "small": None}, "data": "v.json"}
    settings = {"crf_zeta": 0.1, "crf_iterations": 10, "colour_bandwidth": 0.2, "data": "t.json"}
    checkpoint = Checkpoint(*networks, tiny, (0.1, 0.25, 0.4), settings, quality)
    save_checkpoint(checkpoint, path)


def run_seed(seed: int, samples: Path, folder: Path) -> str:
    """Return what a seed comes to: `done`, `refused`, or the fault's own lines."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    work = folder / kind
    shutil.copytree(samples / kind, work, symlinks=True)
    try:
        file = rng.choice(_files(work, kind))
        mutate(file, rng)
        use(kind, work, samples, rng)
    except MalcliError as error:
        text = str(error)
        return "refused" if len(text.splitlines()) <= 1 else f"several lines: {text[:300]!r}"
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        return "refused"  # `cli.main` says these in one line
    except Exception:
        return f"{kind}: {traceback.format_exc()[-1500:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "done"


def _files(work: Path, kind: str) -> list[Path]:
    """Return the files of a sample that are no images, the larger half of the weights apart."""
    found = [each for each in sorted(work.rglob("*")) if each.is_file()]
    return [each for each in found if each.suffix not in (".png", ".jpg")] or found


def use(kind: str, work: Path, samples: Path, rng: random.Random) -> None:
    """Read a sample of a kind, and write or score it."""
    gt = samples / "coco/instances_val.json"
    if kind == "checkpoint":
        from malcli.model.checkpoint import load_checkpoint

        load_checkpoint(work / "a.safetensors")
    elif kind == "recipe":
        convert(gt, work / "out.json", recipe=str(work / "a.toml"))
    elif kind == "results":
        evaluate(gt=str(gt), pred=str(work / "a.json"), bootstrap=0)
    else:
        source = source_of(kind)
        if rng.random() < 0.4:
            sides = {"gt": str(gt), "pred": str(work / source)}
            if rng.random() < 0.5:
                sides = {"gt": sides["pred"], "pred": sides["pred"]}
            evaluate(**sides, images=str(work / "images"), bootstrap=0)
            return
        to = rng.choice(list(FORMATS))
        rle = rng.choice([None, "compressed", "uncompressed", "polygon"])
        target = work / f"out{suffix_of(to)}"
        options = {"contiguous_ids": rng.random() < 0.3, "drop_unlabelled": rng.random() < 0.2}
        given = kind if rng.random() < 0.5 else None
        images = str(work / "images") if kind == "openimages" or rng.random() < 0.5 else None
        convert(work / source, target, from_=given, to=to, rle=rle, images=images, **options)


def mutate(file: Path, rng: random.Random) -> None:
    """Make a file wrong, of its values or of its bytes."""
    data = file.read_bytes()
    file.unlink()
    if file.suffix == ".json" and rng.random() < 0.6:
        data = _wrong_json(json.loads(data), rng)
    elif file.suffix == ".csv" and rng.random() < 0.6:
        data = _wrong_csv(data.decode(), rng)
    elif file.suffix == ".safetensors" and rng.random() < 0.7:
        data = _wrong_header(data, rng)
    else:
        data = _wrong_bytes(data, rng)
    file.write_bytes(data)


def _wrong_json(value: Any, rng: random.Random) -> bytes:  # noqa: ANN401
    for _ in range(rng.randrange(1, 4)):
        _change(value, rng)
    return json.dumps(value).encode()


def _change(value: Any, rng: random.Random) -> None:  # noqa: ANN401
    """Change one value somewhere inside."""
    places = list(value) if isinstance(value, dict) else range(len(value))
    if not len(places):
        return
    place = rng.choice(places)
    if isinstance(value[place], dict | list) and value[place] and rng.random() < 0.85:
        _change(value[place], rng)
    elif isinstance(value, dict) and rng.random() < 0.3:
        value[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif rng.random() < 0.15:
        del value[place]
    else:
        value[place] = copy.deepcopy(rng.choice(VALUES))


def _wrong_csv(text: str, rng: random.Random) -> bytes:
    rows = list(csv.reader(text.splitlines()))
    for _ in range(rng.randrange(1, 4)):
        row = rng.choice(rows)
        if rng.random() < 0.2:
            row.append(str(rng.choice(VALUES[:24])) if rng.random() < 0.5 else "Extra")
        elif row:
            value = rng.choice(VALUES)
            row[rng.randrange(len(row))] = "9" * 5000 if value == 10**4000 else str(value)
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _wrong_header(data: bytes, rng: random.Random) -> bytes:
    """Change what a checkpoint says of itself."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["malcli"])
    for _ in range(rng.randrange(1, 3)):
        _change(meta, rng)
    header["__metadata__"]["malcli"] = json.dumps(meta)
    if rng.random() < 0.3:
        _change(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _wrong_bytes(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(raw) + 1)
        if rng.random() < 0.4 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        else:
            raw[at : at + rng.choice([0, 0, 1, 5])] = rng.choice(PIECES)
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.15 else raw)


def _work(pipe: Connection, samples: Path, folder: Path) -> None:
    """Run the seeds that come through the pipe; the parent's clock is the judge of hangs."""
    import torch

    torch.set_num_threads(1)  # a worker a core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    set_quiet(True)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        while (seed := pipe.recv()) is not None:
            pipe.send(run_seed(seed, samples, folder / str(seed)))


class Worker:
    """A process that runs seeds, one after the other; started again if it dies or hangs."""

    def __init__(self, samples: Path, folder: Path) -> None:
        """Start it."""
        self._places = (samples, folder)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *self._places), daemon=True)
        self.process.start()
        theirs.close()
        self.seed = self.began = 0.0

    def give(self, seed: int) -> None:
        """Let it run a seed."""
        self.seed, self.began = seed, time.monotonic()
        self.pipe.send(seed)

    def result(self) -> str:
        """Return what came of the seed; a dead process is a fault."""
        try:
            return str(self.pipe.recv())
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self._start()
            return f"died with exit code {code}"

    def end(self) -> None:
        """End a process that hangs, and start another."""
        self.process.kill()
        self.process.join()
        self._start()


def main() -> int:
    """Run the seeds, print the counts and the faults; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    set_quiet(True)
    seeds = iter(range(options.first, options.first + options.count))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="malcli-fuzz-") as name:
        samples = Path(name) / "samples"
        samples.mkdir()
        draw_samples(samples)
        workers = [Worker(samples, Path(name)) for _ in range(options.workers)]
        busy: dict[Connection, Worker] = {}
        for worker in workers:
            _next(worker, seeds, busy)
        with contextlib.suppress(KeyboardInterrupt):  # what was counted so far is printed
            while busy:
                ready = wait(list(busy), timeout=1)
                for worker in list(busy.values()):
                    late = time.monotonic() - worker.began > options.seconds
                    if worker.pipe not in ready and not late:
                        continue
                    del busy[worker.pipe]
                    seed = worker.seed
                    said = worker.result() if worker.pipe in ready else "hangs"
                    if said == "hangs":
                        worker.end()
                    if said not in ("done", "refused"):
                        print(f"seed {seed} ({KINDS[int(seed) % len(KINDS)]}): {said}", flush=True)
                        said = "fault"
                    counts[said] += 1
                    _next(worker, seeds, busy)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for worker in workers:
            worker.process.kill()
    print(", ".join(f"{count} {said}" for said, count in sorted(counts.items())))
    return int(counts["fault"] > 0)


def _next(worker: Worker, seeds: Any, busy: dict[Connection, Worker]) -> None:  # noqa: ANN401
    seed = next(seeds, None)
    if seed is not None:
        worker.give(seed)
        busy[worker.pipe] = worker


if __name__ == "__main__":
    sys.exit(main())
