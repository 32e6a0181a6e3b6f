"""Image encoders: timm networks that turn a crop into one feature map.

Knows nothing of masks or boxes.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from malcli.errors import CheckpointError, ConfigError

HUB_TIMEOUT = 10.0  # seconds
NON_COMMERCIAL = "CC-BY-NC-4.0 (non-commercial)"


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder's timm name and the licence of its pretrained weights."""

    timm_name: str
    licence: str
    note: str = ""


def build_encoder(
    name: str,
    crop_size: int,
    *,
    stem: str = "patch",
    position: str = "antialiased",
    drop_path: float = 0.0,
) -> "ImageEncoder":
    """Return the encoder without head and with random values.

    Raises:
        ConfigError: timm does not know the name, or the network gives no feature map.
    """
    timm_name = timm_name_of(name)
    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(timm_name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"--encoder timm/{timm_name}: timm has no such model{hint}")
    try:
        return ImageEncoder(timm_name, crop_size)
    except (
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        RuntimeError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"--encoder timm/{timm_name}: gives no feature map at --crop-size {crop_size} "
            f"({reason}); take a plain ViT such as vit_deit_small"
        ) from error


class ImageEncoder(nn.Module):
    """A timm network; `forward` returns its last normalised feature map.

    Args:
        timm_name: A model of timm with `forward_intermediates`.
        crop_size: Side of the input, pixels; a ViT's position grid is resampled to it once.

    Attributes:
        channels: Channels of the feature map.
        stride: Input pixels per feature.
        mean, std: The normalisation that the encoder was trained with, per RGB channel.
    """

    def __init__(self, timm_name: str, crop_size: int) -> None:
        """Build the network with random values and measure its feature map."""
        super().__init__()
        self.timm_name = timm_name
        self.body = timm.create_model(timm_name, pretrained=False, num_classes=0)
        # Stated, not measured: an odd crop size rounds to a wrong stride.
        self.stride = int(self.body.feature_info[-1]["reduction"])
        check_crop_size(crop_size, self.stride)
        self.set_crop_size(crop_size)
        cfg = self.body.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(cfg["mean"])
        self.std: tuple[float, ...] = tuple(cfg["std"])
        with torch.no_grad():
            self.eval()
            feature_BChw = self(torch.zeros(1, 3, crop_size, crop_size))
            self.train()
        side = crop_size // self.stride
        if feature_BChw.ndim != 4 or feature_BChw.shape[2:] != (side, side):
            raise ValueError(f"its features have shape {tuple(feature_BChw.shape)}")
        self.channels = int(feature_BChw.shape[1])

    @property
    def upsample(self) -> int:
        """How many times finer than this map a stride-16 map is: 1, or 2 at stride 32."""
        return max(1, round(self.stride / 16))

    def set_crop_size(self, crop_size: int) -> None:
        """Resample a ViT's position grid to another crop size, in place."""
        if hasattr(self.body, "set_input_size"):
            self.body.set_input_size(img_size=(crop_size, crop_size))

    def stored_crop_size(self, grid_1NC: Tensor | None) -> int | None:
        """Return the crop size that a stored position grid belongs to, pixels.

        None if this network has no grid that can be resampled, or the stored one is no square.
        """
        own = getattr(self.body, "pos_embed", None)
        if grid_1NC is None or own is None or not hasattr(self.body, "set_input_size"):
            return None
        if grid_1NC.ndim != own.ndim:
            return None
        cells = grid_1NC.shape[1] - (own.shape[1] - self.body.patch_embed.num_patches)
        side = math.isqrt(max(0, cells))
        patch: int = self.body.patch_embed.patch_size[0]
        return side * patch if side and side**2 == cells else None

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the feature map (B, C, h, w) of normalised crops (B, 3, S, S).

        Class and register tokens are dropped, the final norm is applied (mal_spec 2.3, 2.4).
        """
        features: list[Tensor] = self.body.forward_intermediates(
            image_BCHW, indices=1, norm=True, intermediates_only=True
        )
        return features[-1]


def check_crop_size(crop_size: int, stride: int) -> None:
    """Raise ConfigError unless the crop's side is a multiple of the encoder's stride."""
    if crop_size % stride:
        near = max(1, round(crop_size / stride)) * stride
        raise ConfigError(
            f"--crop-size {crop_size}: not a multiple of the encoder's stride {stride}; take {near}"
        )


def timm_name_of(encoder: str) -> str:
    """Return the timm name for a name of `cli.md` or `timm/<name>`.

    Raises:
        ConfigError: The name is unknown.
    """
    if encoder.startswith("timm/"):
        return encoder.removeprefix("timm/")
    if encoder not in ENCODERS:
        near = difflib.get_close_matches(encoder, ENCODERS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--encoder {encoder}: unknown{hint} (one of {', '.join(ENCODERS)}, or timm/<name>)"
        )
    return ENCODERS[encoder].timm_name


def licence_of(encoder: str) -> str:
    """Return the licence of the encoder's pretrained weights, and what to mind."""
    if encoder in ENCODERS:
        choice = ENCODERS[encoder]
        return f"{choice.licence}{'; ' + choice.note if choice.note else ''}"
    cfg = timm.get_pretrained_cfg(timm_name_of(encoder))
    return (cfg.license if cfg and cfg.license else None) or "not stated by timm"


def load_hub_weights(encoder: ImageEncoder, name: str, crop_size: int) -> None:
    """Load pretrained weights from the hub through timm, in place.

    Args:
        encoder: The encoder, at its crop size.
        name: The encoder's name as the user gave it, for messages.
        crop_size: Side of the input, to which the position grid is resampled.

    Raises:
        CheckpointError: The hub is out of reach and the weights are not in the local cache.
    """
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
    _take_over(encoder, source, crop_size)


def _from_hub(timm_name: str) -> nn.Module:
    """Return the pretrained network, from the local cache or the hub.

    A hub out of reach is found out by one request: the download itself would retry for a minute.
    """
    cfg = timm.get_pretrained_cfg(timm_name)
    repository = cfg.hf_hub_id if cfg else None
    if repository:
        for name in ("model.safetensors", "pytorch_model.bin"):
            cached = huggingface_hub.try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                overlay = {"file": cached}
                return _pretrained(timm_name, pretrained_cfg_overlay=overlay)
        hub = huggingface_hub.utils.get_session()
        hub.head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
    return _pretrained(timm_name)


def _pretrained(timm_name: str, **options: Any) -> nn.Module:  # noqa: ANN401
    """Return timm's pretrained network without head."""
    network: nn.Module = timm.create_model(timm_name, pretrained=True, num_classes=0, **options)
    return network


def load_encoder_weights(
    encoder: ImageEncoder, state: Mapping[str, Tensor], path: Path, crop_size: int
) -> None:
    """Load a timm, MAE or DeiT state of this architecture, in place; heads in it are ignored.

    Args:
        encoder: The encoder, at its crop size.
        state: Tensors by name.
        path: Where they come from, for messages.
        crop_size: Side of the input, to which the position grid is resampled after loading.

    Raises:
        CheckpointError: Tensors are missing or of other shapes.
    """
    source = timm.create_model(encoder.timm_name, pretrained=False, num_classes=0)
    side = encoder.stored_crop_size(state.get("pos_embed"))
    if side:
        source.set_input_size(img_size=(side, side))
    wanted = source.state_dict()
    kept = {key: value for key, value in state.items() if key in wanted}
    missing = sorted(set(wanted) - set(kept))
    wrong = [key for key in kept if kept[key].shape != wanted[key].shape]
    foreign = [key for key in state if key not in wanted and not _is_head(key)]
    if missing or wrong or foreign:
        first = [
            f"{text} {', '.join(keys[:3])}"
            for text, keys in (
                ("missing", missing),
                ("of another shape", wrong),
                ("unexpected", foreign),
            )
            if keys
        ]
        raise CheckpointError(
            f"{path}: not weights of {encoder.timm_name}: {'; '.join(first)}. "
            f"Give the --encoder that the file belongs to"
        )
    source.load_state_dict(kept)
    _take_over(encoder, source, crop_size)


def _take_over(encoder: ImageEncoder, source: Any, crop_size: int) -> None:  # noqa: ANN401
    """Copy the values of a timm network, resampled to the encoder's crop size, into it."""
    if hasattr(source, "set_input_size"):
        source.set_input_size(img_size=(crop_size, crop_size))
    encoder.set_crop_size(crop_size)
    encoder.body.load_state_dict(source.state_dict())


def _is_head(key: str) -> bool:
    """Return whether a tensor belongs to a classifier or a pre-training decoder."""
    heads = ("head", "fc_norm", "decoder", "mask_token", "fc.", "classifier")
    return key.startswith(heads)


ENCODERS = {
    "vit_mae_base": EncoderChoice(
        "vit_base_patch16_224.mae", NON_COMMERCIAL, "permissive alternative: vit_deit_base"
    ),
    "vit_mae_large": EncoderChoice(
        "vit_large_patch16_224.mae", NON_COMMERCIAL, "permissive alternative: vit_dinov2_large"
    ),
    "vit_deit_tiny": EncoderChoice("deit_tiny_patch16_224.fb_in1k", "Apache-2.0"),
    "vit_deit_small": EncoderChoice("deit_small_patch16_224.fb_in1k", "Apache-2.0"),
    "vit_deit_base": EncoderChoice("deit_base_patch16_224.fb_in1k", "Apache-2.0"),
    "swin_base": EncoderChoice("swin_base_patch4_window7_224.ms_in22k", "MIT"),
    "convnext_base": EncoderChoice("convnext_base.fb_in22k", "Apache-2.0"),
    "vit_dinov2_small": EncoderChoice("vit_small_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov2_base": EncoderChoice("vit_base_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov2_large": EncoderChoice("vit_large_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov3_small": EncoderChoice("vit_small_patch16_dinov3.lvd1689m", "DINOv3 licence"),
    "vit_dinov3_base": EncoderChoice("vit_base_patch16_dinov3.lvd1689m", "DINOv3 licence"),
    "vit_dinov3_large": EncoderChoice("vit_large_patch16_dinov3.lvd1689m", "DINOv3 licence"),
    "vit_sam_base": EncoderChoice(
        "samvit_base_patch16.sa1b",
        "Apache-2.0",
        "trained on masks (SA-1B), so the result is not box-only",
    ),
}
