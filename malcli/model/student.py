"""Students of phase 2: instance segmentation networks that learn from masks, human or malcli's.

Builds them with the values that training starts from; knows nothing of data or training.
"""

import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from malcli.errors import CheckpointError, ConfigError
from malcli.model.torchfile import read_torch, refuse_inflated
from malcli.model.transformers_models import build_transformers_student, check_transformers
from malcli.model.transformers_student import RfDetrStudent, TransformersStudent
from malcli.settings import nearest

HUB_TIMEOUT = 10  # seconds for the first answer
HUB_WEIGHTS = ResNet50_Weights.IMAGENET1K_V1
# Not trained once pretrained, as torchvision's own recipe leaves them.
FROZEN = ("conv1.", "bn1.", "layer1.")
NESTED = ("state_dict", "model")
DETECTOR = "backbone.body."


def build_student(
    name: str, classes: int, image_size: int, max_image_size: int, weights: str | None
) -> nn.Module:
    """Return a student in training mode.

    It takes and gives what torchvision's detectors do: lists of images (3, H, W) in [0, 1] and of
    targets, sizes as they are. Of torchvision's, all but the backbone starts from torch's random
    values.

    Args:
        name: One of `STUDENTS`, or a model of transformers: an id at the hub or a local folder.
        classes: Number of categories; label 0 is the background.
        image_size: Shorter side of the images inside the network, pixels.
        max_image_size: Longest side, pixels.
        weights: `none`, or None for the hub's or the folder's; else the backbone's: a local file
            of a ResNet-50 for one of `STUDENTS`, an id or a local folder for one of transformers.

    Raises:
        ConfigError: The student is unknown, or its library is not installed.
        CheckpointError: The weights cannot be had.
    """
    check_student(name)
    if of_transformers(name):
        built = build_transformers_student(name, classes, image_size, max_image_size, weights)
        return built.train()
    student = STUDENTS[name](classes, image_size, max_image_size)
    if weights != "none":
        state, source = backbone_state(weights)
        _load_backbone(cast(nn.Module, student.backbone), state, source)
    return student.train()


def of_transformers(name: str) -> bool:
    """Return whether a name is that of a model of transformers: an id with a slash, or a folder."""
    return name not in STUDENTS and ("/" in name or Path(name).is_dir())


def check_student(name: str) -> None:
    """Refuse a student that cannot be built here.

    Raises:
        ConfigError: Naming the remedy.
    """
    if of_transformers(name):
        check_transformers()
    elif name not in STUDENTS:
        raise ConfigError(
            f"--student {name}: unknown{nearest(name, STUDENTS)} (one of {', '.join(STUDENTS)}, or "
            f"a Mask2Former or RF-DETR-Seg of transformers: its id at the hub or a local folder)"
        )


def without_masks(student: nn.Module) -> nn.Module:
    """Take the mask branch off a student: it learns and predicts boxes alone (App. A.3).

    Raises:
        ConfigError: It has nothing but masks.
    """
    if isinstance(student, TransformersStudent):
        if not isinstance(student, RfDetrStudent):
            raise ConfigError(
                "--boxes-only: Mask2Former learns masks alone and has no boxes without them; leave "
                "it out, or take RF-DETR-Seg or torchvision's Mask R-CNN as --student"
            )
        student.drop_masks()
        return student
    heads: Any = student.roi_heads
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
    return student


def backbone_state(weights: str | None) -> tuple[dict[str, Tensor], Path]:
    """Return a ResNet-50's tensors and the file that they come from.

    Args:
        weights: A local file; None: torch's cache, or the hub.

    Raises:
        CheckpointError: Missing, damaged, or the hub is out of reach.
    """
    path = _from_hub() if weights is None else Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"--weights {path}: no such file; give a ResNet-50's, or --weights none"
        )
    if path.suffix == ".safetensors":
        try:
            loaded: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: no readable safetensors file ({error})") from error
    else:
        loaded = read_torch(path)
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    items = loaded.items() if isinstance(loaded, Mapping) else ()
    state = {str(key): value for key, value in items if isinstance(value, Tensor)}
    refuse_inflated(state.values(), path)
    return state, path


def _from_hub() -> Path:
    """Return torchvision's file of ImageNet weights in torch's cache, loaded down if need be.

    A hub out of reach is found out by one request that does not wait long.
    """
    url = str(HUB_WEIGHTS.url)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.is_file():
        return path
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
        path.parent.mkdir(parents=True, exist_ok=True)
        expected = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the student's pretrained backbone is neither at {path} nor can {url} be reached "
            f"({type(error).__name__}). Three ways out: (1) --weights FILE with a local ResNet-50; "
            f"(2) connect, or set TORCH_HOME to a cache that holds it; (3) --weights none to start "
            f"from random values"
        ) from error
    return path


def _load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a ResNet's tensors in place and freeze its first layers; a classifier is ignored."""
    body = cast(nn.Module, backbone.body)
    inner = [key for key in state if DETECTOR in key]
    # Of a whole detector its backbone is taken, whatever wraps it.
    plain = {key.partition(DETECTOR)[2] if inner else key: state[key] for key in inner or state}
    wanted = body.state_dict()
    wrong = [
        key
        for key, value in wanted.items()
        if not key.endswith("num_batches_tracked")
        and (key not in plain or plain[key].shape != value.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: no weights of a ResNet-50: {len(wrong)} tensors are missing or of another "
            f"shape, such as {wrong[0]}; give a ResNet-50's, or --weights none"
        )
    body.load_state_dict({key: plain.get(key, value) for key, value in wanted.items()})
    for key, parameter in body.named_parameters():
        parameter.requires_grad_(not key.startswith(FROZEN))


def _mask_rcnn(classes: int, image_size: int, max_image_size: int) -> nn.Module:
    """Return torchvision's improved Mask R-CNN from random values."""
    student: nn.Module = maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=classes + 1,
        min_size=image_size,
        max_size=max_image_size,
    )
    return student


STUDENTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "maskrcnn_resnet50_fpn_v2": _mask_rcnn,
}
