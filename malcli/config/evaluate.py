"""Settings of `malcli eval`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.label import LabelConfig
from malcli.config.shared import DATA, MODEL, OUTPUT, RUN, ImageConfig
from malcli.settings import as_in, result, setting

AS_LABEL = {"default": None, "help": "As in label."}  # not given: label's own default or a preset's


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ImageConfig):
    """Settings of `malcli eval`."""

    gt: Path = setting(help="Annotations with human masks.", panel=DATA, identity="input")
    pred: Path | None = setting(
        None,
        "Masks to score, or a results list (default: label the boxes of --gt).",
        panel=DATA,
        identity="input",
        mode="masks",
    )
    checkpoint: Path | None = setting(
        None,
        "Run folder or checkpoint that labels when there is no --pred.",
        panel=MODEL,
        identity="input",
    )
    masks: Path | None = setting(
        None,
        "Keep the masks labelled for --gt here.",
        panel=OUTPUT,
        identity="private",
        mode="masks",
    )
    oracle: Path | None = setting(
        None,
        "Results of the model trained on human masks: adds retention.",
        panel=DATA,
        identity="input",
        mode="masks",
    )
    clustering: bool = result(
        False,
        "Clustering score of the encoder's features against the human masks (Eq. 6), nothing else.",
        panel=MODEL,
    )
    attention: bool = result(
        False, "Draw the encoder's attention maps for chosen boxes, nothing else.", panel=MODEL
    )
    encoder: str | None = result(
        None,
        "Encoder of --clustering and --attention, without a labeler (default: the checkpoint's).",
        panel=MODEL,
        mode="encoders",
    )
    weights: str | None = setting(
        None,
        "Local weight file of --encoder; 'none': random (default: pretrained, from the hub).",
        panel=MODEL,
        identity="input",
        mode="encoders",
    )
    ids: str | None = setting(
        None,
        "Annotation ids that --attention draws, separated by commas (default: eight, spread).",
        panel=DATA,
        identity="selection",
        mode="encoders",
    )
    layers: str = result(
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
        identity="input",
        mode="masks",
    )
    report: Path | None = setting(
        None, "HTML page with tables and pictures.", panel=OUTPUT, identity="private"
    )
    bootstrap: int = setting(
        1000,
        "Resamples of the images for the intervals; 0: none.",
        panel=RUN,
        low=0,
        identity="measure",
    )
    network: str | None = as_in(LabelConfig, "network", **AS_LABEL)
    tta: str | None = as_in(LabelConfig, "tta", **AS_LABEL)
    refine: str | None = as_in(LabelConfig, "refine", **AS_LABEL)
    threshold: str | None = as_in(LabelConfig, "threshold", **AS_LABEL)
    crop_size: str | None = as_in(LabelConfig, "crop_size", **AS_LABEL)
    margin: float | None = as_in(LabelConfig, "margin", **AS_LABEL)
    geometry: str | None = as_in(LabelConfig, "geometry", **AS_LABEL)
    overwrite: bool = setting(
        False, "Replace existing --masks of another job.", panel=OUTPUT, identity="private"
    )
