"""What a retention study is, its folder, and the instances that its students learn from.

    OUT/job.json      what decides the result, and what the first start decided
    OUT/config.toml   the settings
    OUT/students/     one folder a student
    OUT/human.json    detections of the student trained on human masks; malcli.json, boxes.json
    OUT/result.json   what `--json` prints, once all is measured

Knows nothing of networks.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from malcli.config.retention import RetentionConfig
from malcli.data.crops.student_images import Targets
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import ImageFolder, find_images
from malcli.engine.eval.read_instances import (
    Frame,
    open_predicted,
    read_frame,
    read_human,
    read_predicted,
)
from malcli.engine.inputs import check_headers
from malcli.engine.label.job import hash_input
from malcli.errors import BadImage, DataFormatError, OutputError
from malcli.files import hash_file, replacing
from malcli.geometry.boxes import clip_xyxy, xywh_to_xyxy
from malcli.geometry.rle import area
from malcli.identity import HASH, differences, refuse
from malcli.metrics.pairing import Instances, pair_instances
from malcli.records import BoxTable, Problems, category_names
from malcli.report.progress import log
from malcli.settings import names_of, to_plain, to_toml

MEASURING = names_of(RetentionConfig, "measure")  # they change no student
THINNEST = 1.0  # pixels: a side that stays above 0 at the student's size, too


@dataclass(frozen=True)
class TrainingSide:
    """What both students are trained on.

    Attributes:
        images: Columns of the images.
        folder: Where they are.
        human: The instances with human masks.
        malcli: The same instances with malcli's.
        categories: {id: name}; label n is the n-th id.
        counts: Instances used and left out, by reason.
    """

    images: pa.Table
    folder: ImageFolder
    human: Targets
    malcli: Targets
    categories: dict[int, str]
    counts: dict[str, int]


@dataclass(frozen=True)
class ValidationSide:
    """What both students are measured on."""

    table: BoxTable
    folder: ImageFolder
    frame: Frame
    human: Instances


def job_of(config: RetentionConfig) -> dict[str, Any]:
    """Return what decides a study's result: settings as given, and hashes of its files.

    Raises:
        DataFormatError: A file is missing or unreadable.
    """
    counted = names_of(RetentionConfig, "result", "selection", "measure")
    job = {key: value for key, value in to_plain(config).items() if key in counted}
    for name in names_of(RetentionConfig, "input"):
        job[name + HASH] = hash_input(getattr(config, name))
    if config.weights not in (None, "none") and Path(str(config.weights)).is_file():
        job["weights"] = hash_file(Path(str(config.weights)))
    for name in ("student", "weights"):  # local models of transformers
        for path in sorted(Path(str(getattr(config, name))).glob("*")):
            if path.name == "config.json" or path.suffix == ".safetensors":
                job[f"{name}_{path.name}{HASH}"] = hash_file(path)
    return job


def open_study(config: RetentionConfig, job: dict[str, Any]) -> dict[str, Any] | None:
    """Look at `--out`; return the result if the same study is finished, else None.

    Raises:
        OutputError: It holds an input, something else, or another study.
    """
    out = config.out
    for path in (config.train, config.masks, config.val):
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise OutputError(f"{out}: holds the input {path}; give another --out")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder as --out")
    if not out.exists() or not any(out.iterdir()):
        if config.resume:
            log(f"{out}: nothing to resume; starting")
        return None
    before = _read_json(out / "job.json")
    if before is None:
        raise OutputError(f"{out}: is not a study of malcli; give another --out")
    if config.overwrite:
        return None
    stored = before.get("job")
    was, now = (
        {key: value for key, value in one.items() if key not in MEASURING}
        for one in (stored if isinstance(stored, dict) else {}, job)
    )
    refuse(out, "study", differences(was, now))
    result = _read_json(out / "result.json")
    if result is not None and all(result.get(key) == getattr(config, key) for key in MEASURING):
        return result
    return None


def prepare_study(
    config: RetentionConfig, job: dict[str, Any], started: dict[str, Any], main: bool
) -> None:
    """Make the folder; an earlier study that `--overwrite` replaces is removed here.

    Args:
        config: The settings.
        job: As `job_of` gives it.
        started: What this start decides (precision, number of processes); a study goes on with
            what its first start decided.
        main: Whether this process writes.

    Raises:
        OutputError: The study was started otherwise.
    """
    before = None if config.overwrite else _read_json(config.out / "job.json")
    was = started | (before or {}).get("started", {})
    refuse(config.out, "study", differences({key: was[key] for key in started}, started))
    if not main:
        return
    if config.overwrite:
        shutil.rmtree(config.out, ignore_errors=True)
    write_json({"job": job, "started": started}, config.out / "job.json")
    with replacing(config.out / "config.toml") as temporary:
        temporary.write_text(to_toml(config, "retention"), encoding="utf-8")


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object that malcli wrote; None if it is not there or not readable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_training(config: RetentionConfig) -> TrainingSide:
    """Read the human annotations and malcli's masks of them, and pair both by id.

    Instances that one of the two cannot give a mask for are left out of both, and counted.

    Raises:
        DataFormatError: A file cannot be understood, or no instance is left.
        MissingImageError: None of the images can be found.
    """
    log(f"retention: reading {config.train} and {config.masks}")
    table, frame, problems = _open(config, config.train)
    human = read_human(table, frame, problems)
    source = open_predicted(config.masks)
    if isinstance(source, Path):
        raise DataFormatError(
            source, "is a list of detections, not masks of annotations; give what label wrote"
        )
    made = read_predicted(source, frame, problems)
    _tell(problems)
    folder = find_images(config.train, table, config.images)
    readable = _readable_images(config, table, folder)
    names = category_names(table.header)
    ids = sorted(names if frame.chosen is None else names.keys() & frame.chosen)
    pairs = pair_instances(human, made)
    reasons: Counter[str] = Counter(missing=pairs.counts["missing"], crowd=pairs.counts["crowd"])
    kept: list[tuple[int, int]] = []
    xyxy = _boxes(human, frame)
    for i, j in zip(pairs.human.tolist(), pairs.predicted.tolist(), strict=True):
        reason = _why_not(human, made, i, j, xyxy[i], set(ids), readable)
        if reason is None:
            kept.append((i, j))
        else:
            reasons[reason] += reason != "missing"
    counts = {"instances": pairs.counts["instances"], "used": len(kept), **reasons}
    if not kept:
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
        raise DataFormatError(
            config.masks,
            f"no instance of --train is left to train on ({told}); give the masks that malcli "
            f"label made of --train's boxes",
        )
    kept.sort(key=lambda pair: int(human.image[pair[0]]))
    rows = np.array([i for i, _ in kept])
    shared = {
        "image": human.image[rows],
        "xyxy": xyxy[rows],
        "label": np.searchsorted(ids, human.category[rows]) + 1,
    }
    return TrainingSide(
        images=table.images,
        folder=folder,
        human=Targets(**shared, rles=[rle for i, _ in kept if (rle := human.rles[i])]),
        malcli=Targets(**shared, rles=[rle for _, j in kept if (rle := made.rles[j])]),
        categories={number: names[number] for number in ids},
        counts={**counts, "images": len(np.unique(shared["image"]))},
    )


def _why_not(
    human: Instances,
    made: Instances,
    i: int,
    j: int,
    xyxy: NDArray[np.float64],
    known: set[int],
    readable: NDArray[np.bool_],
) -> str | None:
    """Return why a pair is trained on by neither student, None if by both."""
    if j < 0:
        return "missing"
    both = (human.rles[i], made.rles[j])
    if not all(rle is not None and area(rle) > 0 for rle in both):
        return "without_mask"
    if int(human.category[i]) not in known:
        return "unknown_category"
    # NaN is above nothing.
    if not (xyxy[2:] - xyxy[:2] >= THINNEST).all():
        return "bad_box"
    return None if readable[human.image[i]] else "bad_image"


def _boxes(side: Instances, frame: Frame) -> NDArray[np.float64]:
    """Return the boxes of a side as xyxy clipped to their images."""
    xyxy = xywh_to_xyxy(side.xywh)
    for row, image in enumerate(side.image.tolist()):
        xyxy[row] = clip_xyxy(xyxy[row], frame.sizes_hw[image])
    return xyxy


def _readable_images(
    config: RetentionConfig, table: BoxTable, folder: ImageFolder
) -> NDArray[np.bool_]:
    """Return which images have a header as stated; the others are counted on stderr."""
    wrong = [error for part in check_headers(table, folder, config.max_pixels, 4) for error in part]
    bad = [str(error) for error in wrong if isinstance(error, BadImage)]
    if bad:
        log(f"retention: {len(bad)} images cannot be used, such as {bad[0]}")
    return np.array([not isinstance(error, BadImage) for error in wrong], dtype=bool)


def _open(config: RetentionConfig, path: Path) -> tuple[BoxTable, Frame, Problems]:
    """Return a file of human masks with its images and categories."""
    table = select(open_boxes(path), config.categories, config.limit)
    return table, read_frame(table, config.categories, config.limit), Problems()


def _tell(problems: Problems) -> None:
    for kind, examples in problems.examples.items():
        log(f"retention: {problems.counts[kind]} {kind}, such as {examples[0]}")


def read_validation(config: RetentionConfig, categories: dict[int, str]) -> ValidationSide:
    """Read the human masks to measure on.

    Args:
        config: The settings.
        categories: What the students know.

    Raises:
        DataFormatError: The file cannot be understood, or numbers the categories otherwise.
        MissingImageError: None of the images can be found.
    """
    table, frame, problems = _open(config, config.val)
    human = read_human(table, frame, problems)
    _tell(problems)
    for number, name in categories.items():
        theirs = frame.categories.get(number, name)
        if theirs != name:
            raise DataFormatError(
                config.val,
                f"category {number} is {theirs!a} here and {name!a} in --train; both files need "
                f"the same category ids",
            )
    unknown = sorted(set(human.category.tolist()) - set(categories))
    if unknown:
        log(f"retention: {len(unknown)} categories of --val are not in --train: never found")
    return ValidationSide(table, find_images(config.val, table, config.val_images), frame, human)
