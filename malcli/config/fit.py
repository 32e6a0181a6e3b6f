"""Settings of `malcli fit`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import (
    DATA,
    ENCODER_NAMES,
    LABEL,
    LOSS,
    MODEL,
    OUTPUT,
    PAPER,
    SPEC,
    TRAIN,
    ImageConfig,
)
from malcli.settings import result, setting


@dataclass(frozen=True, kw_only=True)
class FitConfig(ImageConfig):
    """Settings of `malcli fit`."""

    data: Path = setting(
        help="Box annotations; masks in it are never read.", panel=DATA, identity="input"
    )
    val: Path | None = setting(
        None, "Annotations with human masks; they only measure.", panel=DATA, identity="file"
    )
    val_images: Path | None = setting(
        None, "Image folder of --val.", panel=DATA, identity="private"
    )
    paste: Path | None = result(
        None,
        "Masks of the boxes that label made: their objects are pasted over other images, where "
        "their pixels are known to be theirs alone.",
        panel=DATA,
    )
    out: Path | None = setting(
        None, "Run folder (default: runs/<data>-<encoder>-<n>).", panel=OUTPUT, identity="private"
    )
    resume: bool = setting(False, "Continue a run that stopped.", panel=OUTPUT, identity="private")
    overwrite: bool = setting(False, "Replace an existing run.", panel=OUTPUT, identity="private")
    allow_world_change: bool = setting(
        False,
        "Resume with another number of processes; restarts the epoch.",
        panel=OUTPUT,
        identity="free",
    )

    encoder: str = result(
        "vit_mae_base",
        f"Image encoder: {', '.join(ENCODER_NAMES)}, timm/<name>, or "
        "vit/<width>x<depth> (a plain ViT, heads of 64, for --weights of that size).",
        panel=MODEL,
        source=PAPER,
    )
    decoder: str = result(
        "attention",
        "Mask decoder.",
        panel=MODEL,
        source="paper, Sec. 3.2",
        choices=("attention", "fully_connected", "fully_convolutional", "query"),
    )
    weights: str | None = setting(
        None,
        "Local weight file of the encoder or of a whole labeler; 'none': random "
        "(default: pretrained, from the hub).",
        panel=MODEL,
        identity="file",
    )
    stem: str = result(
        "patch",
        "A ViT's first layer: its own patch projection, or the four 3x3 convolutions, from random "
        "values, of the released code.",
        panel=MODEL,
        source=SPEC,
        choices=("patch", "convolutional"),
    )
    position: str = result(
        "antialiased",
        "How a ViT's position grid is resampled: timm's way, or the released code's.",
        panel=MODEL,
        source=SPEC,
        choices=("antialiased", "released"),
    )
    drop_path: float = result(
        0.0,
        "Stochastic depth of the encoder, student only.",
        panel=MODEL,
        source="paper and released code: none",
        low=0,
        high=0.99,
    )
    grad_checkpointing: bool = setting(
        False,
        "Recompute the encoder's activations in backward: less memory, more time.",
        panel=MODEL,
        identity="free",
    )
    channels: int = result(
        256,
        "Hidden and output channels of the decoder.",
        panel=MODEL,
        source="paper, Sec. 3.2",
        low=1,
    )
    key_pool: str = result(
        "mean", "Pooling of the instance head K.", panel=MODEL, source=SPEC, choices=("mean", "max")
    )
    key_layers: int = result(
        2, "Fully connected layers of K, ReLU between.", panel=MODEL, source=SPEC, low=1, high=2
    )
    upsample_before: int = result(
        4,
        "V is upsampled x2 before this convolution (paper: 3, released code: 4).",
        panel=MODEL,
        source=SPEC,
        low=1,
        high=4,
    )
    feature_scale: float = result(
        1.0,
        "V reads the feature map so many times as fine (on top of the scaling by box size).",
        panel=MODEL,
        source="paper and released code: 1",
        low=0.25,
        high=4.0,
    )
    size_scaling: bool = result(
        True,
        "Resize features by box size: x0.5 small, x1 medium, x2 large.",
        panel=MODEL,
        source="paper, App. A.2",
    )
    size_classes: str = result(
        "half-open",
        "Size classes by box area: half-open ranges, or (released code) open ones, where areas of "
        "exactly 1024 and 9216 get no logits.",
        panel=MODEL,
        source=SPEC,
        choices=("half-open", "strict"),
    )

    crop_size: int = result(
        512, "Side of the network input, pixels.", panel=TRAIN, source=PAPER, low=32, high=4096
    )
    theta: float = result(
        1.2,
        "Upper bound of the box expansion, in halves of the box.",
        panel=TRAIN,
        source="paper, Tab. 5",
        low=0.0,
        high=10.0,
    )
    expansion: str = result(
        "paper",
        "Law of the random box expansion (mal.md 1.4).",
        panel=TRAIN,
        source="paper, Sec. 3.1",
        choices=("paper", "released"),
    )
    border: str = result(
        "reflect",
        "Pixels outside the image: reflected and ignored by the losses, or wrapped round.",
        panel=TRAIN,
        source=SPEC,
        choices=("reflect", "wrap"),
    )
    box_mask: str = result(
        "exact",
        "The box on the grid of the losses: the share of each cell that it covers, or (released "
        "code) whole pixels, both ends included, wrapped round with the crop.",
        panel=TRAIN,
        source=SPEC,
        choices=("exact", "inclusive"),
    )
    min_box_area: float = result(
        2048.0, "Train on boxes above this area, square pixels.", panel=TRAIN, source=SPEC, low=0.0
    )
    keep_crowd: bool = result(False, "Train on crowd boxes too.", panel=TRAIN, source=SPEC)
    epochs: int = setting(
        10, "Passes over the boxes.", panel=TRAIN, source=PAPER, low=1, identity="free"
    )
    max_steps: int | None = setting(
        None, "Stop after this many optimiser steps.", panel=TRAIN, low=1, identity="free"
    )
    batch_size: int = result(4, "Crops per process and step.", panel=TRAIN, source=PAPER, low=1)
    grad_accum: int = result(
        1, "Batches whose gradients make one optimiser step.", panel=TRAIN, low=1
    )
    lr: float = result(
        1.5e-6,
        "Peak learning rate per image of the global batch.",
        panel=TRAIN,
        source=PAPER,
        low=0.0,
    )
    min_lr_ratio: float = result(
        0.2,
        "Final learning rate, as a share of the peak.",
        panel=TRAIN,
        source=SPEC,
        low=0.0,
        high=1.0,
    )
    warmup_epochs: float = result(1.0, "Linear warm-up, epochs.", panel=TRAIN, source=SPEC, low=0.0)
    lr_timing: str = result(
        "before",
        "The learning rate is set before or (released code) after the step.",
        panel=TRAIN,
        source=SPEC,
        choices=("before", "after"),
    )
    decoder_lr_scale: float = result(
        1.0, "The decoder's learning rate over the encoder's.", panel=TRAIN, low=0.0
    )
    layer_decay: float = result(
        1.0,
        "Factor on the encoder's learning rate from each layer to the one below it; 1: none.",
        panel=TRAIN,
        source="paper and released code: none",
        low=0.01,
        high=1.0,
    )
    weight_decay: float = result(
        5e-4, "AdamW's weight decay, on every parameter.", panel=TRAIN, source=SPEC, low=0.0
    )
    beta1: float = result(0.9, "AdamW's first momentum.", panel=TRAIN, source=PAPER, low=0, high=1)
    beta2: float = result(0.9, "AdamW's second momentum.", panel=TRAIN, source=PAPER, low=0, high=1)
    grad_clip: float | None = result(
        None, "Clip the gradient's norm at this value.", panel=TRAIN, low=0.0
    )
    teacher_momentum: float = result(
        0.996, "Momentum of the EMA teacher, per step.", panel=TRAIN, source=PAPER, low=0, high=1
    )
    teacher_start: str = result(
        "copy",
        "The teacher starts as the student's copy or (released code) from its own random values.",
        panel=TRAIN,
        source=SPEC,
        choices=("copy", "independent"),
    )
    flip: float = result(
        0.5,
        "Probability of a horizontal flip, both views.",
        panel=TRAIN,
        source=SPEC,
        low=0,
        high=1,
    )
    jitter: float = result(
        0.5, "Probability of colour jitter, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )
    grey: float = result(
        0.2, "Probability of grey-scale, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )
    blur: float = result(
        0.5, "Probability of Gaussian blur, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )

    paste_share: float = result(
        0.7, "Share of the crops that get a pasted object (--paste).", panel=TRAIN, low=0, high=1
    )

    mil_weight: float = result(4.0, "Weight of the MIL loss.", panel=LOSS, source=PAPER, low=0.0)
    mil_form: str = result(
        "rows+columns",
        "MIL as two dice terms (rows, columns) or the paper's joint one.",
        panel=LOSS,
        source=SPEC,
        choices=("rows+columns", "joint"),
    )
    mil_norm: float = result(
        0.0,
        "Added to the global batch size that divides the MIL loss (released code: 0.0001).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    mil_ramp: int = result(
        1000, "Steps over which the MIL weight rises, first epoch.", panel=LOSS, source=SPEC, low=0
    )
    outside_weight: float = result(
        0.0,
        "Weight of -log(1 - p) over the cells outside the box (0: the paper's losses alone).",
        panel=LOSS,
        low=0.0,
    )
    crf_weight: float = result(0.5, "Weight of the CRF loss.", panel=LOSS, source=PAPER, low=0.0)
    crf_ramp: int = result(
        4000, "Steps over which the CRF weight rises, first epoch.", panel=LOSS, source=SPEC, low=0
    )
    crf_zeta: float = result(
        0.1,
        "Bandwidth of the colour kernel, in units of normalised pixels (paper: 0.5).",
        panel=LOSS,
        source=SPEC,
        low=1e-6,
    )
    crf_omega: float = result(
        1.0,
        "Weight of the pairwise term (paper: 2; released code: unused, so 1).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    crf_self: bool = result(
        True,
        "A pixel counts among its own neighbours, with weight 1.",
        panel=LOSS,
        source=SPEC,
    )
    crf_epsilon: float = result(
        0.0,
        "Added to the sum that the mean field divides by (released code: 1e-6).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    crf_iterations: int = result(100, "Mean-field iterations.", panel=LOSS, source=SPEC, low=0)
    crf_image: str = result(
        "clean",
        "View that the colour kernel sees: before or (released code) after colour jitter.",
        panel=LOSS,
        source=SPEC,
        choices=("clean", "jittered"),
    )
    colour_weight: float = result(
        0.0,
        "Weight of the crop's own colours in the start of the mean field (0: the paper's losses "
        "alone).",
        panel=LOSS,
        low=0.0,
    )
    colour_bandwidth: float = result(
        0.2,
        "Bandwidth of those colours' densities, in units of normalised pixels.",
        panel=LOSS,
        low=1e-6,
    )
    paste_weight: float = result(
        1.0,
        "Weight of the pasted pixels' loss (--paste): of the object, or against the one behind.",
        panel=LOSS,
        low=0.0,
    )
    loss_size: str = result(
        "grid",
        "Grid that the losses see: the decoder's own, a quarter of the crop's side, or the crop's.",
        panel=LOSS,
        source=SPEC,
        choices=("grid", "crop"),
    )
    threshold: str = setting(
        "0.1",
        "Mask threshold kept in the checkpoint: one value, three by box size, or auto: those whose "
        "masks fit the boxes best.",
        panel=LABEL,
        source=SPEC,
        identity="free",
    )
    log_every: int = setting(
        10, "Steps between lines of metrics.jsonl.", panel=OUTPUT, low=1, identity="free"
    )
    save_every: int = setting(
        500, "Steps between saved states.", panel=OUTPUT, low=1, identity="free"
    )
    pictures_every: int = setting(
        500,
        "Steps between pictures of the fixed crops; 0: none.",
        panel=OUTPUT,
        low=0,
        identity="free",
    )
    val_every: int = setting(
        0,
        "Steps between validations; 0: at the end of the run only.",
        panel=OUTPUT,
        low=0,
        identity="free",
    )
