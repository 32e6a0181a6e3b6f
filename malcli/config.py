"""Settings of every command: one frozen dataclass a command, flat, each with unit and source."""

from dataclasses import dataclass
from pathlib import Path

from malcli.settings import setting

SPEC = "released code"
PAPER = "paper, Sec. 4.2"

REFINEMENTS = ("none", "crf", "colour")
FORMATS = ("coco", "lvis", "objects365", "openimages", "parquet", "yolo")
ENCODER_NAMES = (
    "vit_mae_base",
    "vit_mae_large",
    "vit_deit_tiny",
    "vit_deit_small",
    "vit_deit_base",
    "swin_base",
    "convnext_base",
    "vit_dinov2_small",
    "vit_dinov2_base",
    "vit_dinov2_large",
    "vit_dinov3_small",
    "vit_dinov3_base",
    "vit_dinov3_large",
    "vit_sam_base",
)

DATA, MODEL, TRAIN, LOSS, RUN, OUTPUT, LABEL = (
    "Data",
    "Model",
    "Training",
    "Losses",
    "Machine",
    "Output",
    "Labelling",
)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Settings that every command that reads images shares."""

    images: Path | None = setting(
        None, "Image folder (default: looked up beside the annotation file).", panel=DATA
    )
    format: str | None = setting(
        None, "Annotation format (default: recognised from content).", panel=DATA, choices=FORMATS
    )
    categories: str | None = setting(
        None, "Only these categories: names or ids, separated by commas.", panel=DATA
    )
    limit: int | None = setting(None, "Only the first N images.", panel=DATA, low=1)
    max_pixels: int = setting(
        179_000_000, "Refuse images with more pixels than this.", panel=DATA, low=1
    )
    strict: bool = setting(False, "Stop with exit code 2 if any record is bad.", panel=DATA)
    seed: int = setting(0, "Random seed.", panel=RUN, low=0)
    workers: int | None = setting(
        None, "Processes that read images (default: by the machine).", panel=RUN, low=0
    )
    device: str = setting("auto", "Device.", panel=RUN, choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "auto",
        "Number format of the network (auto: bf16 from compute capability 8.0, fp16 on older "
        "GPUs, fp32 on CPU).",
        panel=RUN,
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    num_processes: int = setting(
        1, "Local processes, started through Accelerate.", panel=RUN, low=1
    )


@dataclass(frozen=True, kw_only=True)
class FitConfig(ImageConfig):
    """Settings of `malcli fit`."""

    data: Path = setting(help="Box annotations; masks in it are never read.", panel=DATA)
    val: Path | None = setting(None, "Annotations with human masks; they only measure.", panel=DATA)
    val_images: Path | None = setting(None, "Image folder of --val.", panel=DATA)
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


@dataclass(frozen=True, kw_only=True)
class LabelConfig(ImageConfig):
    """Settings of `malcli label`."""

    boxes: Path = setting(help="Box annotations.", panel=DATA)
    out: Path | None = setting(None, "Masks: FILE.json or FILE.parquet.", panel=OUTPUT, short="o")
    checkpoint: Path | None = setting(
        None,
        "Run folder or checkpoint (default: newest finished run under ./runs, else the one that "
        "ships).",
        panel=MODEL,
    )
    shard: str | None = setting(None, "Do the I-th of N shares, I from 0: I/N.", panel=RUN)
    merge: bool = setting(False, "Only merge finished parts.", panel=OUTPUT)
    dry_run: bool = setting(False, "Check everything, label nothing.", panel=OUTPUT)
    resume: bool = setting(
        False, "Continue an unfinished job (the default when there is one).", panel=OUTPUT
    )
    overwrite: bool = setting(False, "Replace an existing output of another job.", panel=OUTPUT)
    network: str = setting(
        "student",
        "Network that labels; mean: of both logits.",
        panel=LABEL,
        source=SPEC,
        choices=("student", "teacher", "mean"),
    )
    tta: str = setting(
        "flip",
        "Test-time augmentation: mean of the logits of both views; none: half the network's work.",
        panel=LABEL,
        source="measured: recipes/coco_dev_deit_tiny_cpu.toml",
        choices=("none", "flip"),
    )
    refine: str = setting(
        "colour",
        "crf: mean field at crop resolution; colour: the same, from probabilities to which the "
        "crop's own colours are added.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
        choices=REFINEMENTS,
    )
    overlaps: str = setting(
        "keep",
        "Pixels that several masks of an image claim: kept by all, or left to the smaller mask or "
        "to the one with the higher score.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
        choices=("keep", "smaller", "score"),
    )
    threshold: str | None = setting(
        None,
        "Probability threshold: one value, three by box size (small,medium,large), or auto: those "
        "whose masks fit the boxes best (default: the checkpoint's).",
        panel=LABEL,
    )
    crop_size: str | None = setting(
        None,
        "Side of the network input, pixels, or auto: smaller ones for boxes up to a sixth of it "
        "(default: the checkpoint's).",
        panel=LABEL,
    )
    margin: float = setting(
        0.4,
        "Context around the box, in halves of the box, both sides together (released code: 0.6).",
        panel=LABEL,
        source="measured: recipes/coco_dev_deit_tiny_cpu.toml",
        low=0.0,
        high=10.0,
    )
    geometry: str = setting(
        "exact",
        "Crops and masks by malcli's pixel rule, never outside the box, or (released code) wrapped "
        "round the image, resized by Pillow, with masks that may leak past their box.",
        panel=LABEL,
        source=SPEC,
        choices=("exact", "released"),
    )
    min_score: float | None = setting(
        None,
        "Leave masks with a lower malcli_score (estimated IoU) empty.",
        panel=LABEL,
        low=0,
        high=1,
    )
    batch_size: str = setting("auto", "Crops per network call, or auto.", panel=RUN)
    compile: bool = setting(
        False,
        "Compile the network (GPUs of compute capability 8.0 or later; its gain is not measured).",
        panel=RUN,
    )
    review: Path | None = setting(None, "CSV of the least sure masks.", panel=OUTPUT)
    report: Path | None = setting(None, "HTML page with pictures.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ImageConfig):
    """Settings of `malcli eval`."""

    gt: Path = setting(help="Annotations with human masks.", panel=DATA)
    pred: Path | None = setting(
        None, "Masks to score, or a results list (default: label the boxes of --gt).", panel=DATA
    )
    checkpoint: Path | None = setting(
        None, "Run folder or checkpoint that labels when there is no --pred.", panel=MODEL
    )
    masks: Path | None = setting(None, "Keep the masks labelled for --gt here.", panel=OUTPUT)
    oracle: Path | None = setting(
        None, "Results of the model trained on human masks: adds retention.", panel=DATA
    )
    clustering: bool = setting(
        False,
        "Clustering score of the encoder's features against the human masks (Eq. 6), nothing else.",
        panel=MODEL,
    )
    attention: bool = setting(
        False, "Draw the encoder's attention maps for chosen boxes, nothing else.", panel=MODEL
    )
    encoder: str | None = setting(
        None,
        "Encoder of --clustering and --attention, without a labeler (default: the checkpoint's).",
        panel=MODEL,
    )
    weights: str | None = setting(
        None,
        "Local weight file of --encoder; 'none': random (default: pretrained, from the hub).",
        panel=MODEL,
    )
    ids: str | None = setting(
        None,
        "Annotation ids that --attention draws, separated by commas (default: eight, spread).",
        panel=DATA,
    )
    layers: str = setting(
        "4,8,12",
        "Layers that --attention draws, the first is 1.",
        panel=MODEL,
        source="paper, Fig. 5",
    )
    compare: Path | None = setting(
        None,
        "A second file of the same kind as --pred: which instances got better and worse, or the "
        "difference of AP.",
        panel=DATA,
    )
    report: Path | None = setting(None, "HTML page with tables and pictures.", panel=OUTPUT)
    bootstrap: int = setting(
        1000, "Resamples of the images for the intervals; 0: none.", panel=RUN, low=0
    )
    network: str | None = setting(
        None, "As in label.", panel=LABEL, choices=("student", "teacher", "mean")
    )
    tta: str | None = setting(None, "As in label.", panel=LABEL, choices=("none", "flip"))
    refine: str | None = setting(None, "As in label.", panel=LABEL, choices=REFINEMENTS)
    threshold: str | None = setting(None, "As in label.", panel=LABEL)
    crop_size: str | None = setting(None, "As in label.", panel=LABEL)
    margin: float | None = setting(None, "As in label.", panel=LABEL, low=0.0, high=10.0)
    geometry: str | None = setting(None, "As in label.", panel=LABEL, choices=("exact", "released"))
    overwrite: bool = setting(False, "Replace existing --masks of another job.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of `malcli convert`."""

    src: Path = setting(help="File to read, or the folder of a YOLO data set.", panel=DATA)
    dst: Path = setting(help="File to write, or the folder of a YOLO data set.", panel=DATA)
    images: Path | None = setting(
        None, "Image folder, for sizes and links (default: looked up beside SRC).", panel=DATA
    )
    from_: str | None = setting(
        None, "Format of SRC (default: recognised).", panel=DATA, choices=FORMATS
    )
    to: str | None = setting(
        None, "Format of DST (default: from its suffix).", panel=DATA, choices=FORMATS
    )
    rle: str | None = setting(
        None,
        "Form of the masks (default: as they are).",
        panel=OUTPUT,
        choices=("compressed", "uncompressed", "polygon"),
    )
    contiguous_ids: bool = setting(
        False, "Number the categories from 1 without gaps, in the order of their ids.", panel=OUTPUT
    )
    drop_unlabelled: bool = setting(False, "Leave out records without a mask.", panel=OUTPUT)
    min_score: float | None = setting(
        None, "Leave out records with a lower score.", panel=OUTPUT, low=0, high=1
    )
    boxes_only: bool = setting(False, "Leave out the masks and their areas.", panel=OUTPUT)
    overwrite: bool = setting(False, "Replace DST.", panel=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Settings of `malcli retention`."""

    train: Path = setting(help="Training annotations with human masks.", panel=DATA)
    masks: Path = setting(help="The same annotations with malcli's masks.", panel=DATA)
    val: Path = setting(help="Annotations with human masks to measure on.", panel=DATA)
    images: Path | None = setting(
        None, "Image folder of --train (default: looked up beside it).", panel=DATA
    )
    val_images: Path | None = setting(
        None, "Image folder of --val (default: looked up beside it).", panel=DATA
    )
    out: Path = setting(
        Path("retention"), "Folder of students, results and report.", panel=OUTPUT, short="o"
    )
    overwrite: bool = setting(False, "Replace another study in --out.", panel=OUTPUT)
    resume: bool = setting(
        False, "Continue an unfinished study (the default when there is one).", panel=OUTPUT
    )
    student: str = setting(
        "maskrcnn_resnet50_fpn_v2",
        "Student: torchvision's maskrcnn_resnet50_fpn_v2, or a Mask2Former or RF-DETR-Seg of "
        "transformers: its id at the hub or a local folder.",
        panel=MODEL,
    )
    weights: str | None = setting(
        None,
        "Weights of the student's backbone: a local file of a ResNet-50, for transformers an id or "
        "a local folder of a backbone; 'none': random (default: the hub's, the model's own).",
        panel=MODEL,
    )
    boxes_only: bool = setting(
        False, "Train a third student without masks, for its box AP (App. A.3).", panel=MODEL
    )
    image_size: int = setting(
        800,
        "Shorter side of the student's images, pixels; RF-DETR has its own.",
        panel=TRAIN,
        low=32,
        high=4096,
    )
    max_image_size: int = setting(
        1333, "Longer side of the student's images, pixels.", panel=TRAIN, low=32, high=8192
    )
    epochs: int = setting(12, "Passes over the training images.", panel=TRAIN, low=1)
    max_steps: int | None = setting(
        None, "Stop each student after this many steps.", panel=TRAIN, low=1
    )
    batch_size: int = setting(2, "Images per process and step.", panel=TRAIN, low=1)
    lr: float | None = setting(
        None,
        "Peak learning rate per image of the global batch (default: 0.00125, SGD; students of "
        "transformers: 6.25e-6, AdamW).",
        panel=TRAIN,
        low=0.0,
    )
    categories: str | None = setting(
        None, "Only these categories: names or ids, separated by commas.", panel=DATA
    )
    limit: int | None = setting(None, "Only the first N images of each file.", panel=DATA, low=1)
    max_pixels: int = setting(
        179_000_000, "Refuse images with more pixels than this.", panel=DATA, low=1
    )
    bootstrap: int = setting(
        200, "Resamples of the images for the intervals; 0: none.", panel=RUN, low=0
    )
    seed: int = setting(0, "Random seed of both students.", panel=RUN, low=0)
    workers: int | None = setting(
        None, "Processes that read images (default: by the machine).", panel=RUN, low=0
    )
    device: str = setting("auto", "Device.", panel=RUN, choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "auto", "Number format, as in fit.", panel=RUN, choices=("auto", "fp32", "fp16", "bf16")
    )
    num_processes: int = setting(
        1, "Local processes, started through Accelerate.", panel=RUN, low=1
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `malcli demo`."""

    out: Path = setting(
        Path("malcli-demo"),
        "Folder for data, run, masks and report; replaced if a demo made it.",
        panel=OUTPUT,
        short="o",
    )
    seed: int = setting(0, "Random seed of the scenes and of the fit.", panel=RUN, low=0)
    device: str = setting("auto", "Device.", panel=RUN, choices=("auto", "cpu", "cuda"))
