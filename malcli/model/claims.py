"""What a checkpoint says of itself, held against limits before anything is built from it.

A file may come from a stranger: a number in its text must not cost more than the file itself.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from malcli.errors import ConfigError
from malcli.messages import short
from malcli.model.encoders import FAILURES, PLAIN_NAME
from malcli.model.labeler import Architecture, build_labeler

# Far above anything that was ever trained, and cheap to build still.
LIMITS = {
    "crop_size": (1, 4096),
    "channels": (1, 4096),
    "key_layers": (1, 16),
    "upsample_before": (0, 16),
    "feature_scale": (0.0, 1e6),
}
# Settings that label takes from a checkpoint.
SETTING_LIMITS = {
    "crf_zeta": (1e-9, 1e9),
    "crf_omega": (0.0, 1e9),
    "crf_iterations": (0, 10_000),
    "colour_bandwidth": (1e-9, 1e9),
}
LONGEST_NAME = 200  # characters of an encoder's


def architecture_from(plain: object) -> Architecture:
    """Return the architecture that plain values say.

    Raises:
        ValueError: A field is missing, of another type, or beyond its limits.
    """
    if not isinstance(plain, dict):
        raise ValueError("architecture is no object")
    for item in fields(Architecture):
        if item.name not in plain:
            continue
        value = plain[item.name]
        numbers = (int, float) if item.type is float else (item.type,)
        if type(value) not in numbers or (type(value) is str and len(value) > LONGEST_NAME):
            raise ValueError(f"architecture.{item.name} is {short(value)}")
        if item.name in LIMITS:
            _within(f"architecture.{item.name}", value, *LIMITS[item.name])
    try:
        return Architecture(**plain)
    except TypeError as error:
        raise ValueError(str(error)[:100]) from None


def thresholds_from(plain: object) -> tuple[float, float, float]:
    """Return the thresholds of small, medium and large boxes.

    Raises:
        ValueError: Not three numbers of at least 0 and below 1.
    """
    if not isinstance(plain, list) or len(plain) != 3:
        raise ValueError(f"threshold is {short(plain)}, not three numbers")
    small, medium, large = (_within("threshold", value, 0, 1) for value in plain)
    if max(small, medium, large) == 1:
        raise ValueError("threshold is 1, which no pixel is above")
    return small, medium, large


def settings_from(plain: object) -> dict[str, Any]:
    """Return the settings of the fit; None is no settings.

    Raises:
        ValueError: No object, or one that label takes over is beyond its limits.
    """
    settings = _object("settings", plain)
    for key, limits in SETTING_LIMITS.items():
        if settings.get(key) is not None:
            _within(f"settings.{key}", settings[key], *limits)
    return settings


def quality_from(plain: object) -> dict[str, Any]:
    """Return the measured quality; None is not measured.

    Raises:
        ValueError: `miou` is not an object of numbers, or `data` no name.
    """
    quality = _object("quality", plain)
    for key, value in _object("quality.miou", quality.get("miou")).items():
        if value is not None:
            _within(f"quality.miou.{short(key)}", value, 0, 1)
    if not isinstance(quality.get("data", None if quality.get("miou") else ""), str):
        raise ValueError(f"quality.data is {short(quality.get('data'))}")
    return quality


def refuse_unbuildable(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a network that the file's tensors are not of, without building it.

    It is drawn up on torch's meta device, which holds shapes and no numbers.

    Raises:
        ValueError: It cannot be built, or a tensor of the student is missing or of another shape.
    """
    plain = PLAIN_NAME.fullmatch(architecture.encoder)
    if plain and int(plain[2]) > len(tensors):
        raise ValueError(f"{architecture.encoder} has more blocks than the file has tensors")
    try:
        with torch.device("meta"):
            wanted = build_labeler(architecture).state_dict()
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except (NotImplementedError, *FAILURES):
        return  # not for the meta device; whoever builds it says what is wrong
    for key, value in wanted.items():
        given = tensors.get(f"student.{key}")
        if given is None or given.shape != value.shape:
            raise ValueError(
                f"student.{key} is {'missing' if given is None else tuple(given.shape)}, the "
                f"network's is {tuple(value.shape)}"
            )


def _within(name: str, value: object, low: float, high: float) -> float:
    """Return a number between two limits, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {short(value)}, no number")
    if not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{name} is {short(value)}, not in {low:g} to {high:g}")
    return float(value)


def _object(name: str, plain: object) -> dict[str, Any]:
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise ValueError(f"{name} is {short(plain)}, no object")
    return plain
