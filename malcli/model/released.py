"""Checkpoints of the released code (NVlabs, `.ckpt`) and of TAO (`.pth`) as malcli's own.

Everything is told by the tensors' names and shapes; nothing else in a file counts.

Source: mal.md 2, 3 and 10.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from malcli.errors import CheckpointError
from malcli.model.labeler import Architecture

NETWORKS = ("student", "teacher")
PARTS = ("backbone", "roi_head", "mask_head")
HEAD_WIDTH = 64  # channels of an attention head
PATCH = 16  # pixels
CROP_SIZE = 512  # pixels
STEM = "backbone.patch_embed.proj.0.0.weight"  # only the convolutional one has it
UNUSED = "backbone.head."  # a classifier that no mask is made with
KNOWN = (
    "malcli reads plain ViTs with heads of 64, with the convolutional stem or 16x16 patches, and "
    "the decoder of four convolutions"
)
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_RENAMED = (
    (re.compile(r"backbone\."), "encoder.body."),
    (re.compile(r"roi_head\.mlp1\."), "decoder.key.0."),
    (re.compile(r"roi_head\.mlp2\."), "decoder.key.2."),
    (re.compile(r"mask_head\.convs\.(\d)\.conv\."), r"decoder.value.\1."),
)
Shape = tuple[int, ...]


def is_released(tensors: Iterable[str]) -> bool:
    """Return whether names of tensors, or a dict with them, are of the released code or of TAO."""
    heads = tuple(f"{network}.{part}." for network in NETWORKS for part in PARTS)
    return any(name.startswith(heads) for name in tensors)


def networks_in(tensors: Iterable[str]) -> list[str]:
    """Return which of `student` and `teacher` the file holds."""
    found = {name.partition(".")[0] for name in tensors}
    return [network for network in NETWORKS if network in found]


def source_of(architecture: Architecture, path: Path) -> str:
    """Return which program wrote the file, as far as it can be told (mal.md 10)."""
    if architecture.stem == "patch":
        return "TAO 6.25.7 or later"
    return "TAO 5.0-6.0" if path.suffix.lower() == ".pth" else "NVlabs"


def architecture_of(tensors: Mapping[str, Tensor], path: Path) -> Architecture:
    """Return the architecture that the tensors' shapes say.

    Args:
        tensors: All tensors of the file, by their own names.
        path: The file, for messages.

    Raises:
        CheckpointError: Names or shapes that do not belong to a labeler that malcli knows.
    """
    shapes = _shapes_of(tensors, networks_in(tensors)[0])
    stem = "convolutional" if STEM in shapes else "patch"
    width = (shapes.get("backbone.cls_token") or (0,))[-1]
    depth = len({match[1] for name in shapes if (match := _BLOCK.match(name))})
    channels = (shapes.get("roi_head.mlp1.weight") or (0,))[0]
    for network in networks_in(tensors):
        _check(_shapes_of(tensors, network), _expected(width, depth, channels, stem), network, path)
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: its encoder is {width} wide, which is no number of heads of {HEAD_WIDTH}; "
            f"{KNOWN}"
        )
    _check_grid(shapes["backbone.pos_embed"], path)
    return Architecture(
        encoder=f"vit/{width}x{depth}",
        decoder="attention",
        crop_size=CROP_SIZE,
        channels=channels,
        key_pool="mean",
        key_layers=2,
        upsample_before=4,
        size_scaling=True,
        stem=stem,
        position="released" if stem == "convolutional" else "antialiased",
        size_classes="strict",
    )


def malcli_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors under malcli's names, `student.encoder.body...` and so on.

    A file with one network gives it twice.

    Raises:
        CheckpointError: As `architecture_of`.
    """
    architecture_of(tensors, path)
    found = networks_in(tensors)
    renamed = {}
    for network in NETWORKS:
        source = network if network in found else found[0]
        for name in _shapes_of(tensors, source):
            renamed[f"{network}.{_malcli_name(name)}"] = tensors[f"{source}.{name}"]
    return renamed


def _malcli_name(name: str) -> str:
    for pattern, ours in _RENAMED:
        if pattern.match(name):
            return pattern.sub(ours, name, count=1)
    raise AssertionError(f"{name}: not among the expected names")


def _shapes_of(tensors: Mapping[str, Tensor], network: str) -> dict[str, Shape]:
    """Return the shapes of a network's tensors, without its prefix and without the classifier."""
    own = {
        name.removeprefix(f"{network}."): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(f"{network}.")
    }
    return {name: shape for name, shape in own.items() if not name.startswith(UNUSED)}


def _expected(width: int, depth: int, channels: int, stem: str) -> dict[str, Shape]:
    """Return names and shapes of one network; the position grid's length is free (mal.md 10)."""
    shapes: dict[str, Shape] = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, -1, width),
        **_affine("backbone.norm", (width,)),
        **_affine("roi_head.mlp1", (channels, width)),
        **_affine("roi_head.mlp2", (channels, channels)),
        **(_stem(width) if stem == "convolutional" else {}),
    }
    if stem == "patch":
        shapes |= _affine("backbone.patch_embed.proj", (width, 3, PATCH, PATCH))
    for index in range(depth):
        block = f"backbone.blocks.{index}"
        shapes |= _affine(f"{block}.norm1", (width,)) | _affine(f"{block}.norm2", (width,))
        shapes |= _affine(f"{block}.attn.qkv", (3 * width, width))
        shapes |= _affine(f"{block}.attn.proj", (width, width))
        shapes |= _affine(f"{block}.mlp.fc1", (4 * width, width))
        shapes |= _affine(f"{block}.mlp.fc2", (width, 4 * width))
    for index, features in enumerate((width, channels, channels, channels)):
        shapes |= _affine(f"mask_head.convs.{index}.conv", (channels, features, 3, 3))
    return shapes


def _stem(width: int) -> dict[str, Shape]:
    """Return names and shapes of the convolutional stem (mal.md 2.1)."""
    proj = "backbone.patch_embed.proj"
    widths = (3, width // 8, width // 4, width // 2, width)
    shapes = _affine(f"{proj}.3.3", (width, width, 1, 1))
    for stage, (features, channels) in enumerate(itertools.pairwise(widths)):
        shapes[f"{proj}.{stage}.0.weight"] = (channels, features, 3, 3)
        shapes |= _affine(f"{proj}.{stage}.1", (channels,))
    return shapes


def _affine(name: str, shape: Shape) -> dict[str, Shape]:
    """Return a weight of this shape and the bias that goes with it."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _check(
    shapes: Mapping[str, Shape], expected: Mapping[str, Shape], network: str, path: Path
) -> None:
    """Raise CheckpointError, with the first names that are wrong, unless the shapes fit."""
    kinds = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {list(shape)}"
            for name, shape in shapes.items()
            if name in expected and not _fits(shape, expected[name])
        ],
    }
    said = [
        f"{len(names)} {kind}, first {network}.{names[0][:80]}"
        for kind, names in kinds.items()
        if names
    ]
    if said:
        raise CheckpointError(
            f"{path}: not a labeler that malcli knows: {'; '.join(said)}; {KNOWN}"
        )


def _fits(shape: Shape, wanted: Shape) -> bool:
    """Return whether a shape is the wanted one, where -1 is any length."""
    return len(shape) == len(wanted) and all(
        want in (-1, side) for side, want in zip(shape, wanted, strict=True)
    )


def _check_grid(shape: Shape, path: Path) -> None:
    """Raise CheckpointError unless the position grid is a class token and a square."""
    cells = shape[1] - 1
    if cells < 1 or math.isqrt(cells) ** 2 != cells:
        raise CheckpointError(
            f"{path}: its position grid has {cells} cells, which is no square; {KNOWN}"
        )
