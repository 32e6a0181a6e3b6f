"""Converts annotation files: reader, batches of records, writer."""

import filecmp
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from malcli.config import ConvertConfig
from malcli.data.formats import format_of_output, open_boxes, recognise, writer_of
from malcli.data.index import BATCHES_KEPT
from malcli.data.parquet import images_path
from malcli.errors import ConfigError, OutputError
from malcli.files import write_error
from malcli.records import BoxTable, Record, to_records

CHECKPOINTS = (".safetensors", ".ckpt", ".pth")


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion did.

    Attributes:
        src: What was read.
        dst: What was written.
        from_: Format of src.
        to: Format of dst.
        images: Images in the file.
        records_in: Annotations read.
        records_out: Annotations written.
        lost: What the target cannot say, with the number of records concerned.
        problems: Kinds of doubtful records, with their number; all of them are written.
        unchanged: Whether dst was there already, with this very content.
    """

    src: Path
    dst: Path
    from_: str
    to: str
    images: int
    records_in: int
    records_out: int
    lost: dict[str, int]
    problems: dict[str, int]
    unchanged: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values; paths as text."""
        plain = asdict(self) | {"src": str(self.src), "dst": str(self.dst)}
        plain["from"] = plain.pop("from_")
        return plain


def convert(config: ConvertConfig) -> ConvertResult:
    """Convert an annotation file.

    Raises:
        ConfigError: A format is unknown or not built yet.
        DataFormatError: The source cannot be understood.
        OutputError: The target is the source, or holds something else.
        RunError: The disk is full.
    """
    for path in (config.src, config.dst):
        if path.suffix.lower() in CHECKPOINTS:
            raise ConfigError(f"{path}: this version does not convert checkpoints yet")
    to = format_of_output(config.dst, config.to)
    write = writer_of(to)
    from_ = config.from_ or recognise(config.src)
    _refuse_source(_files_of(config.src, from_), _files_of(config.dst, to))
    table = open_boxes(config.src, from_)
    unchanged = False
    exists = any(path.exists() for path in _files_of(config.dst, to))
    if exists and not config.overwrite:
        with _folder_beside(config.dst) as folder:
            again = Path(folder) / config.dst.name
            written = write(again, table, _record_batches(table))
            _refuse_other(again, config.dst, to)
        unchanged = True
    else:
        written = write(config.dst, table, _record_batches(table))
    return ConvertResult(
        src=config.src,
        dst=config.dst,
        from_=from_,
        to=to,
        images=table.images.num_rows,
        records_in=table.boxes.num_rows,
        records_out=written,
        lost={},  # COCO and Parquet say everything
        problems=dict(table.problems.counts),
        unchanged=unchanged,
    )


def _record_batches(table: BoxTable) -> Iterator[list[Record]]:
    for number, batch in enumerate(table.boxes.to_batches()):
        yield to_records(batch)
        if number % BATCHES_KEPT == 0:
            table.release()


def _files_of(path: Path, format: str) -> list[Path]:
    return [path, images_path(path)] if format == "parquet" else [path]


def _refuse_source(sources: list[Path], targets: list[Path]) -> None:
    """Refuse a target that is a folder, or one of the source's files by any name."""
    for path in targets:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file")
        if path.exists() and any(src.exists() and path.samefile(src) for src in sources):
            raise OutputError(f"{path}: is also the input; choose another output")


def _folder_beside(dst: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a hidden folder on the disk of dst, removed with its content."""
    try:
        return tempfile.TemporaryDirectory(prefix=f".{dst.name}.", dir=dst.parent)
    except OSError as error:
        raise write_error(error, dst) from error


def _refuse_other(again: Path, dst: Path, to: str) -> None:
    """Refuse an existing output that is not what this conversion gives."""
    pairs = zip(_files_of(again, to), _files_of(dst, to), strict=True)
    if not all(old.is_file() and filecmp.cmp(new, old, shallow=False) for new, old in pairs):
        raise OutputError(
            f"{dst}: exists with other content; choose another output, or --overwrite"
        )
