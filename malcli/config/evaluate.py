"""Settings of `malcli eval`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, LABEL, MODEL, OUTPUT, REFINEMENTS, RUN, ImageConfig
from malcli.settings import setting


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
