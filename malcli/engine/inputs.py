"""What `label` will meet: its settings and names, the boxes, the images and their headers.

Opens no image beyond its header, and loads no network.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import check_headers
from malcli.data.formats.parquet import images_path
from malcli.data.formats.registry import open_boxes, select
from malcli.data.images.decode import ImageFolder, find_images
from malcli.engine.label.crop_sizes import AUTO
from malcli.errors import ConfigError, DataFormatError, OutputError
from malcli.model.locate import locate_checkpoint, preset_of
from malcli.records import STATUS_OK, BoxTable, Problems
from malcli.report.progress import Progress, log
from malcli.settings import parse_thresholds, resolve

# Beside the threshold, the crop size and the format.
RESULT_SETTINGS = (
    "network", "tta", "refine", "overlaps", "margin", "geometry", "min_score", "precision",
    "categories", "limit", "max_pixels",
)  # fmt: skip
LARGE_CROP = 256  # pixels; of larger ones a CPU gets fewer at once, so that a signal is heard soon
SUFFIXES = (".json", ".parquet")
FILE_KINDS = ("no-image-file", "bad-image-file")  # of problems that files have, not records
HEADER_STATUS = (STATUS_OK, "skipped:no-image", "skipped:bad-image")


def resolve_label(options: Mapping[str, Any], recipe: str | None = None) -> LabelConfig:
    """Return the settings of a command; a checkpoint of the released code implies its preset.

    Raises:
        ConfigError: As `settings.resolve`.
        CheckpointError: The checkpoint is not there.
    """
    config: LabelConfig = resolve(LabelConfig, options, recipe, "label").config
    if config.merge or config.dry_run:
        return config
    implied = preset_of(locate_checkpoint(config.checkpoint))
    if implied:
        config = resolve(LabelConfig, options, recipe, "label", implied).config
    return config


def result_settings(config: LabelConfig) -> dict[str, Any]:
    """Return the result-changing settings that are given.

    Raises:
        ConfigError: One of the settings cannot be understood.
    """
    values = {name: getattr(config, name) for name in RESULT_SETTINGS}
    values["compile"] = config.compile or None  # rounds otherwise
    if config.threshold is not None:
        is_auto = config.threshold == AUTO
        values["threshold"] = AUTO if is_auto else list(parse_thresholds(config.threshold))
    if config.crop_size is not None:
        values["crop_size"] = crop_size_of(config.crop_size)
    return {name: value for name, value in values.items() if value is not None}


def crop_size_of(text: str) -> int | str:
    """Return the side of crops that `--crop-size` says, pixels, or `auto`.

    Raises:
        ConfigError: It is neither.
    """
    if text == AUTO:
        return AUTO
    try:
        return whole_number(text, "--crop-size")
    except ConfigError as error:
        raise ConfigError(f"{error}, or {AUTO}") from None


def whole_number(text: str, flag: str) -> int:
    """Return a setting's whole number above 0.

    Raises:
        ConfigError: It is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise ConfigError(f"{flag} {text!r}: give a whole number above 0")
    return int(text)


def auto_batch(device: str, crop_size: int | str) -> int:
    """Return the crops per network call on a `cuda` or `cpu` device where the user gives none.

    Of crops of several sizes (`auto`), the largest may be large.
    """
    if device == "cuda":
        return 64
    return 4 if crop_size == AUTO or int(crop_size) > LARGE_CROP else 16


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's CPU seconds of this thread to a stage."""
    start = time.thread_time()
    try:
        yield
    finally:
        seconds[stage] += time.thread_time() - start


def batch_size_of(config: LabelConfig) -> int | None:
    """Return the batch size that is given, or None for `auto`."""
    return None if config.batch_size == "auto" else whole_number(config.batch_size, "--batch-size")


def share_of(shard: str | None, environment: Mapping[str, str] = os.environ) -> slice:
    """Return which parts are a process's: those of its shard, cut by the launcher's rank.

    Raises:
        ConfigError: The shard is not `I/N` with 0 <= I < N.
    """
    index, count = 0, 1
    if shard is not None:
        texts = shard.split("/")
        if len(texts) != 2 or not all(t.isascii() and t.isdigit() and len(t) < 10 for t in texts):
            raise ConfigError(f"--shard {shard!r}: give I/N, such as 0/4")
        index, count = int(texts[0]), int(texts[1])
        if index >= count:
            raise ConfigError(f"--shard {shard}: I counts from 0 to N - 1")
    rank, world = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    return slice(index + count * rank, None, count * world)


def checked_out(config: LabelConfig) -> Path:
    """Return the output, which no input may be.

    Raises:
        ConfigError: Missing, or its suffix names no format.
        OutputError: It is an input or a folder.
    """
    if config.out is None:
        raise ConfigError("label: --out is required: FILE.json or FILE.parquet (or --dry-run)")
    if config.out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {config.out}: its name must end in .json or .parquet")
    taken = [config.boxes, images_path(config.boxes), config.checkpoint]
    outputs = {"--out": config.out, "--review": config.review, "--report": config.report}
    if config.out.suffix.lower() == ".parquet":
        outputs["the image records of --out"] = images_path(config.out)
    for flag, path in outputs.items():
        if path is not None:
            if any(other is not None and is_same(path, other) for other in taken):
                raise OutputError(f"{path}: {flag} is also another input or output; name another")
            if path.is_dir():
                raise OutputError(f"{path}: {flag} is a folder; name a file")
            taken.append(path)
    return config.out


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths name one file, through links, too."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def open_data(config: LabelConfig) -> tuple[BoxTable, ImageFolder]:
    """Read the boxes and find their images.

    Raises:
        DataFormatError: The annotations cannot be understood.
        MissingImageError: None of the images is there.
    """
    table = select(
        open_boxes(config.boxes, config.format, config.images, with_masks=False),
        config.categories,
        config.limit,
    )
    folder = find_images(config.boxes, table, config.images)
    log(
        f"{config.boxes}: {table.boxes.num_rows} boxes in {table.images.num_rows} images; these in "
        f"{folder.root} ({folder.found} of the first {folder.tried} are there)"
    )
    return table, folder


def workers_of(config: LabelConfig) -> int:
    """Return the number of threads that read images; more than four bring little."""
    return min(4, os.cpu_count() or 1) if config.workers is None else config.workers


def check_images(config: LabelConfig, table: BoxTable, folder: ImageFolder) -> dict[str, int]:
    """Return the boxes of each status if every image is what its header says.

    Args:
        config: For the largest image and the number of threads.
        table: Its `problems` get a line for each bad image.
        folder: Where the images are.
    """
    codes: list[int] = []
    with Progress(table.images.num_rows, "images", "check") as progress:
        for errors in check_headers(table, folder, config.max_pixels, workers_of(config)):
            for error in errors:
                status = f"skipped:{error.status}" if error else STATUS_OK
                codes.append(HEADER_STATUS.index(status))
                if error:
                    table.problems.add(f"{error.status}-file", str(error))
            progress.advance(len(errors))
    code = np.array([*codes, 0])  # the last is for boxes of unknown images, whose row is -1
    counts: dict[str, int] = {}
    for batch in table.batches("status", "image"):
        found = code[batch["image"].to_numpy()]
        for status, header in zip(batch["status"].to_pylist(), found, strict=True):
            name = HEADER_STATUS[header] if status == STATUS_OK else status
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def report_problems(problems: Problems, kinds: Sequence[str] = ()) -> None:
    """Name on stderr what is wrong, of some kinds or all: totals, and the first ten of each."""
    for kind, count in sorted(problems.counts.items()):
        if not kinds or kind in kinds:
            log(f"{kind}: {count}")
            for example in filter(None, problems.examples.get(kind, [])):
                log(f"  {example}")


def refuse_problems(table: BoxTable) -> None:
    """Raise DataFormatError if any record is bad: what `--strict` asks for."""
    counts = sorted(table.problems.counts.items())
    if counts:
        examples = [example for shown in table.problems.examples.values() for example in shown]
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
        raise DataFormatError(table.path, f"--strict: {kinds}; first: {examples[0]}")
