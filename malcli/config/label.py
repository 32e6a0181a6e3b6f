"""Settings of `malcli label`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, LABEL, MODEL, OUTPUT, REFINEMENTS, RUN, SPEC, ImageConfig
from malcli.settings import setting


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
        "teacher",
        "Network that labels (released code: student); mean: of both logits.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
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
        "crf",
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
