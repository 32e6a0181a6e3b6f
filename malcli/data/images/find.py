"""Finds the image folder, and in it each image; nothing outside the folder is opened.

Knows nothing of boxes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa

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
    """

    root: Path
    found: int
    tried: int


def find_images(annotation_path: Path, table: BoxTable, images: Path | None) -> ImageFolder:
    """Return the folder that has most of the table's first images.

    Args:
        annotation_path: The places are relative to its folder.
        table: For the file names.
        images: The only place, if given.

    Raises:
        MissingImageError: None of the images is in any of the places.
    """
    if images is None and table.path.is_dir():
        annotation_path = table.path
    return find_folder(annotation_path, table.images["file_name"], images)


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


def image_path(folder: Path, file_name: str) -> Path:
    """Return the path of an image inside the folder.

    A name that is unique in its data set (COCO's, Objects365's, Open Images') is also looked for by
    its last two parts, by its last one, and by that in patch and hex-digit folders.

    Args:
        folder: The image folder.
        file_name: As the annotation file says it: relative, perhaps with sub-folders.

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
        return next(filter(os.path.isfile, _other_places(folder, parts)), wanted)
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
