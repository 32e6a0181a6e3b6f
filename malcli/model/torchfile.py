"""Torch files as plain objects: nothing of theirs is imported or run.

Checkpoints of training frameworks hold settings and callbacks beside the tensors. Objects of known
harmless modules are replaced by inert ones; a file that refers to anything else is refused.
"""

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from malcli.errors import CheckpointError

# What Lightning, NVlabs and TAO checkpoints refer to; a name that ends in a dot: all below it.
HARMLESS = (
    "argparse.Namespace", "pathlib.", "datetime.", "typing.", "types.SimpleNamespace",
    "collections.defaultdict", "collections.deque", "copyreg._reconstructor",
    "builtins.object", "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int",
    "builtins.float", "builtins.str", "builtins.bool", "builtins.bytes", "builtins.slice",
    "numpy.dtype", "numpy.ndarray", "numpy.dtypes.", "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "torch.torch_version.TorchVersion", "_io.BytesIO",
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.", "omegaconf.",
    "easydict.EasyDict", "nvidia_tao_pytorch.",
)  # fmt: skip
MAPPINGS = ("defaultdict", "AttributeDict", "EasyDict")
PICKLE_HEAD = b"\x80"
MOST_VIEWS = 4  # tensors may share their memory, but not without end
LONGEST = 160  # characters of a library's own words


class _Inert:
    """Stands for a foreign object: takes what is given to it and forgets it."""

    def __init__(self, *args: object) -> None:
        """Forget the arguments."""

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


class _InertMapping:
    """Stands for a foreign kind of dict, which the reader fills item by item."""

    def __new__(cls, *args: object) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        """Return an empty dict; the arguments are forgotten."""
        return OrderedDict()


class _InertList:
    """Stands for a foreign kind of list, which the reader fills item by item."""

    def __new__(cls, *args: object) -> list[Any]:  # type: ignore[misc]
        """Return an empty list; the arguments are forgotten."""
        return []


def read_torch(path: Path) -> Any:  # noqa: ANN401
    """Return what a torch file holds, on the CPU; foreign objects are inert.

    Raises:
        CheckpointError: Damaged, of another kind, or it refers to what may be code.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        names = get_unsafe_globals_in_checkpoint(path) if is_zip else []
        if is_zip:
            _refuse_compressed(path)
        else:
            _refuse_others(path)
    except Exception as error:  # the zip reader and torch's raise kinds of their own
        raise _unreadable(path, error) from error
    _refuse_foreign(names, path)
    try:
        with safe_globals([(_stand_in(name), name) for name in names]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols, for torch's own users
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    if isinstance(loaded, Mapping) and loaded.get("state_dict_encrypted"):
        raise CheckpointError(
            f"{path}: its weights are encrypted; save it again without a key, with the program "
            f"that wrote it"
        )
    return loaded


def refuse_inflated(tensors: Iterable[Tensor], path: Path) -> None:
    """Refuse tensors that claim more memory than their file can hold.

    Raises:
        CheckpointError: They do; a damaged or hostile file would fill the memory.
    """
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if claimed > MOST_VIEWS * path.stat().st_size:
        raise CheckpointError(
            f"{path}: damaged: its tensors claim {claimed / 1e9:.3g} GB, more than the file can "
            f"hold; copy it again"
        )


def is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor of numbers that lies in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _refuse_compressed(path: Path) -> None:
    """Refuse a zip whose members unpack to more than they take: torch stores them as they are."""
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError("its members are compressed, which torch's never are")


def _refuse_others(path: Path) -> None:
    """Refuse a file that is neither a zip nor a pickle, the form before torch 1.6."""
    with path.open("rb") as file:
        if file.read(1) != PICKLE_HEAD:
            raise ValueError("it is damaged, or no torch file")


def _refuse_foreign(names: Iterable[str], path: Path) -> None:
    """Refuse a file that refers to anything that is not known to be harmless."""
    foreign = sorted(name for name in names if not _is_harmless(name))
    if foreign:
        raise CheckpointError(
            f"{path}: cannot be read as weights: it refers to {', '.join(foreign[:3])[:LONGEST]}; "
            f"files that hold code are refused: give a file of its original source, or safetensors"
        )


def _is_harmless(name: str) -> bool:
    return any(
        name.startswith(known) if known.endswith(".") else name == known for known in HARMLESS
    )


def _stand_in(name: str) -> type:
    """Return what takes the place of a foreign class or function."""
    last = name.rpartition(".")[2]
    if last in MAPPINGS:
        return _InertMapping
    return _InertList if last == "deque" else _Inert


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the one-line error for what torch or the zip reader says.

    torch's own text advises to load with code allowed; that part is left out.
    """
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    named = re.search(r"GLOBAL (\S+)", text)
    first = (text.splitlines() or [""])[0][:LONGEST] or type(error).__name__
    said = f"it refers to {named[1]}" if named else first
    return CheckpointError(
        f"{path}: cannot be read as weights ({said}); files that hold code are refused: give a "
        f"safetensors file or a torch file of plain tensors"
    )
