"""Settings of `malcli retention`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, MODEL, OUTPUT, RUN, TRAIN
from malcli.settings import setting


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
