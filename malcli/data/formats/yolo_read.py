"""YOLO data sets: data.yaml, images/<split>/, labels/<split>/; one text line an object.

A line is `class x y w h` (centre and size over the image's) or `class x1 y1 x2 y2 ...` (one
polygon); where data.yaml has `kpt_shape`, the numbers after `class x y w h` are key points. Ids
are given in the order of splits, names and lines, from 1; categories keep YOLO's numbers, from 0.
Image sizes come from the headers.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from malcli.data.boxtable.build import ROWS, build_table
from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import take_boxes, take_images
from malcli.data.boxtable.json_stream import open_regular
from malcli.data.boxtable.spill import spool
from malcli.data.formats.registry import Sample
from malcli.data.images.decode import UPRIGHT
from malcli.data.images.sizes import Found, read_sizes
from malcli.errors import DataFormatError, MissingImageError
from malcli.records import BoxTable, Problems, Record

SPLITS = ("train", "val", "valid", "test")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2", ".avif")
)
MAX_YAML = 1 << 22  # bytes; PyYAML is slow
MAX_LABELS = 1 << 26  # bytes of one image's labels
MAX_CLASSES = 100_000
MAX_NUMBER = 40  # characters of a number in YAML
YAML_FAILURES = (LookupError, TypeError, AttributeError)  # of PyYAML's constructors, as !!int ''
NO_NAMES = (list, dict, set, tuple, bytes)
MAX_POINTS = 100_000  # key points of an object
_COUNT = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class YoloSet:
    """What data.yaml says.

    Attributes:
        file: The YAML file.
        root: The folder that names are relative to.
        places: Folders or lists of images, relative to root, by split.
        names: Names of the classes, by number.
        keypoints: Key points of an object, and numbers of each (2: x y, 3: x y visible); None:
            the labels are boxes or polygons.
    """

    file: Path
    root: Path
    places: dict[str, list[str]]
    names: dict[int, str]
    keypoints: tuple[int, int] | None


def is_yolo(sample: Sample) -> bool:
    """Return whether a folder has a YAML file; a file is known by its suffix."""
    folder = sample.path
    return folder.is_dir() and (any(folder.glob("*.yaml")) or any(folder.glob("*.yml")))


def read_yolo(path: Path, images: Path | None = None, *, frame: str = UPRIGHT) -> BoxTable:
    """Read the boxes and polygons of all splits; the table's path is the data set's folder.

    Args:
        path: data.yaml, or its folder.
        images: The folder that holds the image folders, if it is not data.yaml's.
        frame: Whose sizes count, as in `read_size`: Ultralytics' are those of the picture as shown.

    Raises:
        DataFormatError: data.yaml or a label file cannot be understood, or no label file is there.
        MissingImageError: There is no image.
        RunError: The disk of temporary files is full.
    """
    dataset = read_yaml(path)
    root = images or dataset.root
    names = [name for places in dataset.places.values() for name in _image_names(root, places)]
    names = list(dict.fromkeys(names))
    if not names:
        looked = ", ".join(place for places in dataset.places.values() for place in places)
        raise MissingImageError(
            f"{dataset.file}: no image in {looked} of {root}; name the data set's folder with "
            "--images"
        )
    sizes = read_sizes(root, names, frame=frame)
    labels = [_labels_of(dataset.root, name) for name in names]
    if not any(labels):
        raise DataFormatError(
            dataset.file,
            f"none of its {len(names)} images has a label file; {names[0]!a} needs "
            f"{label_path(dataset.root, names[0])}, which may be empty",
        )
    columns = spool(take_images([]).schema, _image_batches(names, sizes)).table
    batches = _box_batches(labels, sizes, dataset.keypoints)
    boxes = spool(take_boxes([]).schema, batches)
    categories = [{"id": number, "name": name} for number, name in dataset.names.items()]
    table = build_table(dataset.root, "yolo", {"categories": categories}, columns, boxes)
    _note_shared(names, labels, table.problems)
    return table


class _Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """PyYAML's safe loader without aliases, and without numbers that take hours to read.

    Nine levels of ten aliases are a billion values, and 1:1:1... is read in base 60.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401
        """Refuse aliases, else as PyYAML."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"alias *{self.peek_event().anchor}: write its value out")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:  # noqa: ANN401
        """Refuse long numbers, else as PyYAML."""
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        return super().construct_scalar(node)


def read_yaml(path: Path) -> YoloSet:
    """Read data.yaml, or the YAML file of a folder.

    Raises:
        DataFormatError: It is no YAML, or has no `names`.
    """
    file = yaml_of(path)
    with open_regular(file) as opened:
        text = opened.read(MAX_YAML + 1)
    if len(text) > MAX_YAML:
        raise DataFormatError(file, f"is longer than {MAX_YAML >> 20} MB; is it data.yaml?")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, *YAML_FAILURES) as error:
        raise DataFormatError(file, f"not valid YAML ({short(_line(error))})") from None
    if not isinstance(value, dict) or "names" not in value:
        raise DataFormatError(file, "has no names; data.yaml lists the classes under 'names'")
    root = file.absolute().parent
    base = value.get("path")
    if isinstance(base, str) and base and "\0" not in base and (root / base).is_dir():
        root = (root / base).resolve()
    places, names = _places(file, root, value), _class_names(file, value["names"])
    return YoloSet(file, root, places, names, _keypoints(file, value.get("kpt_shape")))


def yaml_of(path: Path) -> Path:
    """Return the YAML file of a data set: the path itself, or the one in the folder."""
    if not path.is_dir():
        return path
    found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    named = [file for file in found if file.stem == "data"]
    if not found:
        raise DataFormatError(path, "has no data.yaml; name the annotation file")
    return (named or found)[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _class_names(file: Path, value: object) -> dict[int, str]:
    """Return the names by number, from a list or an object."""
    pairs = list(enumerate(value)) if isinstance(value, list) else None
    if isinstance(value, dict):
        pairs = list(value.items())
    if pairs is None or len(pairs) > MAX_CLASSES:
        raise DataFormatError(file, "is neither a list nor an object of names", field="names")
    names: dict[int, str] = {}
    for number, name in pairs:
        if isinstance(number, str) and _COUNT.fullmatch(number):
            number = int(number)
        if type(number) is not int or not 0 <= number < 2**31 or isinstance(name, NO_NAMES):
            raise DataFormatError(
                file, f"{short(number)}: {short(name)} is no class", None, "names"
            )
        names[number] = str(name)
    return dict(sorted(names.items()))


def _keypoints(file: Path, shape: object) -> tuple[int, int] | None:
    """Return how many key points an object has, and how many numbers each."""
    if shape is None:
        return None
    whole = isinstance(shape, list) and all(type(number) is int for number in shape)
    if not isinstance(shape, list) or not whole or len(shape) != 2:
        raise DataFormatError(file, f"{short(shape)} is not [points, 2 or 3]", None, "kpt_shape")
    points, numbers = shape
    if not 0 < points <= MAX_POINTS or numbers not in (2, 3):
        raise DataFormatError(file, f"{short(shape)} is not [points, 2 or 3]", None, "kpt_shape")
    return points, numbers


def _places(file: Path, root: Path, value: dict[Any, Any]) -> dict[str, list[str]]:
    """Return where the images of each split are, as paths inside the root."""
    places: dict[str, list[str]] = {}
    for split in SPLITS:
        given = value.get(split)
        listed = given if isinstance(given, list) else [given]
        inside = [_inside(file, root, each, split) for each in listed if each is not None]
        if inside:
            places[split] = inside
    return places or {"": ["images"]}


def _inside(file: Path, root: Path, value: object, split: str) -> str:
    """Return a place relative to the root; `../`, which some exports put first, counts little."""
    if not isinstance(value, str) or "\0" in value:
        raise DataFormatError(file, f"{short(value)} is no path", field=split)
    place = PurePosixPath(value.replace("\\", "/"))
    if place.is_absolute() and place.is_relative_to(root.as_posix()):
        place = place.relative_to(root.as_posix())
    parts = list(place.parts)
    while parts and parts[0] == "..":
        del parts[0]
    if place.is_absolute() or ".." in parts or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value):
        raise DataFormatError(
            file, f"{short(value)} leaves the data set's folder; use a relative path", field=split
        )
    return "/".join(parts) or "."


def _image_names(root: Path, places: list[str]) -> Iterator[str]:
    """Yield the images of a split, relative to the root, in the order of their names."""
    for place in places:
        if place.endswith(".txt"):
            yield from _listed(root, root / place)
            continue
        for folder, below, files in os.walk(root / place):
            below.sort()
            base = Path(folder).relative_to(root)
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in SUFFIXES:
                    yield (base / name).as_posix()


def _listed(root: Path, path: Path) -> Iterator[str]:
    """Yield the images of a list; those outside the root are for `images.resolve` to refuse."""
    for line in _lines(path, MAX_LABELS * 4):
        if line:
            inside = line.removeprefix(root.as_posix() + "/")
            yield inside.removeprefix("./")


def _lines(path: Path, limit: int) -> list[str]:
    """Return the lines of a small text file, without blanks around."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataFormatError(path, f"is longer than {limit >> 20} MB; is it a text of YOLO?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataFormatError(path, "not UTF-8 text; save it as UTF-8") from None
    return [line.strip() for line in text.splitlines()]


def _image_batches(names: list[str], sizes: list[Found]) -> Iterator[Any]:
    for begin in range(0, len(names), ROWS):
        records: list[Record] = []
        part = slice(begin, begin + ROWS)
        for number, (name, found) in enumerate(zip(names[part], sizes[part], strict=True), begin):
            record: Record = {"id": number + 1, "file_name": name}
            if found.height is not None:
                record |= {"height": found.height, "width": found.width}
            records.append(record)
        yield take_images(records)


def label_path(root: Path, name: str) -> Path:
    """Return the label file of an image: `labels` for its last `images`, .txt for its suffix."""
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return root.joinpath(*parts)


def _labels_of(root: Path, name: str) -> Path | None:
    """Return the label file of an image; None if there is none, or the name leaves the root."""
    if ".." in PurePosixPath(name).parts or name.startswith("/") or "\0" in name:
        return None
    path = label_path(root, name)
    return path if os.path.lexists(path) else None


def _note_shared(names: list[str], labels: list[Path | None], problems: Problems) -> None:
    """Count images whose label file is an earlier one's, too: a.jpg and a.png have one a.txt."""
    first: dict[Path, str] = {}
    for name, path in zip(names, labels, strict=True):
        if path is not None and (other := first.setdefault(path, name)) != name:
            problems.add(
                "shared-labels",
                f"{name!a} and {other!a} share {path.name!a}, so each gets its lines; rename one",
            )


def _box_batches(
    labels: list[Path | None], sizes: list[Found], keypoints: tuple[int, int] | None
) -> Iterator[Any]:
    """Yield the columns of boxes."""
    batch: list[Record] = []
    number = 1
    for image, (path, found) in enumerate(zip(labels, sizes, strict=True), 1):
        if path is None or not path.stat().st_size:
            continue  # an image without objects
        for line in _lines(path, MAX_LABELS):
            if line:
                record = _record(line, found, keypoints)
                batch.append({"id": number, "image_id": image} | record)
                number += 1
        if len(batch) >= ROWS:
            yield take_boxes(batch)
            batch = []
    yield take_boxes(batch)


def _record(line: str, found: Found, keypoints: tuple[int, int] | None) -> Record:
    """Return a line as an annotation in pixels; what is no such line is kept as it is."""
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        return {"line": line[:1000]}
    count = len(values) - 1
    points = keypoints[0] * keypoints[1] if keypoints else 0
    after = count - points if count - points in (4, 5) else count  # numbers that are no key points
    whole = values[0].is_integer() and abs(values[0]) < 2**31
    polygon = not keypoints and count >= 6 and count % 2 == 0
    if not whole or not all(map(math.isfinite, values)) or not (polygon or after in (4, 5)):
        return {"line": line[:1000]}
    record: Record = {"category_id": int(values[0])}
    if found.height is None or found.width is None:
        return record | {"line": line[:1000]}
    height, width = found.height, found.width
    if polygon:
        sides = [width, height] * (count // 2)
        outline = [value * side for value, side in zip(values[1:], sides, strict=True)]
        left, top = min(outline[::2]), min(outline[1::2])
        box = [left, top, max(outline[::2]) - left, max(outline[1::2]) - top]
        return record | {"bbox": box, "segmentation": [outline]}
    x, y, w, h = values[1:5]
    record["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    if keypoints and after < count:
        record["keypoints"] = _in_pixels(values[5 : 5 + points], keypoints[1], width, height)
    return record | ({"score": values[-1]} if after == 5 else {})


def _in_pixels(values: list[float], numbers: int, width: int, height: int) -> list[float]:
    """Return key points as COCO has them: x, y, visible; 0 0 is none, as for YOLO's trainers."""
    made: list[float] = []
    for place in range(0, len(values), numbers):
        x, y = values[place : place + 2]
        seen = values[place + 2] if numbers == 3 else 2.0 if x or y else 0.0
        made += [x * width, y * height, seen]
    return made
