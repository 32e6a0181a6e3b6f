"""The commands as functions, for people who import malcli.

Every keyword is the long flag's name with `_` for `-` (`--from` is `from_`), with the flag's
default; `malcli COMMAND --help` says what it means. Beside them `recipe` is a preset or a TOML
file, and `quiet` silences progress. What is not given, or None, comes from the recipe. A function
that needs torch loads it, not the import.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.retention import RetentionConfig
from malcli.errors import ConfigError
from malcli.report.progress import silenced
from malcli.settings import nearest, resolve

if TYPE_CHECKING:
    from malcli.engine.convert.command import ConvertResult
    from malcli.engine.convert.weights import WeightsResult
    from malcli.engine.eval.encoder.attention import AttentionResult
    from malcli.engine.eval.encoder.clustering import ClusteringResult
    from malcli.engine.eval.result import EvalResult
    from malcli.engine.fit.command import FitResult
    from malcli.engine.label.result import LabelResult
    from malcli.engine.retention.command import RetentionResult

StrPath = str | PathLike[str]
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _only_given(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Call the function with None for all that the caller leaves out: a recipe may say it.

    The defaults in the signatures are for readers and editors; those that count are the configs'.
    """
    signature = inspect.signature(function)
    whole: Callable[..., Result] = function

    @functools.wraps(function)
    def call(*args: Given.args, **keywords: Given.kwargs) -> Result:
        for name in keywords:
            if name not in signature.parameters:
                known = nearest(name, signature.parameters)
                raise ConfigError(f"{function.__name__}: unknown option '{name}'{known}")
        given = signature.bind_partial(*args, **keywords).arguments
        return whole(**{name: given.get(name) for name in signature.parameters})

    return call


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among a function's arguments, paths as text."""
    return {
        name: os.fspath(value) if isinstance(value, PathLike) else value
        for name, value in given.items()
        if name not in ("recipe", "quiet")
    }


@_only_given
def fit(
    *,
    data: StrPath,
    images: StrPath | None = None,
    format: str | None = None,
    categories: str | None = None,
    limit: int | None = None,
    max_pixels: int = 179_000_000,
    exif: str = "auto",
    max_failures: float = 0.5,
    strict: bool = False,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    num_processes: int = 1,
    val: StrPath | None = None,
    val_images: StrPath | None = None,
    paste: StrPath | None = None,
    out: StrPath | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_world_change: bool = False,
    encoder: str = "vit_mae_base",
    decoder: str = "attention",
    weights: str | None = None,
    stem: str = "patch",
    position: str = "antialiased",
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    channels: int = 256,
    key_pool: str = "mean",
    key_layers: int = 2,
    upsample_before: int = 4,
    feature_scale: float = 1.0,
    size_scaling: bool = True,
    size_classes: str = "half-open",
    crop_size: int = 512,
    theta: float = 1.2,
    expansion: str = "paper",
    border: str = "reflect",
    box_mask: str = "exact",
    min_box_area: float = 2048.0,
    keep_crowd: bool = False,
    epochs: int = 10,
    max_steps: int | None = None,
    batch_size: int = 4,
    grad_accum: int = 1,
    lr: float = 1.5e-06,
    min_lr_ratio: float = 0.2,
    warmup_epochs: float = 1.0,
    lr_timing: str = "before",
    decoder_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0005,
    beta1: float = 0.9,
    beta2: float = 0.9,
    grad_clip: float | None = None,
    teacher_momentum: float = 0.996,
    teacher_start: str = "copy",
    flip: float = 0.5,
    jitter: float = 0.5,
    grey: float = 0.2,
    blur: float = 0.5,
    paste_share: float = 0.7,
    mil_weight: float = 4.0,
    mil_form: str = "rows+columns",
    mil_norm: float = 0.0,
    mil_ramp: int = 1000,
    outside_weight: float = 0.0,
    crf_weight: float = 0.5,
    crf_ramp: int = 4000,
    crf_zeta: float = 0.1,
    crf_omega: float = 1.0,
    crf_self: bool = True,
    crf_epsilon: float = 0.0,
    crf_iterations: int = 100,
    crf_image: str = "clean",
    colour_weight: float = 0.0,
    colour_bandwidth: float = 0.2,
    paste_weight: float = 1.0,
    loss_size: str = "grid",
    threshold: str | float = "0.1",
    log_every: int = 10,
    save_every: int = 500,
    pictures_every: int = 500,
    val_every: int = 0,
    recipe: str | None = None,
    quiet: bool = False,
) -> "FitResult":
    """Train a labeler from boxes: `malcli fit`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    given = _settings(locals())
    from malcli.engine.fit import command as engine

    with silenced(quiet):
        return engine.fit(resolve(FitConfig, given, recipe, "fit").config)


@_only_given
def label(
    *,
    boxes: StrPath,
    images: StrPath | None = None,
    format: str | None = None,
    categories: str | None = None,
    limit: int | None = None,
    max_pixels: int = 179_000_000,
    exif: str = "auto",
    max_failures: float = 0.5,
    strict: bool = False,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    num_processes: int = 1,
    out: StrPath | None = None,
    checkpoint: StrPath | None = None,
    shard: str | None = None,
    merge: bool = False,
    dry_run: bool = False,
    resume: bool = False,
    retry_skipped: bool = False,
    overwrite: bool = False,
    network: str = "teacher",
    tta: str = "flip",
    refine: str = "crf",
    overlaps: str = "keep",
    threshold: str | float | None = None,
    crop_size: str | float | None = None,
    margin: float = 0.4,
    geometry: str = "exact",
    min_score: float | None = None,
    batch_size: str | float = "auto",
    compile: bool = False,
    review: StrPath | None = None,
    report: StrPath | None = None,
    recipe: str | None = None,
    quiet: bool = False,
) -> "LabelResult":
    """Make a mask for every box: `malcli label`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    given = _settings(locals())
    from malcli.engine.label import command as engine
    from malcli.engine.label.settings import resolve_label

    with silenced(quiet):
        return engine.label(resolve_label(given, recipe))


@_only_given
def evaluate(
    *,
    gt: StrPath,
    images: StrPath | None = None,
    format: str | None = None,
    categories: str | None = None,
    limit: int | None = None,
    max_pixels: int = 179_000_000,
    exif: str = "auto",
    max_failures: float = 0.5,
    strict: bool = False,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    num_processes: int = 1,
    pred: StrPath | None = None,
    checkpoint: StrPath | None = None,
    masks: StrPath | None = None,
    oracle: StrPath | None = None,
    clustering: bool = False,
    attention: bool = False,
    encoder: str | None = None,
    weights: str | None = None,
    ids: str | None = None,
    layers: str = "4,8,12",
    compare: StrPath | None = None,
    report: StrPath | None = None,
    bootstrap: int = 1000,
    network: str | None = None,
    tta: str | None = None,
    refine: str | None = None,
    threshold: str | float | None = None,
    crop_size: str | float | None = None,
    margin: float | None = None,
    geometry: str | None = None,
    overwrite: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
) -> "EvalResult | ClusteringResult | AttentionResult":
    """Score masks against human masks: `malcli eval`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    given = _settings(locals())
    from malcli.engine.eval import command as engine

    with silenced(quiet):
        return engine.measure(resolve(EvalConfig, given, recipe, "eval").config)


@_only_given
def convert(
    src: StrPath,
    dst: StrPath,
    *,
    images: StrPath | None = None,
    from_: str | None = None,
    exif: str = "auto",
    to: str | None = None,
    rle: str | None = None,
    contiguous_ids: bool = False,
    drop_unlabelled: bool = False,
    min_score: float | None = None,
    boxes_only: bool = False,
    overwrite: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
) -> "ConvertResult | WeightsResult":
    """Turn one annotation format into another: `malcli convert`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    given = _settings(locals())
    from malcli.engine.convert import command as engine

    with silenced(quiet):
        return engine.convert(resolve(ConvertConfig, given, recipe, "convert").config)


@_only_given
def retention(
    *,
    train: StrPath,
    masks: StrPath,
    val: StrPath,
    images: StrPath | None = None,
    val_images: StrPath | None = None,
    out: StrPath = "retention",
    overwrite: bool = False,
    resume: bool = False,
    student: str = "maskrcnn_resnet50_fpn_v2",
    weights: str | None = None,
    boxes_only: bool = False,
    image_size: int = 800,
    max_image_size: int = 1333,
    epochs: int = 12,
    max_steps: int | None = None,
    batch_size: int = 2,
    lr: float | None = None,
    categories: str | None = None,
    limit: int | None = None,
    max_pixels: int = 179_000_000,
    bootstrap: int = 200,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    num_processes: int = 1,
    recipe: str | None = None,
    quiet: bool = False,
) -> "RetentionResult":
    """Train the same student on human masks and on malcli's: `malcli retention`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    given = _settings(locals())
    from malcli.engine.retention import command as engine

    with silenced(quiet):
        return engine.retention(resolve(RetentionConfig, given, recipe, "retention").config)
