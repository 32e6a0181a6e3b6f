"""The networks of a fit: what builds them, and the values that they start from."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from malcli.config.fit import FitConfig
from malcli.model.checkpoint import load_labeler_weights, read_tensors
from malcli.model.labeler import Architecture, MaskLabeler, build_labeler
from malcli.model.pretrained import load_encoder_weights, load_hub_weights
from malcli.model.released import architecture_of, is_released


def with_architecture_of_weights(config: FitConfig) -> FitConfig:
    """Return the settings with the architecture of a released labeler that `--weights` names.

    All but the crop size is the file's: encoder, stem, position, decoder, channels, size classes.
    Other weights change nothing. A resumed run, which has its weights, may do without the file.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if config.weights in (None, "none"):
        return config
    path = Path(config.weights)
    if config.resume and not path.is_file():
        return config
    tensors = read_tensors(path)
    if not is_released(tensors):
        return config
    plain = architecture_of(tensors, path).to_plain()
    del plain["crop_size"]
    return replace(config, **plain)


def build_networks(
    config: FitConfig, continued: bool
) -> tuple[MaskLabeler, MaskLabeler, Architecture]:
    """Return student, teacher and what builds them, on the CPU, with their starting values.

    The teacher starts as the student's copy, or is built and loaded by itself: then what no file
    holds (decoder, convolutional stem) has random values of its own. A whole labeler as `--weights`
    gives both networks its student part, whatever the teacher's start, as TAO does.

    Args:
        config: The fit's settings.
        continued: The run has all values in its own state; none are loaded here.

    Raises:
        MalcliError: Weights that cannot be reached, read or used.

    Source: Sec. 3.2; mal.md 4.1. Only the student has drop path and gradient checkpointing.
    """
    names = [item.name for item in fields(Architecture)]
    architecture = Architecture(**{name: getattr(config, name) for name in names})
    student = build_labeler(architecture, config.drop_path)
    teacher = build_labeler(architecture)
    if not continued:
        load = _loader(config)
        load(student)
        if config.teacher_start == "copy":
            teacher.load_state_dict(student.state_dict())
        else:
            load(teacher)
    if config.grad_checkpointing:
        student.encoder.set_grad_checkpointing(True)
    return student.train(), teacher.eval().requires_grad_(False), architecture


def _loader(config: FitConfig) -> Callable[[MaskLabeler], None]:
    """Return what puts the starting values of `--weights` into a network."""
    if config.weights == "none":
        return lambda network: None
    if config.weights is None:
        return lambda network: load_hub_weights(network.encoder, config.encoder, config.crop_size)
    path = Path(config.weights)
    tensors = read_tensors(path)
    if any(key.startswith("student.") for key in tensors):
        return lambda network: load_labeler_weights(network, tensors, path)
    return lambda network: load_encoder_weights(network.encoder, tensors, path, config.crop_size)
