"""`malcli eval --clustering`: how tightly an encoder's features gather around the human masks.

Makes no masks and asks no decoder.

Shape suffixes: B crops, C channels, N tokens, S crop pixels, h w token grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.data.boxtable.checks import overlaps
from malcli.data.crops.label_crops import Roi
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import ImageFolder, find_images
from malcli.data.images.read import read_image
from malcli.engine.eval.encoder.features import OpenEncoder, lose_boxes, open_encoder
from malcli.engine.eval.read_instances import Frame, read_frame, read_human
from malcli.engine.inputs import refuse_problems, report_problems
from malcli.engine.label.settings import auto_batch
from malcli.errors import BadImage, DataFormatError
from malcli.metrics.clustering import clustering_scores, size_intervals, size_means, token_sides
from malcli.metrics.miou import group_instances, resample_images
from malcli.metrics.pairing import Instances
from malcli.records import Problems, Rle
from malcli.report.progress import Progress, log
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

BAD_BOX = "boxes that cannot be used (left out)"


@dataclass(frozen=True)
class ClusteringResult(Shown):
    """What was measured; every mean is None where it is undefined.

    Attributes:
        gt: The human masks.
        encoder: What was measured, as `OpenEncoder.to_json` says it.
        clustering: Eq. 6, mean over instances, by size class of the box.
        chance: The same with foreground and background shuffled inside each crop.
        intervals: [low, high] of `clustering`, bootstrap over images; None without resamples.
        counts: `instances` = `used` + `without_both_sides` (a side has no token) + `skipped`
            (box or image cannot be used); crowd is no instance.
        problems: Records that could not be used.
    """

    gt: Path
    encoder: dict[str, Any]
    clustering: dict[str, float | None]
    chance: dict[str, float | None]
    intervals: dict[str, Any] | None
    counts: dict[str, int]
    problems: Problems = field(default_factory=Problems)

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.encoders import clustering_table

        return clustering_table(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `malcli eval --clustering --json`."""
        return {
            "clustering": self.clustering,
            "chance": self.chance,
            "intervals": self.intervals,
            "counts": self.counts,
            **self.encoder,
            "gt": str(self.gt),
            "problems": self.problems.counts,
        }


def measure_clustering(config: EvalConfig) -> ClusteringResult:
    """Measure an encoder by the clustering score, on every human instance that is no crowd.

    Args:
        config: The human masks, and which encoder.

    Raises:
        DataFormatError: The file cannot be understood or holds no human mask; with `strict`, any
            record that cannot be used.
        MissingImageError: None of the images is found.
        CheckpointError: Weights cannot be used.
    """
    log(f"eval: reading {config.gt}")
    table = select(
        open_boxes(config.gt, config.format, config.images, exif=config.exif),
        config.categories,
        config.limit,
    )
    problems = Problems()
    frame = read_frame(table, config.categories, config.limit)
    human = read_human(table, frame, problems)
    if config.strict:
        refuse_problems(config.gt, problems)
    folder = find_images(config.gt, table, config.images, config.exif, config.max_failures)
    crops = _Crops(config, folder, frame, human, problems)
    found = open_encoder(config)
    scores = _score_all(config, found, crops)
    report_problems(problems)
    return _result(config, found, human, scores, crops)


class _Crops:
    """The RoIs of the human instances that are no crowd, image by image.

    Args:
        config: For the images, and what to do with bad ones.
        folder: Where the images are.
        frame: The images.
        human: The instances; an RoI's `row` is a row of it.
        problems: Takes boxes and images that cannot be used.
    """

    def __init__(
        self,
        config: EvalConfig,
        folder: ImageFolder,
        frame: Frame,
        human: Instances,
        problems: Problems,
    ) -> None:
        self.config = config
        self.folder = folder
        self.frame = frame
        self.human = human
        self.problems = problems
        self.instances = np.flatnonzero(~human.crowd)
        sizes = np.array(frame.sizes_hw, dtype=np.float64).reshape(-1, 2)
        usable = overlaps(human.xywh, sizes[human.image])
        self.rows = np.flatnonzero(usable & ~human.crowd)
        for row in np.flatnonzero(~usable & ~human.crowd):
            problems.add(BAD_BOX, f"id {human.ids[row]!r:.40}: no area inside its image")
        if config.strict:
            refuse_problems(config.gt, problems)

    def read(self, found: OpenEncoder) -> Iterator[Roi]:
        """Yield the RoIs; each image is decoded once, with progress."""
        image = self.human.image[self.rows]
        order = np.argsort(image, kind="stable")
        numbers, begins = np.unique(image[order], return_index=True)
        with Progress(len(numbers), "images", "eval") as progress:
            for number, part in zip(numbers, np.split(self.rows[order], begins[1:]), strict=True):
                yield from self._read_image(int(number), part, found)
                progress.advance()

    def _read_image(self, number: int, rows: NDArray[np.int64], found: OpenEncoder) -> list[Roi]:
        try:
            name, hw = self.frame.names[number], self.frame.sizes_hw[number]
            pixels = read_image(self.folder, name, hw, self.config.max_pixels)
        except BadImage as error:
            lose_boxes(self.config, self.problems, error, len(rows))
            return []
        return found.rois(pixels, rows, self.human.xywh[rows])

    def mask(self, row: int) -> Rle:
        """Return the human mask of an instance."""
        rle = self.human.rles[row]
        assert rle is not None  # `read_human` leaves others out
        return rle


def _score_all(
    config: EvalConfig, found: OpenEncoder, crops: _Crops
) -> dict[int, NDArray[np.float64]]:
    """Return {row: score and chance} of every instance with a crop; NaN without both sides.

    Raises:
        DataFormatError: No instance has a crop.
    """
    count = auto_batch(found.device.type, found.crop_size)
    rois = crops.read(found)
    scores: dict[int, NDArray[np.float64]] = {}
    while batch := list(islice(rois, count)):
        feature_BhwC = found.features(found.crops(batch))
        for roi, feature_hwC in zip(batch, feature_BhwC, strict=True):
            rng = np.random.default_rng((config.seed, roi.row))
            scores[roi.row] = _score(feature_hwC, crops.mask(roi.row), roi.roi, rng)
    if not scores and len(crops.instances):
        kind, examples = next(iter(crops.problems.examples.items()))
        raise DataFormatError(config.gt, f"no instance can be measured: {kind}: {examples[0]}")
    return scores


def _score(
    feature_hwC: NDArray[np.float32], mask: Rle, roi: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return Eq. 6 of a crop, and of the same tokens with their sides shuffled."""
    grid_hw = (feature_hwC.shape[0], feature_hwC.shape[1])
    inside, foreground = token_sides(mask, roi, grid_hw)
    foreground_N = foreground[inside]
    divisions = np.stack([foreground_N, rng.permutation(foreground_N)])
    return clustering_scores(feature_hwC[inside], divisions)


def _result(
    config: EvalConfig,
    found: OpenEncoder,
    human: Instances,
    scores: dict[int, NDArray[np.float64]],
    crops: _Crops,
) -> ClusteringResult:
    """Return the means of the instances that have both sides."""
    rows = np.array(
        [row for row, pair in scores.items() if np.isfinite(pair).all()], dtype=np.int64
    )
    values = np.array([scores[row] for row in rows.tolist()]).reshape(-1, 2)
    groups = group_instances(human.image[rows], human.category[rows], human.xywh[rows])
    draws = resample_images(len(crops.frame.names), config.bootstrap, config.seed)
    bounds = size_intervals(values[:, 0], groups.size, groups.image, draws)
    counts = {
        "instances": len(crops.instances),
        "used": len(rows),
        "without_both_sides": len(scores) - len(rows),
        "skipped": len(crops.instances) - len(scores),
    }
    return ClusteringResult(
        gt=config.gt,
        encoder=found.to_json(),
        clustering=size_means(values[:, 0], groups.size),
        chance=size_means(values[:, 1], groups.size),
        intervals={"clustering": bounds} if len(draws) else None,
        counts=counts,
        problems=crops.problems,
    )
