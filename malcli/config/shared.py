"""What settings of several commands share: names, panels of `--help`, and how images are read.

Every command has a frozen dataclass in a module of its own, flat, each field with unit and source.
"""

from dataclasses import dataclass
from pathlib import Path

from malcli.data.formats.registry import NAMES as FORMATS
from malcli.settings import result, setting

SPEC = "released code"
PAPER = "paper, Sec. 4.2"

REFINEMENTS = ("none", "crf", "colour")
EXIF = ("auto", "upright", "stored")
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
        None,
        "Image folder (default: looked up beside the annotation file).",
        panel=DATA,
        identity="private",
    )
    format: str | None = setting(
        None,
        "Annotation format (default: recognised from content).",
        panel=DATA,
        choices=FORMATS,
        identity="selection",
    )
    categories: str | None = setting(
        None,
        "Only these categories: names or ids, separated by commas.",
        panel=DATA,
        identity="selection",
    )
    limit: int | None = setting(
        None, "Only the first N images.", panel=DATA, low=1, identity="selection"
    )
    max_pixels: int = result(
        179_000_000, "Refuse images with more pixels than this.", panel=DATA, low=1
    )
    exif: str = result(
        "auto",
        "Which way round the boxes take photographs that EXIF turns: as shown (upright), as the "
        "pixels are stored, or (auto) as the format's own trainers do: YOLO upright, others by the "
        "stated size, else stored.",
        panel=DATA,
        choices=EXIF,
    )
    max_failures: float = setting(
        0.5,
        "Stop with exit code 1 when a larger share of at least 1,000 images cannot be read, or "
        "100 in a row are not there (1: never).",
        panel=DATA,
        low=0.0,
        high=1.0,
        identity="private",
    )
    strict: bool = result(False, "Stop with exit code 2 if any record is bad.", panel=DATA)
    seed: int = result(0, "Random seed.", panel=RUN, low=0)
    workers: int | None = setting(
        None,
        "Processes that read images (default: by the machine).",
        panel=RUN,
        low=0,
        identity="private",
    )
    device: str = setting(
        "auto", "Device.", panel=RUN, choices=("auto", "cpu", "cuda"), identity="free"
    )
    precision: str = result(
        "auto",
        "Number format of the network (auto: bf16 from compute capability 8.0, fp16 on older "
        "GPUs, fp32 on CPU).",
        panel=RUN,
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    num_processes: int = setting(
        1, "Local processes, started through Accelerate.", panel=RUN, low=1, identity="free"
    )
