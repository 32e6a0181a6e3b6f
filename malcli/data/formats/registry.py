"""Every annotation format in one table, light enough for `--help`.

A new format is one file beside this one and one entry of FORMATS, at the end: names, help, reading,
writing, hashing and what is lost follow from it. Its code is loaded when it is first called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from malcli.errors import ConfigError

Code = Callable[..., Any]


@dataclass(frozen=True)
class Sample:
    """What tells a file's format.

    Attributes:
        path: The file or folder.
        head: Its first bytes; none of a folder.
        edges: More of its start, and its end: the middle may be gigabytes away.
    """

    path: Path
    head: bytes = b""
    edges: bytes = b""

    @property
    def text(self) -> bytes:
        """The head without byte order mark and leading blanks."""
        return self.head.removeprefix(b"\xef\xbb\xbf").lstrip()

    @property
    def is_json(self) -> bool:
        """Whether it can only be JSON, or is blank."""
        return bool(self.head) and self.text[:1] in (b"{", b"[", b"")


@dataclass(frozen=True)
class Lazy:
    """A function of this folder that is imported when it is called.

    Attributes:
        place: Its module and name, such as `coco.read_coco`.
    """

    place: str

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Import and call it."""
        module, _, name = self.place.rpartition(".")
        return getattr(import_module(f"malcli.data.formats.{module}"), name)(*args, **options)


def _itself(path: Path) -> list[Path]:
    return [path]


def _nothing(path: Path) -> list[Path]:
    return []


def _anything(path: Path) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Format:
    """An annotation format.

    Attributes:
        name: As `--format` says it.
        recognises: Returns whether a `Sample` is of this format.
        read: Reads a path, with the options that it takes: a BoxTable.
        read_takes: `images` (the folder; for formats that state no sizes), `with_masks` (of files
            of their own), `folder` (where its columns stay, so that the table can be cached),
            `frame` (whose sizes count where EXIF turns a photograph).
        write: Writes (path, table, batches of records), with the options that it takes; returns
            how many.
        write_takes: `images` (the folder, to link them), `polygons`, `lost` (counts what is left
            out).
        kinds: Suffixes of the files that say what is annotated.
        suffixes: Of outputs that are of this format unless `--to` says otherwise.
        by_suffix: Whether a file with such a suffix is of this format if its content says nothing.
        is_folder: Whether an output is a folder; a file with one of `suffixes` names its own.
        outputs: Returns the files and folders that writing to a path makes.
        other_inputs: Returns what reading a path may read beside those.
        refuse_other: Refuses to replace an output that malcli did not make.
        losses: Counts what it cannot say of a table's header and images.
    """

    name: str
    recognises: Code
    read: Code
    write: Code
    read_takes: tuple[str, ...] = ()
    write_takes: tuple[str, ...] = ()
    kinds: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    by_suffix: bool = False
    is_folder: bool = False
    outputs: Code = _itself
    other_inputs: Code = _nothing
    refuse_other: Code = _anything
    losses: Code | None = None


def inputs_of(path: Path, format: str) -> list[Path]:
    """Return the files and folders that reading a format may read, images apart."""
    return [*FORMATS[format].outputs(path), *FORMATS[format].other_inputs(path)]


def folder_of_data(path: Path) -> Path:
    """Return the folder of a data set for a file that stands for it, as YOLO's data.yaml does."""
    of_folders = {end for each in FORMATS.values() if each.is_folder for end in each.suffixes}
    return path.parent if path.suffix in of_folders else path


def format_of_output(path: Path, format: str | None = None) -> str:
    """Return the format to write: the one named, or that of the suffix.

    Raises:
        ConfigError: The suffix is unknown.
    """
    for each in FORMATS.values():
        if format is None and path.suffix.lower() in each.suffixes:
            return each.name
    if format is None:
        *most, last = (each.suffixes[0] for each in FORMATS.values() if each.suffixes)
        raise ConfigError(
            f"{path}: cannot tell the format from '{path.suffix}'; use {', '.join(most)} or "
            f"{last}, or --to"
        )
    return format


def reader_of(format: str) -> Code:
    """Return the reader of a format.

    Raises:
        ConfigError: There is none.
    """
    return _named(format, "read").read


def writer_of(format: str) -> Code:
    """Return the writer of a format.

    Raises:
        ConfigError: There is none.
    """
    return _named(format, "write").write


def _named(format: str, verb: str) -> Format:
    if format not in FORMATS:
        raise ConfigError(
            f"format '{format}': this version cannot {verb} it yet; it can {verb} "
            f"{', '.join(NAMES)}"
        )
    return FORMATS[format]


# In the order in which they are asked whether a file is theirs: of JSON, COCO comes last.
_ALL = (
    Format(
        name="lvis",
        recognises=Lazy("lvis.is_lvis"),
        read=Lazy("lvis.read_lvis"),
        read_takes=("folder",),
        write=Lazy("lvis.write_lvis"),
        write_takes=("lost",),
        kinds=(".json",),
        losses=Lazy("lvis.losses_of_table"),
    ),
    Format(
        name="objects365",
        recognises=Lazy("objects365.is_objects365"),
        read=Lazy("objects365.read_objects365"),
        read_takes=("folder",),
        write=Lazy("objects365.write_objects365"),
        kinds=(".json",),
    ),
    Format(
        name="labelstudio",
        recognises=Lazy("labelstudio.is_labelstudio"),
        read=Lazy("labelstudio.read_labelstudio"),
        read_takes=("images",),
        write=Lazy("labelstudio_write.write_labelstudio"),
        write_takes=("lost",),
        kinds=(".json",),
        losses=Lazy("labelstudio_write.losses_of_table"),
    ),
    Format(
        name="labelme",
        recognises=Lazy("labelme.is_labelme"),
        read=Lazy("labelme.read_labelme"),
        read_takes=("images",),
        write=Lazy("labelme_write.write_labelme"),
        write_takes=("images", "lost"),
        kinds=(".json",),
        is_folder=True,
        refuse_other=Lazy("labelme_write.refuse_other_labelme"),
        losses=Lazy("labelme_write.losses_of_table"),
    ),
    Format(
        name="via",
        recognises=Lazy("via.is_via"),
        read=Lazy("via.read_via"),
        read_takes=("images",),
        write=Lazy("via_write.write_via"),
        write_takes=("images", "lost"),
        kinds=(".json", ".csv"),
        losses=Lazy("via_write.losses_of_table"),
    ),
    Format(
        name="createml",
        recognises=Lazy("createml.is_createml"),
        read=Lazy("createml.read_createml"),
        read_takes=("images",),
        write=Lazy("createml.write_createml"),
        write_takes=("lost",),
        kinds=(".json",),
        losses=Lazy("createml.losses_of_table"),
    ),
    Format(
        name="coco",
        recognises=Lazy("coco.is_coco"),
        read=Lazy("coco.read_coco"),
        read_takes=("folder",),
        write=Lazy("coco.write_coco"),
        kinds=(".json",),
        suffixes=(".json",),
        by_suffix=True,  # its reader says what is wrong with it
    ),
    Format(
        name="parquet",
        recognises=Lazy("parquet.is_parquet"),
        read=Lazy("parquet.read_parquet"),
        write=Lazy("parquet.write_parquet"),
        kinds=(".parquet",),
        suffixes=(".parquet",),
        outputs=Lazy("parquet.files_of"),
    ),
    Format(
        name="openimages",
        recognises=Lazy("openimages.boxes.is_openimages"),
        read=Lazy("openimages.boxes.read_openimages"),
        read_takes=("images", "with_masks", "frame"),
        write=Lazy("openimages.write.write_openimages"),
        write_takes=("lost",),
        kinds=(".csv",),
        suffixes=(".csv",),
        outputs=Lazy("openimages.write.files_of"),
        other_inputs=Lazy("openimages.masks.files_of_masks"),
        refuse_other=Lazy("openimages.write.refuse_other_masks"),
        losses=Lazy("openimages.write.losses_of_table"),
    ),
    Format(
        name="yolo",
        recognises=Lazy("yolo_read.is_yolo"),
        read=Lazy("yolo_read.read_yolo"),
        read_takes=("images", "frame"),
        write=Lazy("yolo_write.write_yolo"),
        write_takes=("images", "polygons", "lost"),
        kinds=(".yaml", ".yml", ".txt"),
        suffixes=(".yaml", ".yml"),
        by_suffix=True,
        is_folder=True,
        outputs=Lazy("yolo_write.outputs_of"),
        refuse_other=Lazy("yolo_write.refuse_other_yolo"),
        losses=Lazy("yolo_write.losses_of_table"),
    ),
    Format(
        name="voc",
        recognises=Lazy("voc.is_voc"),
        read=Lazy("voc.read_voc"),
        read_takes=("images",),
        write=Lazy("voc_write.write_voc"),
        write_takes=("lost",),
        kinds=(".xml",),
        is_folder=True,
        refuse_other=Lazy("voc_write.refuse_other_voc"),
        losses=Lazy("voc_write.losses_of_table"),
    ),
    Format(
        name="cvat",
        recognises=Lazy("cvat.is_cvat"),
        read=Lazy("cvat.read_cvat"),
        read_takes=("images",),
        write=Lazy("cvat_write.write_cvat"),
        write_takes=("lost",),
        kinds=(".xml",),
        losses=Lazy("cvat_write.losses_of_table"),
    ),
)
FORMATS = {each.name: each for each in _ALL}
NAMES = tuple(sorted(FORMATS))
KINDS = tuple(sorted({kind for each in _ALL for kind in each.kinds}))
