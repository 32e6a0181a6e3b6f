"""Settings of `malcli retention`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, MODEL, OUTPUT, RUN, TRAIN, ImageConfig
from malcli.settings import as_in, result, setting


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Settings of `malcli retention`."""

    train: Path = setting(
        help="Training annotations with human masks.", panel=DATA, identity="input"
    )
    masks: Path = setting(
        help="The same annotations with malcli's masks.", panel=DATA, identity="input"
    )
    val: Path = setting(
        help="Annotations with human masks to measure on.", panel=DATA, identity="input"
    )
    images: Path | None = setting(
        None,
        "Image folder of --train (default: looked up beside it).",
        panel=DATA,
        identity="private",
    )
    val_images: Path | None = setting(
        None,
        "Image folder of --val (default: looked up beside it).",
        panel=DATA,
        identity="private",
    )
    out: Path = setting(
        Path("retention"),
        "Folder of students, results and report.",
        panel=OUTPUT,
        short="o",
        identity="private",
    )
    overwrite: bool = setting(
        False, "Replace another study in --out.", panel=OUTPUT, identity="private"
    )
    resume: bool = setting(
        False,
        "Continue an unfinished study (the default when there is one).",
        panel=OUTPUT,
        identity="private",
    )
    student: str = result(
        "maskrcnn_resnet50_fpn_v2",
        "Student: torchvision's maskrcnn_resnet50_fpn_v2, or a Mask2Former or RF-DETR-Seg of "
        "transformers: its id at the hub or a local folder.",
        panel=MODEL,
    )
    weights: str | None = result(
        None,
        "Weights of the student's backbone: a local file of a ResNet-50, for transformers an id or "
        "a local folder of a backbone; 'none': random (default: the hub's, the model's own).",
        panel=MODEL,
    )
    boxes_only: bool = setting(
        False,
        "Train a third student without masks, for its box AP (App. A.3).",
        panel=MODEL,
        identity="measure",
    )
    image_size: int = result(
        800,
        "Shorter side of the student's images, pixels; RF-DETR has its own.",
        panel=TRAIN,
        low=32,
        high=4096,
    )
    max_image_size: int = result(
        1333, "Longer side of the student's images, pixels.", panel=TRAIN, low=32, high=8192
    )
    epochs: int = result(12, "Passes over the training images.", panel=TRAIN, low=1)
    max_steps: int | None = result(
        None, "Stop each student after this many steps.", panel=TRAIN, low=1
    )
    batch_size: int = result(2, "Images per process and step.", panel=TRAIN, low=1)
    lr: float | None = result(
        None,
        "Peak learning rate per image of the global batch (default: 0.00125, SGD; students of "
        "transformers: 6.25e-6, AdamW).",
        panel=TRAIN,
        low=0.0,
    )
    categories: str | None = as_in(ImageConfig, "categories")
    limit: int | None = as_in(ImageConfig, "limit", help="Only the first N images of each file.")
    max_pixels: int = as_in(ImageConfig, "max_pixels")
    bootstrap: int = setting(
        200,
        "Resamples of the images for the intervals; 0: none.",
        panel=RUN,
        low=0,
        identity="measure",
    )
    seed: int = as_in(ImageConfig, "seed", help="Random seed of both students.")
    workers: int | None = as_in(ImageConfig, "workers")
    device: str = as_in(ImageConfig, "device")
    precision: str = as_in(ImageConfig, "precision", help="Number format, as in fit.")
    num_processes: int = as_in(ImageConfig, "num_processes")
