"""Networks of transformers for the students of phase 2: from the hub, a local folder, or random.

transformers is imported only here, and only when such a student is asked for.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from malcli.errors import CheckpointError, ConfigError
from malcli.model.transformers_student import (
    Mask2FormerStudent,
    RfDetrStudent,
    TransformersStudent,
)

MODELS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "rf_detr": "RfDetrForInstanceSegmentation",
}
NEEDED = ("transformers", "scipy")  # scipy: the matching inside their losses
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # both were pretrained with ImageNet's
UNUSED = ("embeddings.mask_token", "swin.layernorm.weight", "swin.layernorm.bias")  # by no loss
HEADS_OF_BACKBONE = ("hidden_states_norms", *UNUSED)  # what its own pretraining does not have
HUB_TIMEOUT = 10  # seconds for the first answer
SIDE_DIVISOR = 32  # of Mask2Former's images: the stride of its coarsest features


def build_transformers_student(
    name: str, classes: int, image_size: int, max_image_size: int, weights: str | None
) -> TransformersStudent:
    """Return a student of transformers.

    Args:
        name: Id at the hub, or a local folder with `config.json` and, unless `weights` is `none`,
            the weights as safetensors.
        classes: Number of categories.
        image_size: Mask2Former: shorter side of its images, pixels. RF-DETR takes squares of its
            own side.
        max_image_size: Mask2Former: longest side, pixels.
        weights: None: the model's own; what does not fit, as the layer of other classes, starts
            from random values. `none`: random values, whatever the folder holds. Else a backbone's
            id or local folder, such as a Swin's of ImageNet: all but it starts from random values.

    Raises:
        ConfigError: transformers is not installed, or the model is of another kind.
        CheckpointError: The model cannot be had.
    """
    check_transformers()
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    here = Path(name).is_dir() or not _hub_answers()
    config = _fetched(
        name, lambda: transformers.AutoConfig.from_pretrained(name, local_files_only=here)
    )
    kind = config.model_type
    if kind not in MODELS:
        raise ConfigError(
            f"--student {name}: is a {kind}; take one of {', '.join(MODELS)} (instance "
            f"segmentation), or train it elsewhere and give both result files to malcli eval "
            f"--oracle"
        )
    config.num_labels = classes
    built = getattr(transformers, MODELS[kind])
    if weights is not None:
        network = built(config)
        if weights != "none":
            _load_backbone(network, weights, config.backbone_config)
    else:
        network = _fetched(name, lambda: _pretrained(built, name, config, here))
    for key, value in network.named_parameters():
        # Processes that learn together wait for every gradient.
        value.requires_grad_(not key.endswith(UNUSED))
    if kind == "rf_detr":
        side = _square_side(config)
        square = GeneralizedRCNNTransform(side, side, [*MEAN], [*STD], 1, fixed_size=(side, side))
        return RfDetrStudent(network, square)
    return Mask2FormerStudent(
        network,
        GeneralizedRCNNTransform(image_size, max_image_size, [*MEAN], [*STD], SIDE_DIVISOR),
    )


def check_transformers() -> None:
    """Refuse to go on without the extra.

    Raises:
        ConfigError: Naming it.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--student: this one needs {name} ({error}); install it with: pip install "
                f"'malcli[students]'"
            ) from error


def _pretrained(built: Any, name: str, config: Any, here: bool) -> nn.Module:  # noqa: ANN401
    """Load a network; layers of other shapes keep their random values."""
    network: nn.Module = built.from_pretrained(
        name,
        config=config,
        local_files_only=here,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
    )
    return network


def _load_backbone(network: nn.Module, name: str, config: Any) -> None:  # noqa: ANN401
    """Load a pretrained encoder of images into a network."""
    here = Path(name).is_dir() or not _hub_answers()
    encoder: Any = _backbone(network)
    given, told = _fetched(
        name,
        lambda: type(encoder).from_pretrained(
            name,
            config=config,
            local_files_only=here,
            use_safetensors=True,
            output_loading_info=True,
        ),
        flag="--weights",
    )
    missing = [
        key for key in told["missing_keys"] if not any(part in key for part in HEADS_OF_BACKBONE)
    ]
    if missing:
        raise CheckpointError(
            f"--weights {name}: is no backbone of this student: {len(missing)} tensors are "
            f"missing, such as {missing[0]}; give a {config.model_type} of its sizes, or none"
        )
    encoder.load_state_dict(given.state_dict())


def _hub_answers() -> bool:
    """Return whether the hub is in reach, by one request: transformers would retry for long."""
    try:
        hub = huggingface_hub.utils.get_session()
        hub.head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # each version's HTTP library has errors of its own
        return False
    return True


def _fetched(name: str, get: Callable[[], Any], flag: str = "--student") -> Any:  # noqa: ANN401
    """Return what transformers loads, its many errors as one line."""
    try:
        return get()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if Path(name).is_dir():
            raise CheckpointError(
                f"{flag} {name}: holds no model that transformers can load ({why}); it needs "
                f"config.json and model.safetensors, or config.json and --weights none"
            ) from error
        raise CheckpointError(
            f"{flag} {name}: can neither be found in the local cache nor loaded from the hub "
            f"({why}). Three ways out: (1) give a local folder with its config.json and "
            f"model.safetensors as {flag}; (2) connect, or set HF_HOME to a cache that holds "
            f"it; (3) --weights none with a local folder of config.json, to start from random "
            f"values"
        ) from error


def _backbone(network: nn.Module) -> nn.Module:
    """Return the encoder of images inside a network."""
    for path in ("model.pixel_level_module.encoder", "model.model.backbone.backbone"):
        try:
            return network.get_submodule(path)
        except AttributeError:
            continue
    raise CheckpointError(f"{type(network).__name__}: has no backbone that malcli knows")


def _square_side(config: Any) -> int:  # noqa: ANN401
    """Return the side of RF-DETR's images: its backbone's, in whole windows of patches."""
    backbone = config.backbone_config
    side, patch = (
        value if isinstance(value, int) else value[0]
        for value in (backbone.image_size, backbone.patch_size)
    )
    step = int(patch * backbone.num_windows)
    return max(step, int(side) // step * step)
