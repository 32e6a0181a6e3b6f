"""Converts annotation files: reader, batches of records, changes asked for, writer."""

import filecmp
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malcli.config.convert import ConvertConfig
from malcli.data.boxtable.columns import uncollected
from malcli.data.formats.open import open_boxes, recognise
from malcli.data.formats.registry import FORMATS, Format, format_of_output, inputs_of
from malcli.data.images.find import find_images
from malcli.engine.convert.record_changes import Changes
from malcli.engine.inputs import with_sizes
from malcli.errors import ConfigError, MissingImageError, OutputError
from malcli.files import folder_beside, refuse_special
from malcli.records import BoxTable, Problems
from malcli.report.progress import log
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from malcli.engine.convert.weights import WeightsResult

CHECKPOINTS = (".safetensors", ".ckpt", ".pth")


@dataclass(frozen=True)
class ConvertResult(Shown):
    """What a conversion did; records_in is records_out and dropped and left_out.

    Attributes:
        src: What was read.
        dst: What was written.
        from_: Format of src.
        to: Format of dst.
        images: Images in the file.
        records_in: Annotations read.
        records_out: Annotations written.
        dropped: Annotations that the command asked to leave out.
        left_out: Annotations that the target cannot say at all.
        lost: What the target cannot say, with the number of records concerned.
        problems: Kinds of doubtful records, with their number; all of them are written.
        polygon_iou: Mean and minimum IoU of masks with the polygons made of them, and their number.
        unchanged: Whether dst was there already, with this very content.
    """

    src: Path
    dst: Path
    from_: str
    to: str
    images: int
    records_in: int
    records_out: int
    dropped: int
    left_out: int
    lost: dict[str, int]
    problems: dict[str, int]
    polygon_iou: dict[str, float] | None
    unchanged: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values; paths as text."""
        plain = asdict(self) | {"src": str(self.src), "dst": str(self.dst)}
        plain["from"] = plain.pop("from_")
        return plain


def convert(config: ConvertConfig) -> "ConvertResult | WeightsResult":
    """Convert an annotation file, or the checkpoint of another program.

    Raises:
        CheckpointError: The source is a checkpoint that malcli cannot read.
        ConfigError: A format is unknown, or settings contradict each other.
        DataFormatError: The source cannot be understood.
        MissingImageError: Image sizes are needed, and none of the images is there.
        OutputError: The target is the source, or holds something else.
        RunError: The disk is full.
    """
    if any(path.suffix.lower() in CHECKPOINTS for path in (config.src, config.dst)):
        from malcli.engine.convert.weights import convert_weights  # imports torch

        return convert_weights(config)
    return convert_annotations(config)


def convert_annotations(config: ConvertConfig) -> ConvertResult:
    """Convert an annotation file; errors as in `convert`."""
    if config.boxes_only and (config.rle or config.drop_unlabelled):
        raise ConfigError("--boxes-only leaves no masks; give it without --rle, --drop-unlabelled")
    to = FORMATS[format_of_output(config.dst, config.to)]
    from_ = config.from_ or recognise(config.src)
    outputs = to.outputs(config.dst)
    _refuse_source(inputs_of(config.src, from_), outputs, to)
    table = open_boxes(
        config.src, from_, config.images, with_masks=not config.boxes_only, exif=config.exif
    )
    if "lost" in to.write_takes or config.rle:  # the others keep images as they are
        table = with_sizes(table, config.src, config.images, config.exif)
    _report(table.problems)
    dst = outputs[0]
    if unchanged := any(map(_is_there, outputs)) and not config.overwrite:
        with folder_beside(dst) as folder:
            again = folder / dst.name
            changes, written, lost = _write(config, again, to, table)
            _refuse_other(to.outputs(again), outputs, config.dst)
    else:
        to.refuse_other(dst)
        changes, written, lost = _write(config, dst, to, table)
    return ConvertResult(
        src=config.src,
        dst=config.dst,
        from_=from_,
        to=to.name,
        images=table.images.num_rows,
        records_in=table.boxes.num_rows,
        records_out=written,
        dropped=changes.dropped,
        left_out=table.boxes.num_rows - written - changes.dropped,
        lost=dict(sorted(lost.items())),
        problems=dict(table.problems.counts),
        polygon_iou=changes.polygon_iou(),
        unchanged=unchanged,
    )


def _report(problems: Problems) -> None:
    """Name the doubtful records on stderr: the first ten of each kind, and their number."""
    for kind, count in sorted(problems.counts.items()):
        log(f"convert: {count} {kind}")
        for example in filter(None, problems.examples.get(kind, [])):
            log(f"  {example}")


def _write(
    config: ConvertConfig, dst: Path, to: Format, table: BoxTable
) -> tuple[Changes, int, Counter[str]]:
    """Write the changed records; return the changes, how many were written, and what was lost."""
    lost: Counter[str] = +to.losses(table) if to.losses else Counter()
    changes = Changes(config, table, lost)
    table = replace(table, header=changes.header, images=changes.images)
    options: dict[str, Any] = {}
    if "lost" in to.write_takes:
        options["lost"] = lost
    if "images" in to.write_takes:
        options["images"] = _image_folder(config, table, lost)
    if "polygons" in to.write_takes:
        options["polygons"] = False if config.boxes_only else None
    with uncollected():  # a tenth of the time
        written = to.write(dst, table, changes.batches(), **options)
    return changes, written, lost


def _image_folder(config: ConvertConfig, table: BoxTable, lost: Counter[str]) -> Path | None:
    """Return the folder of images to link; None if they are nowhere, which is no failure.

    Raises:
        MissingImageError: They are not in the folder that was named.
    """
    try:
        return find_images(config.src, table, config.images).root
    except MissingImageError:
        if config.images is not None:
            raise
        lost["images that were not found, so not linked"] = table.images.num_rows
        return None


def _is_there(path: Path) -> bool:
    """Return whether there is something to lose; an empty folder is nothing."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _refuse_source(sources: list[Path], targets: list[Path], to: Format) -> None:
    """Refuse a target of the wrong kind, or one of the source's files by any name."""
    for path in targets:
        refuse_special(path)
        if path.exists() and any(src.exists() and path.samefile(src) for src in sources):
            raise OutputError(f"{path}: is also the input; choose another output")
        if path.is_dir() and not to.is_folder and not path.name.endswith("-masks"):
            raise OutputError(f"{path}: is a folder; name a file")
        if path.is_file() and to.is_folder:
            inside = f", or data{to.suffixes[0]} in one" if to.suffixes else ""
            raise OutputError(f"{path}: is a file; name a folder{inside}")


def _refuse_other(made: list[Path], there: list[Path], dst: Path) -> None:
    """Refuse an existing output that is not what this conversion gives."""
    if not all(_is_equal(new, old) for new, old in zip(made, there, strict=True)):
        raise OutputError(
            f"{dst}: exists with other content; choose another output, or --overwrite"
        )


def _is_equal(new: Path, old: Path) -> bool:
    """Return whether two files, links or folders say the same, or are both missing."""
    if new.is_symlink() or old.is_symlink():
        return new.resolve() == old.resolve()
    if new.is_dir() and old.is_dir():
        names = set(os.listdir(new))
        return names == set(os.listdir(old)) and all(_is_equal(new / n, old / n) for n in names)
    if new.is_file() and old.is_file():
        return filecmp.cmp(new, old, shallow=False)
    return not new.exists() and not old.exists()
