"""Settings of `malcli label`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, LABEL, MODEL, OUTPUT, REFINEMENTS, RUN, SPEC, ImageConfig
from malcli.settings import as_in, result, setting


@dataclass(frozen=True, kw_only=True)
class LabelConfig(ImageConfig):
    """Settings of `malcli label`."""

    # Labelling draws nothing at random, and a strict job that ends made what any job makes.
    seed: int = as_in(ImageConfig, "seed", identity="free")
    strict: bool = as_in(ImageConfig, "strict", identity="free")
    boxes: Path = setting(help="Box annotations.", panel=DATA, identity="input")
    out: Path | None = setting(
        None, "Masks: FILE.json or FILE.parquet.", panel=OUTPUT, short="o", identity="private"
    )
    checkpoint: Path | None = setting(
        None,
        "Run folder, checkpoint or `shipped` (default: newest finished run under ./runs that was "
        "measured, else the one that ships).",
        panel=MODEL,
        identity="input",
    )
    shard: str | None = setting(
        None, "Do the I-th of N shares, I from 0: I/N.", panel=RUN, identity="private"
    )
    merge: bool = setting(False, "Only merge finished parts.", panel=OUTPUT, identity="private")
    dry_run: bool = setting(
        False, "Check everything, label nothing.", panel=OUTPUT, identity="private"
    )
    resume: bool = setting(
        False,
        "Continue an unfinished job (the default when there is one).",
        panel=OUTPUT,
        identity="private",
    )
    retry_skipped: bool = setting(
        False,
        "Do again those boxes of a finished job whose image could not be read or for which memory "
        "did not suffice.",
        panel=OUTPUT,
        identity="private",
    )
    overwrite: bool = setting(
        False, "Replace an existing output of another job.", panel=OUTPUT, identity="private"
    )
    network: str = result(
        "teacher",
        "Network that labels (released code: student); mean: of both logits.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
        choices=("student", "teacher", "mean"),
    )
    tta: str = result(
        "flip",
        "Test-time augmentation: mean of the logits of both views; none: half the network's work.",
        panel=LABEL,
        source="measured: recipes/coco_dev_deit_tiny_cpu.toml",
        choices=("none", "flip"),
    )
    refine: str = result(
        "crf",
        "crf: mean field at crop resolution; colour: the same, from probabilities to which the "
        "crop's own colours are added.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
        choices=REFINEMENTS,
    )
    overlaps: str = result(
        "keep",
        "Pixels that several masks of an image claim: kept by all, or left to the smaller mask or "
        "to the one with the higher score.",
        panel=LABEL,
        source="measured: benchmarks/QUALITY.md",
        choices=("keep", "smaller", "score"),
    )
    threshold: str | None = result(
        None,
        "Probability threshold: one value, three by box size (small,medium,large), or auto: those "
        "whose masks fit the boxes best (default: the checkpoint's).",
        panel=LABEL,
    )
    crop_size: str | None = result(
        None,
        "Side of the network input, pixels, or auto: smaller ones for boxes up to a sixth of it "
        "(default: the checkpoint's).",
        panel=LABEL,
    )
    margin: float = result(
        0.4,
        "Context around the box, in halves of the box, both sides together (released code: 0.6).",
        panel=LABEL,
        source="measured: recipes/coco_dev_deit_tiny_cpu.toml",
        low=0.0,
        high=10.0,
    )
    geometry: str = result(
        "exact",
        "Crops and masks by malcli's pixel rule, never outside the box, or (released code) wrapped "
        "round the image, resized by Pillow, with masks that may leak past their box.",
        panel=LABEL,
        source=SPEC,
        choices=("exact", "released"),
    )
    min_score: float | None = result(
        None,
        "Leave masks with a lower malcli_score (estimated IoU) empty.",
        panel=LABEL,
        low=0,
        high=1,
    )
    batch_size: str = setting(
        "auto", "Crops per network call, or auto.", panel=RUN, identity="free"
    )
    compile: bool = result(
        False,
        "Compile the network (GPUs of compute capability 8.0 or later; its gain is not measured).",
        panel=RUN,
    )
    review: Path | None = setting(
        None, "CSV of the least sure masks.", panel=OUTPUT, identity="private"
    )
    report: Path | None = setting(
        None, "HTML page with pictures.", panel=OUTPUT, identity="private"
    )
