"""Pretrained weights of encoders: from the hub, from a local file, and under which licence.

Knows nothing of masks or boxes. No code in a file is ever run.
"""

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from torch import Tensor, nn

from malcli.errors import CheckpointError, ConfigError
from malcli.model.encoders import ENCODERS, FAILURES, ImageEncoder

HUB_TIMEOUT = 10.0  # seconds
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
# Norms that timm applies after the pooling; the encoder applies them to each feature.
LATE_NORMS = (("fc_norm.", "norm."), ("head.norm.", "norm_pre."))
WRONG_SHAPE = "of another shape"
HEADS = ("head", "fc_norm", "decoder", "mask_token", "fc.", "classifier", "attn_pool")


def load_hub_weights(encoder: ImageEncoder, name: str, crop_size: int) -> None:
    """Load pretrained weights from the hub through timm, in place.

    With the convolutional stem, the file's patch embedding is left out (mal.md 2.1).

    Args:
        encoder: The encoder, at its crop size.
        name: The encoder's name as the user gave it, for messages.
        crop_size: Side of the input, to which the position grid is resampled.

    Raises:
        ConfigError: Nobody has published weights of this network.
        CheckpointError: The hub is out of reach and the weights are not in the local cache.
    """
    cfg = timm.get_pretrained_cfg(encoder.timm_name)
    if name.startswith("vit/") or cfg is None or not cfg.has_weights:
        raise ConfigError(
            f"--encoder {name}: no pretrained weights are published for it; give --weights FILE "
            f"with a local file, or --weights none to start from random values"
        )
    try:
        source = _from_hub(encoder.timm_name)
    except Exception as error:
        # timm, huggingface_hub and the network each raise their own kinds of errors here.
        raise CheckpointError(
            f"--encoder {name}: its pretrained weights are neither in the local cache nor can the "
            f"hub be reached ({type(error).__name__}). Three ways out: (1) --weights FILE with a "
            f"local file of this encoder; (2) connect, or set HF_HOME to a cache that holds "
            f"timm/{encoder.timm_name}; (3) --weights none to start from random values"
        ) from error
    path = Path("timm", encoder.timm_name)
    load_encoder_weights(encoder, source.state_dict(), path, crop_size)


def _from_hub(timm_name: str) -> nn.Module:
    """Return the pretrained network, from the local cache or the hub.

    A hub out of reach is found out by one request: the download itself would retry for a minute.
    """
    options: dict[str, Any] = {}
    repository = timm.get_pretrained_cfg(timm_name).hf_hub_id
    cached = [
        path
        for name in ("model.safetensors", "pytorch_model.bin")
        if repository
        and isinstance(path := huggingface_hub.try_to_load_from_cache(repository, name), str)
    ]
    if cached:
        options["pretrained_cfg_overlay"] = {"file": cached[0]}
    elif repository:
        hub = huggingface_hub.utils.get_session()
        hub.head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    network: nn.Module = timm.create_model(timm_name, pretrained=True, num_classes=0, **options)
    return network


def load_encoder_weights(
    encoder: ImageEncoder, state: Mapping[str, Tensor], path: Path, crop_size: int
) -> None:
    """Load a file's values of this architecture, in place; heads in it are ignored.

    Takes timm's names, and those of the authors' own files as far as timm can translate them.
    With the convolutional stem, a patch embedding in the file is left out, and the stem keeps its
    random values where the file has none (mal.md 2.1).

    Args:
        encoder: The encoder, at its crop size.
        state: Tensors by name.
        path: Where they come from, for messages.
        crop_size: Side of the input, to which the position grid is resampled after loading.

    Raises:
        CheckpointError: Tensors are missing or of other shapes; the encoder is as before.
    """
    twin = copy.deepcopy(encoder)
    if twin.resizable:
        twin.set_crop_size(twin.stored_crop_size(state.get("pos_embed")) or twin.native)
    kept = _matching(twin, state)
    problems = _problems(twin, kept)
    # Only sizes that are wrong are no other dialect; timm would bend them until they fit.
    foreign = problems and (problems.keys() != {WRONG_SHAPE} or not twin.resizable)
    if foreign and (translated := _translated(twin, state)):
        kept = _matching(twin, translated)
        problems = _problems(twin, kept) and problems
    if problems:
        first = "; ".join(f"{kind} {', '.join(keys[:3])}" for kind, keys in problems.items())
        bound = "img_size" in encoder.options
        hint = f", or --crop-size {encoder.native}, which this one is made for" if bound else ""
        raise CheckpointError(
            f"{path}: not weights of {encoder.timm_name}: {first}. "
            f"Give the --encoder that the file belongs to{hint}"
        )
    twin.body.load_state_dict(twin.body.state_dict() | kept)
    twin.set_crop_size(crop_size)
    encoder.set_crop_size(crop_size)
    encoder.load_state_dict(twin.state_dict())


def _matching(encoder: ImageEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without heads, and with late norms under the names they have here."""
    wanted = encoder.body.state_dict()
    renamed = dict(state)
    for late, name in LATE_NORMS:
        if f"{name}weight" in wanted and f"{name}weight" not in state:
            renamed = {
                name + key.removeprefix(late) if key.startswith(late) else key: value
                for key, value in renamed.items()
            }
    return {
        key: value
        for key, value in renamed.items()
        if key in wanted or not (key in encoder.dropped or key.startswith(HEADS))
    }


def _problems(encoder: ImageEncoder, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return what keeps the tensors from being this encoder's: the names, by kind of problem."""
    wanted = encoder.body.state_dict()
    optional = tuple(key for key in wanted if key.endswith("num_batches_tracked"))
    if "patch_embed.proj.weight" in encoder.dropped and "patch_embed.proj.0.0.weight" not in state:
        optional += tuple(key for key in wanted if key.startswith("patch_embed.proj."))
    kinds = {
        "missing": [key for key in wanted if key not in state and key not in optional],
        WRONG_SHAPE: [
            key for key in wanted if key in state and state[key].shape != wanted[key].shape
        ],
        "unexpected": [key for key in state if key not in wanted],
    }
    return {kind: sorted(keys) for kind, keys in kinds.items() if keys}


def _translated(encoder: ImageEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names, or nothing if timm cannot translate them."""
    module = sys.modules[type(encoder.body).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)
    try:
        found = translate(dict(state), encoder.body) if translate else {}
    except FAILURES:  # a foreign file can fail anywhere in it
        return {}
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def licence_of(encoder: str) -> str:
    """Return the licence of the encoder's pretrained weights, and what to mind.

    Args:
        encoder: A name that `build_encoder` takes.
    """
    if encoder.startswith("vit/"):
        return "none (no pretrained weights are published for it)"
    if encoder in ENCODERS:
        timm_name, licence = ENCODERS[encoder].timm_name, ENCODERS[encoder].licence
    else:
        timm_name = encoder.removeprefix("timm/")
        cfg = timm.get_pretrained_cfg(timm_name)
        licence = (cfg.license if cfg else None) or "not stated by timm"
    return "; ".join([licence, *_to_mind(timm_name, licence.lower())])


def _to_mind(timm_name: str, licence: str) -> list[str]:
    """Return what the licence asks for, and whether the network has seen masks."""
    large = any(word in timm_name for word in ("large", "huge", "giant", "gigantic", "7b", "5b"))
    small = any(word in timm_name for word in ("small", "tiny", "nano", "atto", "pico", "femto"))
    size = "large" if large else "small" if small else "base"
    permissive = "vit_dinov2_large" if large else f"vit_deit_{size}"
    notes = []
    if "-nc" in licence or "noncommercial" in licence or licence == "apple-amlr":
        notes.append(f"non-commercial; permissive alternative: {permissive}")
    elif licence == "dinov3-license":
        notes.append(
            "its terms must be passed on with whatever is made of the weights; permissive "
            f"alternative: vit_dinov2_{size}"
        )
    elif licence not in PERMISSIVE:
        notes.append(f"read its terms first; permissive alternative: {permissive}")
    if timm_name.startswith(("samvit", "sam2_")):
        notes.append("trained on masks (SA-1B), so the result is not box-only")
    elif "pe_spatial" in timm_name or "radio" in timm_name:
        notes.append("distilled from SAM, which has seen masks, so the result is not box-only")
    return notes
