"""Finds the image folder, and in it each image.

No name leaves the folder: `..`, absolute paths and URLs are refused. Links that lie inside it are
the user's own and are followed wherever they lead, since data sets keep sub-folders on other disks
and exports link their photographs. Knows nothing of boxes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from malcli.data.images.decode import STATED, STORED, UPRIGHT
from malcli.data.images.health import Health
from malcli.errors import BadImage, MissingImageError
from malcli.records import BoxTable

FIRST_NAMES = 32  # looked for in every place
MORE_NAMES = 100_000  # looked for where none of the first is anywhere
_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/")  # a drive letter or a URL
# Names that are unique in their data set (COCO and LVIS, Objects365, Open Images), which people
# keep in other folders than the annotations say; other names are taken as they are.
_UNIQUE = re.compile(
    r"(?:.*/)?(?:(?:patch\d+|(?:train|val|test|unlabeled)20\d\d)/[^/]+"
    r"|(?:COCO_\w+_)?\d{12}\.\w+|objects365_v\d_\d+\.\w+|obj365_\w+\.\w+|[0-9a-f]{16}\.\w+)"
)
_PATCHES = ("", "v1", "v2", "images/v1", "images/v2")  # folders that hold patch folders
_HEX = re.compile(r"(?:\w+_)?[0-9a-f]")
_SPLITS = ("train", "validation", "val", "test")


@dataclass(frozen=True)
class ImageFolder:
    """Where the images lie.

    Attributes:
        root: The folder that `file_name` is relative to.
        found: How many of the first names are there.
        tried: How many were looked for.
        frame: Which way round the boxes take a photograph with EXIF, as in `decode_image`.
        shared: Last parts of names that several images have: those are never looked for elsewhere.
        health: What became of the reads.
    """

    root: Path
    found: int
    tried: int
    frame: str = STATED
    shared: frozenset[str] = frozenset()
    health: Health = field(default_factory=Health, compare=False)


def frame_of(exif: str, format: str) -> str:
    """Return the frame that the boxes of a format mean: `--exif`, or for `auto` the format's.

    YOLO's labels are relative to the picture as shown, for so Ultralytics trains on it. Other
    formats state a size, which tells; where it does not, photographs are taken as they are stored,
    which is what torchvision's and pycocotools' users read.
    """
    if exif in (STORED, UPRIGHT):
        return exif
    return UPRIGHT if format == "yolo" else STATED


def find_images(
    annotation_path: Path,
    table: BoxTable,
    images: Path | None,
    exif: str = "auto",
    max_failures: float = 1.0,
) -> ImageFolder:
    """Return the folder that has most of the table's first images.

    Args:
        annotation_path: The places are relative to its folder.
        table: For the file names.
        images: The only place, if given.
        exif: The setting `--exif`.
        max_failures: The setting `--max-failures`.

    Raises:
        MissingImageError: None of the images is in any of the places.
    """
    if images is None and table.path.is_dir():
        annotation_path = table.path
    names = table.images["file_name"]
    found = find_folder(annotation_path, names, images)
    return ImageFolder(
        found.root,
        found.found,
        found.tried,
        frame_of(exif, table.format),
        _shared(names),
        Health.of(found.root, max_failures),
    )


def _shared(names: pa.ChunkedArray) -> frozenset[str]:
    """Return the last parts that several different names have."""
    last = pc.replace_substring_regex(pc.unique(names), r"(?s).*[/\\]", "")
    counts = pc.value_counts(last)
    values, number = counts.field("values"), counts.field("counts")
    return frozenset(name for name in values.filter(pc.greater(number, 1)).to_pylist() if name)


def find_folder(
    annotation_path: Path, names: pa.ChunkedArray, images: Path | None = None
) -> ImageFolder:
    """Return the folder that has most of the first of the named images, as `find_images` does."""
    places = [images] if images else _places(annotation_path)
    first = [name for name in names.slice(0, FIRST_NAMES).to_pylist() if name]
    counts = [sum(_is_there(place, name) for name in first) for place in places]
    best = counts.index(max(counts))
    if counts[best] or not len(names):
        return ImageFolder(places[best], counts[best], len(first))
    for name in names.slice(FIRST_NAMES, MORE_NAMES).to_pylist():
        for place in places:
            if name and _is_there(place, name):
                return ImageFolder(place, 0, len(first))
    tried = ", ".join(map(str, places))
    example = f", such as {first[0]!a}," if first else ""
    raise MissingImageError(
        f"{annotation_path}: none of its images{example} is found in {tried}; name their folder "
        "with --images"
    )


def _places(annotation_path: Path) -> list[Path]:
    """Return where images lie beside an annotation file, or in a data set's folder."""
    if annotation_path.is_dir():
        return [annotation_path.absolute()]
    beside = annotation_path.absolute().parent
    stem = re.sub(r"^(instances|boxes)_", "", annotation_path.stem)
    places = [beside, beside / "images", beside.parent / "images"]
    if stem not in ("", "images"):
        places.append(beside.parent / stem)
    places += [beside.parent, beside.parent / "coco"]  # LVIS: names with train2017/, val2017/
    for split in (split for split in _SPLITS if split in stem.lower()):
        places += [root / split for root in (*places[:3], beside.parent)]
        break
    return places


def _is_there(root: Path, name: str) -> bool:
    try:
        return image_path(root, name).is_file()
    except (BadImage, OSError):
        return False


def image_path(folder: Path, file_name: str, shared: frozenset[str] = frozenset()) -> Path:
    """Return the path of an image inside the folder.

    A name that is unique in its data set (COCO's, Objects365's, Open Images') is also looked for by
    its last two parts, by its last one, and by that in patch and hex-digit folders.

    Args:
        folder: The image folder.
        file_name: As the annotation file says it: relative, perhaps with sub-folders.
        shared: Last parts that are not unique in this data set: only their own place counts.

    Returns:
        The first of these that is there, else `folder / file_name`.

    Raises:
        BadImage: The name is empty, absolute, a URL, or has `..`, a drive letter or a NUL.
    """
    plain = file_name.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    if not parts or "\0" in plain:
        raise BadImage("no-image", f"{file_name!a} is no file name")
    if plain.startswith("/") or ".." in parts or _ELSEWHERE.match(plain):
        raise BadImage("no-image", f"{file_name!a} leaves the image folder; it is not opened")
    wanted = folder / plain
    if _UNIQUE.fullmatch(plain) and not os.path.isfile(wanted):
        found = next(filter(os.path.isfile, _other_places(folder, parts)), wanted)
        if found != wanted and parts[-1] in shared:
            raise BadImage(
                "no-image",
                f"{wanted}: no such file; {found} may be another record's image of that name",
            )
        return found
    return wanted


def _other_places(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield where else in the folder an image may lie that is known by its last part."""
    yield folder.joinpath(*parts[-2:])
    yield folder / parts[-1]
    digit = parts[-1][0]
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return
    for place in _sub_folders(folder, changed):
        if (
            place.name.startswith("patch")
            or place.name == digit
            or place.name.endswith(f"_{digit}")
        ):
            yield place / parts[-1]


@lru_cache(maxsize=64)
def _sub_folders(folder: Path, changed: int) -> tuple[Path, ...]:
    """Return the patch folders of Objects365 and the hex-digit folders of Open Images.

    Args:
        folder: The image folder.
        changed: When it changed; the answer is kept for as long as it did not.
    """
    patches = [path for base in _PATCHES for path in sorted((folder / base).glob("patch*"))]
    digits = [path for path in sorted(folder.iterdir()) if _HEX.fullmatch(path.name)]
    return tuple(path for path in patches + digits if path.is_dir())
