"""The settings of a labelling job: those that change its result, its share, its output."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malcli.config.label import LabelConfig
from malcli.data.formats.parquet import images_path
from malcli.engine.label.crop_sizes import AUTO
from malcli.errors import ConfigError, OutputError
from malcli.files import is_same, refuse_foreign_file, refuse_special
from malcli.model.locate import locate_checkpoint, preset_of
from malcli.settings import names_of, parse_thresholds, resolve

REVIEW_COLUMNS = ("id", "image", "category", "score", "status")
LARGE_CROP = 256  # pixels; of larger ones a CPU gets fewer at once, so that a signal is heard soon
SUFFIXES = (".json", ".parquet")


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
    names = names_of(LabelConfig, "result", "selection")
    values = {name: getattr(config, name) for name in names}
    values["exif"] = None if config.exif == "auto" else config.exif
    values["compile"] = config.compile or None  # rounds otherwise; jobs that came before lack it
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
            refuse_special(path)
            if any(other is not None and is_same(path, other) for other in taken):
                raise OutputError(f"{path}: {flag} is also another input or output; name another")
            if path.is_dir():
                raise OutputError(f"{path}: {flag} is a folder; name a file")
            taken.append(path)
    if config.review and not config.overwrite:
        refuse_foreign_file(config.review, ",".join(REVIEW_COLUMNS), "review")
    return config.out
