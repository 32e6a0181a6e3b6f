"""Labelers on disk: one safetensors file with student, teacher and configuration inside.

Checkpoints of the released code and of TAO are read as they are; no code in a file is ever run.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from malcli.checksums import DamagedError, checksum, unseal
from malcli.errors import CheckpointError
from malcli.files import LFS_HEAD, hash_file, replacing
from malcli.model import claims, locate
from malcli.model.labeler import Architecture, MaskLabeler, build_labeler
from malcli.model.released import (
    architecture_of,
    is_released,
    malcli_tensors,
    networks_in,
    source_of,
)
from malcli.model.selftest import SelfTest, behaves_trained
from malcli.model.torchfile import is_plain, read_torch, refuse_inflated
from malcli.version import __version__

TENSORS_HASH = "tensors_sha256"
RELEASED_THRESHOLD = (0.1, 0.1, 0.1)  # mal.md 0


@dataclass(frozen=True)
class Checkpoint:
    """Both networks and what is known of them.

    Attributes:
        student: The task network.
        teacher: Its moving average.
        architecture: What builds them.
        threshold: Probability thresholds for small, medium and large boxes.
        settings: The settings of the fit, plain values, file names without folders.
        quality: Measured on human masks (`data`, `miou`, ...); empty if it never was.
        trained: Optimiser `steps` and `epochs` behind it, starts that were resumed included; empty
            if malcli did not train it, or before it kept them.
        sha256: Hash of the file; empty before it is saved.
        notes: Sentences for the log: what was found in a file that malcli did not write.
        self_test: How its student did on drawn crops; None for a file of malcli.
    """

    student: MaskLabeler
    teacher: MaskLabeler
    architecture: Architecture
    threshold: tuple[float, float, float]
    settings: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    notes: tuple[str, ...] = ()
    self_test: SelfTest | None = None


def save_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        checkpoint: What to save.
        path: The target.
        dtype: Number format of the tensors; float16 halves the file.
    """
    tensors = {
        f"{name}.{key}": value.detach().to("cpu", dtype).contiguous()
        for name, network in (("student", checkpoint.student), ("teacher", checkpoint.teacher))
        for key, value in network.state_dict().items()
    }
    meta = {
        "version": __version__,
        "architecture": checkpoint.architecture.to_plain(),
        "threshold": list(checkpoint.threshold),
        "settings": checkpoint.settings,
        "quality": checkpoint.quality,
        TENSORS_HASH: _hash_tensors(tensors),
        "trained": checkpoint.trained,
    }
    text = json.dumps({"sha256": checksum(meta), **meta}, sort_keys=True)
    with replacing(path) as temporary:
        write_tensors(tensors, temporary, {"malcli": text})


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that may be read by whom the user's files may be read by.

    Raises:
        OSError: As of any write; safetensors hides the system's error in its text.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
        path.chmod(mode)  # safetensors' own files are for their owner alone
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, _first_line(error)) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, in float32 and evaluation mode.

    Args:
        path: A file of malcli, or of the released code or TAO as it was downloaded; of these, the
            student is tried on a few drawn crops, and `notes` say how it did.

    Raises:
        CheckpointError: Missing, damaged, of another kind, or its tensors do not fit.
    """
    try:
        return _load(path)
    except CheckpointError as error:
        if path != locate.SHIPPED:
            raise
        raise CheckpointError(
            f"{error}. This is the labeler that ships with malcli: install malcli again, or give "
            f"--checkpoint"
        ) from None


def _load(path: Path) -> Checkpoint:
    """Return what a file holds."""
    check_file(path)
    if not is_safetensors(path):
        return _load_released(path)
    meta, tensors = _read(path)
    try:
        architecture = claims.architecture_from(meta.get("architecture"))
        threshold = claims.thresholds_from(meta.get("threshold"))
        settings = claims.settings_from(meta.get("settings"))
        quality = claims.quality_from(meta.get("quality"))
        trained = dict(meta.get("trained") or {})
        claims.refuse_unbuildable(architecture, tensors)
    except (TypeError, ValueError) as error:
        version = str(meta.get("version", "?"))
        raise CheckpointError(
            f"{path}: its configuration cannot be used ({error}); it was written by malcli "
            f"{version:.20}, this is {__version__}"
        ) from None
    networks = []
    for name in ("student", "teacher"):
        network = _build(architecture, path)
        _fill(network, name, tensors, path)
        networks.append(network.eval().requires_grad_(False))
    return Checkpoint(
        student=networks[0],
        teacher=networks[1],
        architecture=architecture,
        threshold=threshold,
        settings=settings,
        quality=quality,
        trained=trained,
        sha256=hash_file(path),
    )


def with_quality(path: Path, quality: Mapping[str, Any]) -> None:
    """Write the measured quality into a checkpoint file, in place."""
    checkpoint = load_checkpoint(path)
    save_checkpoint(replace(checkpoint, quality=dict(quality)), path)


def load_labeler_weights(network: MaskLabeler, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the student of another labeler into a network of the same architecture.

    The position grid is resampled where the crop sizes differ. The tensors may have the names of
    the released code.

    Raises:
        CheckpointError: Tensors are missing or of another shape.
    """
    if is_released(tensors):
        tensors = malcli_tensors(tensors, path)
    _fill_resampled(network, "student", tensors, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file: safetensors, or a torch file of plain tensors.

    A dictionary under `model`, `state_dict` or `model_state_dict` is unwrapped.

    Raises:
        CheckpointError: Missing, damaged, or it holds code.
    """
    check_file(path)
    loaded = _read_safetensors(path) if is_safetensors(path) else read_torch(path)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not named tensors")
    tensors = {str(key): value for key, value in loaded.items() if is_plain(value)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; give a weight file")
    refuse_inflated(tensors.values(), path)
    return tensors


def check_file(path: Path) -> None:
    """Raise CheckpointError if the file is missing, a folder, empty or a Git LFS pointer."""
    if not path.is_file():
        said = "is a folder" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {said}; give a checkpoint or weight file")
    try:
        with path.open("rb") as handle:
            head = handle.read(len(LFS_HEAD))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from None
    if not head:
        raise CheckpointError(f"{path}: is empty; copy it again")
    if head == LFS_HEAD:
        raise CheckpointError(f"{path}: is a Git LFS pointer, not weights; run `git lfs pull`")


def is_safetensors(path: Path) -> bool:
    """Return whether the file starts as safetensors do: a header length, then a JSON object."""
    with path.open("rb") as handle:
        return handle.read(9)[8:] == b"{"


def _load_released(path: Path) -> Checkpoint:
    """Read a checkpoint of the released code or of TAO, and try its student."""
    tensors = read_tensors(path)
    if not is_released(tensors):
        raise CheckpointError(
            f"{path}: holds no labeler (no student.backbone or teacher.backbone tensors); to start "
            f"a fit from it, give it as --weights"
        )
    architecture, named = architecture_of(tensors, path), malcli_tensors(tensors, path)
    networks = []
    for name in ("student", "teacher"):
        network = _build(architecture, path)
        _fill_resampled(network, name, named, path)
        networks.append(network.eval().requires_grad_(False))
    found, source = networks_in(tensors), source_of(architecture, path)
    notes = [
        f"{path}: {source}, {architecture.encoder}, {architecture.stem} stem, {' and '.join(found)}"
    ]
    if len(found) == 1:
        notes.append(f"{path}: holds only the {found[0]}, which stands for both networks")
    self_test = behaves_trained(networks[0])
    notes.append(f"{path}: {self_test.sentence}")
    return Checkpoint(
        student=networks[0],
        teacher=networks[1],
        architecture=architecture,
        threshold=RELEASED_THRESHOLD,
        settings={"preset": "released", "source": source},
        sha256=hash_file(path),
        notes=tuple(notes),
        self_test=self_test,
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as weights ({_first_line(error)}); copy it again"
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and tensors of a malcli checkpoint."""
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("malcli")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not a malcli checkpoint ({_first_line(error)}); copy it again "
            f"or give the folder of a malcli fit"
        ) from None
    try:
        meta = unseal(text or "")
        if meta.get(TENSORS_HASH) not in (None, _hash_tensors(tensors)):
            raise DamagedError
    except DamagedError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy it again") from None
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: safetensors, but not of malcli (no configuration inside); to start a fit "
            f"from it, give it as --weights"
        ) from None
    return meta, tensors


def _hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    whole = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        whole.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        whole.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _build(architecture: Architecture, path: Path) -> MaskLabeler:
    """Return the network that the checkpoint describes."""
    try:
        return build_labeler(architecture)
    except Exception as error:
        # A foreign configuration can fail anywhere in timm or torch.
        raise CheckpointError(
            f"{path}: its network cannot be built: {_first_line(error)}; the file is damaged or "
            f"of another malcli version"
        ) from error


def _fill_resampled(
    network: MaskLabeler, name: str, tensors: dict[str, Tensor], path: Path
) -> None:
    """Copy the tensors `name.*` into a network, whose position grid may be of another size."""
    crop_size = network.crop_size
    grid = tensors.get(f"{name}.encoder.body.pos_embed")
    network.set_crop_size(network.encoder.stored_crop_size(grid) or crop_size)
    _fill(network, name, tensors, path)
    network.set_crop_size(crop_size)


def _fill(network: MaskLabeler, name: str, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors `name.*` into a network, in float32."""
    wanted = network.state_dict()
    state = {key: tensors.get(f"{name}.{key}") for key in wanted}
    wrong = [
        key for key, value in state.items() if value is None or value.shape != wanted[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors missing or of another shape, first "
            f"{name}.{wrong[0]}; the file is damaged or of another malcli version"
        )
    network.load_state_dict(
        {key: value.float() for key, value in state.items() if value is not None}
    )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
