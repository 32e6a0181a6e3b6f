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
from malcli.settings import setting


@dataclass(frozen=True, kw_only=True)
class FitConfig(ImageConfig):
    """Settings of `malcli fit`."""

    data: Path = setting(help="Box annotations; masks in it are never read.", panel=DATA)
    val: Path | None = setting(None, "Annotations with human masks; they only measure.", panel=DATA)
    val_images: Path | None = setting(None, "Image folder of --val.", panel=DATA)
    paste: Path | None = setting(
        None,
        "Masks of the boxes that label made: their objects are pasted over other images, where "
        "their pixels are known to be theirs alone.",
        panel=DATA,
    )
    out: Path | None = setting(
        None, "Run folder (default: runs/<data>-<encoder>-<n>).", panel=OUTPUT
    )
    resume: bool = setting(False, "Continue a run that stopped.", panel=OUTPUT)
    overwrite: bool = setting(False, "Replace an existing run.", panel=OUTPUT)
    allow_world_change: bool = setting(
        False, "Resume with another number of processes; restarts the epoch.", panel=OUTPUT
    )

    encoder: str = setting(
        "vit_mae_base",
        f"Image encoder: {', '.join(ENCODER_NAMES)}, timm/<name>, or "
        "vit/<width>x<depth> (a plain ViT, heads of 64, for --weights of that size).",
        panel=MODEL,
        source=PAPER,
    )
    decoder: str = setting(
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
    )
    stem: str = setting(
        "patch",
        "A ViT's first layer: its own patch projection, or the four 3x3 convolutions, from random "
        "values, of the released code.",
        panel=MODEL,
        source=SPEC,
        choices=("patch", "convolutional"),
    )
    position: str = setting(
        "antialiased",
        "How a ViT's position grid is resampled: timm's way, or the released code's.",
        panel=MODEL,
        source=SPEC,
        choices=("antialiased", "released"),
    )
    drop_path: float = setting(
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
    )
    channels: int = setting(
        256,
        "Hidden and output channels of the decoder.",
        panel=MODEL,
        source="paper, Sec. 3.2",
        low=1,
    )
    key_pool: str = setting(
        "mean", "Pooling of the instance head K.", panel=MODEL, source=SPEC, choices=("mean", "max")
    )
    key_layers: int = setting(
        2, "Fully connected layers of K, ReLU between.", panel=MODEL, source=SPEC, low=1, high=2
    )
    upsample_before: int = setting(
        4,
        "V is upsampled x2 before this convolution (paper: 3, released code: 4).",
        panel=MODEL,
        source=SPEC,
        low=1,
        high=4,
    )
    feature_scale: float = setting(
        1.0,
        "V reads the feature map so many times as fine (on top of the scaling by box size).",
        panel=MODEL,
        source="paper and released code: 1",
        low=0.25,
        high=4.0,
    )
    size_scaling: bool = setting(
        True,
        "Resize features by box size: x0.5 small, x1 medium, x2 large.",
        panel=MODEL,
        source="paper, App. A.2",
    )
    size_classes: str = setting(
        "half-open",
        "Size classes by box area: half-open ranges, or (released code) open ones, where areas of "
        "exactly 1024 and 9216 get no logits.",
        panel=MODEL,
        source=SPEC,
        choices=("half-open", "strict"),
    )

    crop_size: int = setting(
        512, "Side of the network input, pixels.", panel=TRAIN, source=PAPER, low=32, high=4096
    )
    theta: float = setting(
        1.2,
        "Upper bound of the box expansion, in halves of the box.",
        panel=TRAIN,
        source="paper, Tab. 5",
        low=0.0,
        high=10.0,
    )
    expansion: str = setting(
        "paper",
        "Law of the random box expansion (mal_spec 1.4).",
        panel=TRAIN,
        source="paper, Sec. 3.1",
        choices=("paper", "released"),
    )
    border: str = setting(
        "reflect",
        "Pixels outside the image: reflected and ignored by the losses, or wrapped round.",
        panel=TRAIN,
        source=SPEC,
        choices=("reflect", "wrap"),
    )
    box_mask: str = setting(
        "exact",
        "The box on the grid of the losses: the share of each cell that it covers, or (released "
        "code) whole pixels, both ends included, wrapped round with the crop.",
        panel=TRAIN,
        source=SPEC,
        choices=("exact", "inclusive"),
    )
    min_box_area: float = setting(
        2048.0, "Train on boxes above this area, square pixels.", panel=TRAIN, source=SPEC, low=0.0
    )
    keep_crowd: bool = setting(False, "Train on crowd boxes too.", panel=TRAIN, source=SPEC)
    epochs: int = setting(10, "Passes over the boxes.", panel=TRAIN, source=PAPER, low=1)
    max_steps: int | None = setting(
        None, "Stop after this many optimiser steps.", panel=TRAIN, low=1
    )
    batch_size: int = setting(4, "Crops per process and step.", panel=TRAIN, source=PAPER, low=1)
    grad_accum: int = setting(
        1, "Batches whose gradients make one optimiser step.", panel=TRAIN, low=1
    )
    lr: float = setting(
        1.5e-6,
        "Peak learning rate per image of the global batch.",
        panel=TRAIN,
        source=PAPER,
        low=0.0,
    )
    min_lr_ratio: float = setting(
        0.2,
        "Final learning rate, as a share of the peak.",
        panel=TRAIN,
        source=SPEC,
        low=0.0,
        high=1.0,
    )
    warmup_epochs: float = setting(
        1.0, "Linear warm-up, epochs.", panel=TRAIN, source=SPEC, low=0.0
    )
    lr_timing: str = setting(
        "before",
        "The learning rate is set before or (released code) after the step.",
        panel=TRAIN,
        source=SPEC,
        choices=("before", "after"),
    )
    decoder_lr_scale: float = setting(
        1.0, "The decoder's learning rate over the encoder's.", panel=TRAIN, low=0.0
    )
    layer_decay: float = setting(
        1.0,
        "Factor on the encoder's learning rate from each layer to the one below it; 1: none.",
        panel=TRAIN,
        source="paper and released code: none",
        low=0.01,
        high=1.0,
    )
    weight_decay: float = setting(
        5e-4, "AdamW's weight decay, on every parameter.", panel=TRAIN, source=SPEC, low=0.0
    )
    beta1: float = setting(0.9, "AdamW's first momentum.", panel=TRAIN, source=PAPER, low=0, high=1)
    beta2: float = setting(
        0.9, "AdamW's second momentum.", panel=TRAIN, source=PAPER, low=0, high=1
    )
    grad_clip: float | None = setting(
        None, "Clip the gradient's norm at this value.", panel=TRAIN, low=0.0
    )
    teacher_momentum: float = setting(
        0.996, "Momentum of the EMA teacher, per step.", panel=TRAIN, source=PAPER, low=0, high=1
    )
    teacher_start: str = setting(
        "copy",
        "The teacher starts as the student's copy or (released code) from its own random values.",
        panel=TRAIN,
        source=SPEC,
        choices=("copy", "independent"),
    )
    flip: float = setting(
        0.5,
        "Probability of a horizontal flip, both views.",
        panel=TRAIN,
        source=SPEC,
        low=0,
        high=1,
    )
    jitter: float = setting(
        0.5, "Probability of colour jitter, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )
    grey: float = setting(
        0.2, "Probability of grey-scale, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )
    blur: float = setting(
        0.5, "Probability of Gaussian blur, student view.", panel=TRAIN, source=SPEC, low=0, high=1
    )

    paste_share: float = setting(
        0.7, "Share of the crops that get a pasted object (--paste).", panel=TRAIN, low=0, high=1
    )

    mil_weight: float = setting(4.0, "Weight of the MIL loss.", panel=LOSS, source=PAPER, low=0.0)
    mil_form: str = setting(
        "rows+columns",
        "MIL as two dice terms (rows, columns) or the paper's joint one.",
        panel=LOSS,
        source=SPEC,
        choices=("rows+columns", "joint"),
    )
    mil_norm: float = setting(
        0.0,
        "Added to the global batch size that divides the MIL loss (released code: 0.0001).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    mil_ramp: int = setting(
        1000, "Steps over which the MIL weight rises, first epoch.", panel=LOSS, source=SPEC, low=0
    )
    outside_weight: float = setting(
        0.0,
        "Weight of -log(1 - p) over the cells outside the box (0: the paper's losses alone).",
        panel=LOSS,
        low=0.0,
    )
    crf_weight: float = setting(0.5, "Weight of the CRF loss.", panel=LOSS, source=PAPER, low=0.0)
    crf_ramp: int = setting(
        4000, "Steps over which the CRF weight rises, first epoch.", panel=LOSS, source=SPEC, low=0
    )
    crf_zeta: float = setting(
        0.1,
        "Bandwidth of the colour kernel, in units of normalised pixels (paper: 0.5).",
        panel=LOSS,
        source=SPEC,
        low=1e-6,
    )
    crf_omega: float = setting(
        1.0,
        "Weight of the pairwise term (paper: 2; released code: unused, so 1).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    crf_self: bool = setting(
        True,
        "A pixel counts among its own neighbours, with weight 1.",
        panel=LOSS,
        source=SPEC,
    )
    crf_epsilon: float = setting(
        0.0,
        "Added to the sum that the mean field divides by (released code: 1e-6).",
        panel=LOSS,
        source=SPEC,
        low=0.0,
    )
    crf_iterations: int = setting(100, "Mean-field iterations.", panel=LOSS, source=SPEC, low=0)
    crf_image: str = setting(
        "clean",
        "View that the colour kernel sees: before or (released code) after colour jitter.",
        panel=LOSS,
        source=SPEC,
        choices=("clean", "jittered"),
    )
    colour_weight: float = setting(
        0.0,
        "Weight of the crop's own colours in the start of the mean field (0: the paper's losses "
        "alone).",
        panel=LOSS,
        low=0.0,
    )
    colour_bandwidth: float = setting(
        0.2,
        "Bandwidth of those colours' densities, in units of normalised pixels.",
        panel=LOSS,
        low=1e-6,
    )
    paste_weight: float = setting(
        1.0,
        "Weight of the pasted pixels' loss (--paste): of the object, or against the one behind.",
        panel=LOSS,
        low=0.0,
    )
    loss_size: str = setting(
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
    )
    log_every: int = setting(10, "Steps between lines of metrics.jsonl.", panel=OUTPUT, low=1)
    save_every: int = setting(500, "Steps between saved states.", panel=OUTPUT, low=1)
    pictures_every: int = setting(
        500, "Steps between pictures of the fixed crops; 0: none.", panel=OUTPUT, low=0
    )
    val_every: int = setting(
        0, "Steps between validations; 0: at the end of the run only.", panel=OUTPUT, low=0
    )
