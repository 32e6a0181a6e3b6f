"""Image encoders: timm networks that turn a crop into one feature map.

Knows nothing of masks or boxes, nor of where pretrained weights come from (`pretrained`).
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malcli.errors import ConfigError
from malcli.model.surgery import (
    drop_heads,
    has_grid,
    is_resizable,
    layers_above,
    leaves,
    put_stem,
    resize,
    stored_cells,
    windows_of,
)

PLAIN = "take a plain ViT such as vit_deit_small"
PLAIN_NAME = re.compile(r"vit/([1-9]\d{0,3})x([1-9]\d{0,2})")
HEAD_WIDTH = 64  # channels of an attention head
COMMON_STRIDE = 16  # pixels; that of the paper's ViTs
# What timm's networks raise where they cannot be built or run; each family has its own way.
FAILURES = (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError,
            ValueError)  # fmt: skip


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder's timm name and the licence of its pretrained weights."""

    timm_name: str
    licence: str


def build_encoder(
    name: str,
    crop_size: int,
    *,
    stem: str = "patch",
    position: str = "antialiased",
    drop_path: float = 0.0,
) -> "ImageEncoder":
    """Return the encoder without head and with random values.

    Args:
        name: A name of `ENCODERS`, `timm/<name>`, or `vit/<width>x<depth>`: a plain ViT of any
            width (a multiple of 64) and depth, patches of 16, heads of 64.
        crop_size: Side of the crops, pixels.
        stem: `patch`, or `convolutional` as in the released code (plain ViTs of patch 16).
        position: How a ViT's position grid is resampled: `antialiased` (timm) or `released`.
        drop_path: Stochastic depth, 0 to 1: the share of the last block's calls left out.

    Raises:
        ConfigError: An unknown name, a network without feature map at this crop size, or a
            setting that this network does not take.

    Source: mal.md 2.
    """
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if plain := PLAIN_NAME.fullmatch(name):
        width, depth = int(plain[1]), int(plain[2])
        options |= {"embed_dim": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    try:
        return ImageEncoder(name, crop_size, stem, position, options)
    except FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if drop_path and "drop_path_rate" in reason:
            raise ConfigError(
                f"--drop-path {drop_path:g}: --encoder {name} has no stochastic depth; take 0"
            ) from None
        raise ConfigError(
            f"--encoder {name}: gives no feature map at --crop-size {crop_size} ({reason}); {PLAIN}"
        ) from error


class ImageEncoder(nn.Module):
    """A timm network; `forward` returns its last normalised feature map.

    Args:
        name: As in `build_encoder`; timm's network must have `forward_intermediates`.
        crop_size: Side of the input, pixels; what depends on it is resampled once, here, and the
            resampled position grid is what training moves. The released code trains the small grid
            through its resampling at every step: forward passes agree, trained values do not.
        stem, position: As in `build_encoder`.
        options: What timm builds it with.

    Attributes:
        channels: Channels of the feature map.
        stride: Input pixels per feature.
        mean, std: The normalisation that the encoder was trained with, per RGB channel.
        native: Side of the crops that its pretrained weights were made for, pixels.
        options: What timm builds it with, `img_size` included where it is fixed at that moment.
        dropped: Names of timm's parameters that the feature map does not need.
    """

    def __init__(
        self, name: str, crop_size: int, stem: str, position: str, options: dict[str, Any]
    ) -> None:
        """Build the network with random values and measure its feature map."""
        super().__init__()
        self.name, self.timm_name = name, timm_name_of(name)
        self.position, self.options = position, dict(options)
        self.body = timm.create_model(self.timm_name, pretrained=False, num_classes=0, **options)
        # Stated, not measured: an odd crop size rounds to a wrong stride.
        self.stride = int(self.body.feature_info[-1]["reduction"])
        check_crop_size(crop_size, self.stride)
        cfg = self.body.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(cfg["mean"])
        self.std: tuple[float, ...] = tuple(cfg["std"])
        self.native = int(cfg["input_size"][-1]) // self.stride * self.stride
        self._side = self.native
        self._norm = True
        if not self.resizable and self._side_of(crop_size) != self.native:
            self._rebuild(self._side_of(crop_size))
        self.dropped = drop_heads(self.body)
        self._set_stem(stem)
        if position == "released" and not has_grid(self.body):
            raise ConfigError(
                f"--position released: --encoder {name} has no grid of position values; take "
                f"--position antialiased"
            )
        self._windows = windows_of(self.body)
        if self.resizable:
            self.set_crop_size(crop_size)
        self.channels = self._measure(self._side)

    @property
    def upsample(self) -> int:
        """How many times finer than this map a stride-16 map is: 1, or 2 at stride 32."""
        return max(1, round(self.stride / COMMON_STRIDE))

    @property
    def resizable(self) -> bool:
        """Whether a network that depends on the crop's size can be fitted to another one."""
        return is_resizable(self.body)

    def set_crop_size(self, crop_size: int) -> None:
        """Take crops of another side from now on, in place; position values are resampled.

        Raises:
            ConfigError: The network is bound to the size that it was built for.
        """
        side = self._side_of(crop_size)
        if self.resizable:
            resize(self.body, side, self.position, self._windows)
        elif side != self._side:
            self._try(side)
        self._side = side

    def stored_crop_size(self, grid_1NC: Tensor | None) -> int | None:
        """Return the crop size that a stored position grid belongs to, pixels.

        None if this network has no grid that can be resampled, or the stored one is no square.
        """
        cells = stored_cells(self.body, grid_1NC) if self.resizable and grid_1NC is not None else 0
        return cells * self.stride or None

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the feature map (B, C, h, w) of normalised crops (B, 3, S, S).

        Class and register tokens are dropped, the final norm is applied (mal.md 2.3, 2.4). A
        side that is no multiple of the stride (512 at patch 14) is first resized to the next
        lower one.
        """
        side = self._side_of(image_BCHW.shape[-1])
        if side != image_BCHW.shape[-1]:
            image_BCHW = F.interpolate(
                image_BCHW, (side, side), mode="bilinear", align_corners=False
            )
        features: list[Tensor] = self.body.forward_intermediates(
            image_BCHW, indices=1, norm=self._norm, intermediates_only=True
        )
        return features[-1]

    def depths(self) -> dict[str, int]:
        """Return for each parameter's name the number of layers above its own.

        The last block and the final norm have 0; what comes before the first block, such as the
        patch and position embedding, has the most.

        Raises:
            ConfigError: timm does not know the order of this network's layers.
        """
        if not hasattr(self.body, "group_matcher"):
            raise ConfigError(
                f"--layer-decay: timm does not know the layers of --encoder {self.name}; take 1"
            )
        return {f"body.{name}": above for name, above in layers_above(self.body).items()}

    def set_grad_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass, which takes less memory and more time.

        Raises:
            ConfigError: The network does not know how to.
        """
        try:
            self.body.set_grad_checkpointing(on)
        except (AssertionError, AttributeError):
            raise ConfigError(
                f"--grad-checkpointing: --encoder {self.name} cannot do it; leave it out"
            ) from None

    def _side_of(self, crop_size: int) -> int:
        """Return the side that crops have inside: the next lower multiple of the stride."""
        return crop_size // self.stride * self.stride

    def _rebuild(self, side: int) -> None:
        """Build a network again whose size is fixed when it is made; convolutions take any."""
        options = {**self.options, "img_size": side}
        try:
            body = timm.create_model(self.timm_name, pretrained=False, num_classes=0, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        else:
            self.body, self.options = body, options
        self._side = side

    def _set_stem(self, stem: str) -> None:
        """Put the released code's convolutions in place of the patch embedding, if asked."""
        if stem == "patch":
            return
        if not put_stem(self.body):
            raise ConfigError(
                f"--stem convolutional: --encoder {self.name} is no plain ViT with patches of 16; "
                f"take --stem patch"
            )
        self.dropped |= {"patch_embed.proj.weight", "patch_embed.proj.bias"}

    def _measure(self, side: int) -> int:
        """Return the map's channels; freeze parameters that it does not depend on.

        Processes that train together would wait for the gradients of those for ever.
        """
        training = self.training
        self.eval()
        image_BCHW = torch.zeros(1, 3, side, side)
        # The graph is all that counts; no activation is kept for it.
        nothing = torch.zeros(())
        forget = torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda _: nothing)
        with torch.enable_grad(), forget:
            try:
                feature_BChw = self(image_BCHW)
            except AssertionError:  # Hiera's maps come without their norm only
                self._norm = False
                feature_BChw = self(image_BCHW)
        self.train(training)
        cells = side // self.stride
        if feature_BChw.ndim != 4 or feature_BChw.shape[2:] != (cells, cells):
            raise ValueError(f"its features have shape {tuple(feature_BChw.shape)}")
        needed = leaves(feature_BChw)
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in needed)
        return int(feature_BChw.shape[1])

    def _try(self, side: int) -> None:
        """Raise ConfigError unless a network that is not resizable takes crops of this side."""
        cells = side // self.stride
        training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            with torch.no_grad():
                fits = self(torch.zeros(1, 3, side, side, device=device)).shape[2:] == (cells,) * 2
        except FAILURES:
            fits = False
        self.train(training)
        if not fits:
            raise ConfigError(
                f"--crop-size {side}: --encoder {self.name} was built for crops of {self._side} "
                f"and takes no others; take {self._side}"
            )


def check_crop_size(crop_size: int, stride: int) -> None:
    """Raise ConfigError unless the encoder takes crops of this side, pixels.

    It must be a multiple of the stride. An odd stride (14, of DINOv2) takes multiples of 16 too:
    such crops, the default among them, are resized to the next lower multiple of the stride.
    """
    odd = stride % COMMON_STRIDE and crop_size % COMMON_STRIDE == 0
    if (crop_size % stride and not odd) or crop_size < stride:
        near = max(1, round(crop_size / stride)) * stride
        raise ConfigError(
            f"--crop-size {crop_size}: not a multiple of the encoder's stride {stride}; take {near}"
        )


def timm_name_of(encoder: str) -> str:
    """Return the timm name for a name that `build_encoder` takes.

    Raises:
        ConfigError: The name is unknown.
    """
    if encoder.startswith("timm/"):
        return _known_to_timm(encoder.removeprefix("timm/"))
    if encoder.startswith("vit/"):
        found = PLAIN_NAME.fullmatch(encoder)
        if not found or int(found[1]) % HEAD_WIDTH:
            raise ConfigError(
                f"--encoder {encoder}: a plain ViT is named vit/<width>x<depth>, its width a "
                f"multiple of {HEAD_WIDTH}, such as vit/768x12"
            )
        return "vit_base_patch16_224.mae"  # for its mean and std
    if encoder not in ENCODERS:
        near = difflib.get_close_matches(encoder.lower(), ENCODERS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--encoder {encoder}: unknown{hint} (one of {', '.join(ENCODERS)}, or timm/<name>)"
        )
    return ENCODERS[encoder].timm_name


def _known_to_timm(timm_name: str) -> str:
    """Return the name, or raise ConfigError with the nearest ones."""
    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
    elif tag and timm_name not in timm.list_models(f"{architecture}.*", include_tags=True):
        near = timm.list_pretrained(f"{architecture}.*")[:3]
    else:
        return timm_name
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"--encoder timm/{timm_name}: timm has no such model{hint}")


ENCODERS = {
    "vit_mae_base": EncoderChoice("vit_base_patch16_224.mae", "CC-BY-NC-4.0"),
    "vit_mae_large": EncoderChoice("vit_large_patch16_224.mae", "CC-BY-NC-4.0"),
    "vit_deit_tiny": EncoderChoice("deit_tiny_patch16_224.fb_in1k", "Apache-2.0"),
    "vit_deit_small": EncoderChoice("deit_small_patch16_224.fb_in1k", "Apache-2.0"),
    "vit_deit_base": EncoderChoice("deit_base_patch16_224.fb_in1k", "Apache-2.0"),
    "swin_base": EncoderChoice("swin_base_patch4_window7_224.ms_in1k", "MIT"),
    "convnext_base": EncoderChoice("convnext_base.fb_in1k", "Apache-2.0"),
    "vit_dinov2_small": EncoderChoice("vit_small_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov2_base": EncoderChoice("vit_base_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov2_large": EncoderChoice("vit_large_patch14_dinov2.lvd142m", "Apache-2.0"),
    "vit_dinov3_small": EncoderChoice("vit_small_patch16_dinov3.lvd1689m", "DINOv3-License"),
    "vit_dinov3_base": EncoderChoice("vit_base_patch16_dinov3.lvd1689m", "DINOv3-License"),
    "vit_dinov3_large": EncoderChoice("vit_large_patch16_dinov3.lvd1689m", "DINOv3-License"),
    "vit_sam_base": EncoderChoice("samvit_base_patch16.sa1b", "Apache-2.0"),
}
