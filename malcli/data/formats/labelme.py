"""labelme and X-AnyLabeling JSON: one file a photograph, or a folder of them among the photographs.

A rectangle of two or four points, in any order of its corners, is a box. A polygon is a mask drawn
by hand, and its box the one around it; polygons of one label, one group_id and one malcli_id are
the parts of one object, whose other keys are the first one's. Anything else (circles, points,
lines, rotated rectangles) keeps its place, its `shape_type` and its `points`, and gets no box.
`imageData` is never decoded. Every other key stays: of shapes in their annotations, of files in
their images; `id` and other names that annotations use get `labelme_` in front. `group_id: null`,
`flags: {}` and `imageData` are not kept: every file has them. JSON of other kinds in the folder is
left out, and counted.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from malcli.data.boxtable.json_stream import open_regular
from malcli.data.formats.registry import Sample
from malcli.data.formats.tool_objects import (
    CATEGORY,
    COLUMNS,
    ID,
    Entry,
    Photographs,
    box_around,
    points_of,
    table_of,
    text_of,
)
from malcli.data.formats.yolo_read import is_yolo
from malcli.errors import DataFormatError
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

MAX_JSON = 1 << 28  # bytes; imageData is a photograph in base64
PREFIX = "labelme_"  # before keys of shapes and files that are columns here
OF_IMAGES = ("id", "file_name", "height", "width")
MARK = "made_by"  # first key of a file that malcli wrote; tools that save it move it to the end
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_FILE = re.compile(rb'"(?:imagePath|imageData|imageHeight)"\s*:')
_SAID = ("label", "points", "shape_type", ID)
_HEAD = ("shapes", "imagePath", "imageData", "imageHeight", "imageWidth", MARK)
_SLACK = 0.5  # pixels that corners of an upright rectangle may be off
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


def is_labelme(sample: Sample) -> bool:
    """Return whether a file has shapes of an image, or one in a folder has."""
    if not sample.path.is_dir():
        return sample.is_json and _is_ours(sample.edges)
    if is_yolo(sample):  # labels made of labelme's files that still lie beside the images
        return False
    try:
        files = (sample.path / name for name in _files(sample.path)[1])
        return any(_is_ours(_edges(file)) for file, _ in zip(files, range(16), strict=False))
    except OSError:
        return False


def _is_ours(text: bytes) -> bool:
    return bool(_SHAPES.search(text) and _FILE.search(text))


def _edges(file: Path) -> bytes:
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(opened.seek(0, 2) - 4096, len(head)))
        return head + opened.read()


def read_labelme(path: Path, images: Path | None = None) -> BoxTable:
    """Read a file or a folder; the table's path is the image folder, if it is not theirs.

    Args:
        path: A JSON file, or a folder, with those in it.
        images: The image folder; None: that of the JSON files, or the one their imagePath says.

    Raises:
        DataFormatError: A file is not JSON, or none has shapes.
        RunError: The disk of temporary files is full.
    """
    base, names = _files(path)
    reading = _Reading(base, names)
    first = next(reading.files(names[:16]), None)
    if first is None and next(reading.files(names), None) is None:
        raise DataFormatError(path, "has no labelme JSON; name the folder of annotations")
    reading.problems = Problems()  # of the look at the first files
    reading.photographs = Photographs(base, images, str(first[1].get("imagePath")) if first else "")
    root = reading.photographs.root
    place = root if root != base and root.is_dir() else path
    return table_of(place, "labelme", root, reading.entries(), {}, reading.problems)


def _files(path: Path) -> tuple[Path, list[str]]:
    """Return the folder of JSON files, and their names in it, sorted."""
    if not path.is_dir():
        return path.absolute().parent, [path.name]
    found: list[str] = []
    for folder, _, files in os.walk(path):
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        before = "" if inside == "." else inside + "/"
        found += [
            before + name
            for name in files
            if name.lower().endswith(".json") and not name.startswith(".")
        ]
    return path.absolute(), sorted(found)


@dataclass
class _Reading:
    """Reads files one after another.

    Attributes:
        base: Their folder.
        names: Theirs.
        problems: Shapes without a box, and files of other kinds.
        photographs: Finds images.
    """

    base: Path
    names: list[str]
    problems: Problems = field(default_factory=Problems)
    photographs: Photographs | None = None

    def files(self, names: list[str]) -> Iterator[tuple[str, Record]]:
        """Yield the names and members of labelme files, without imageData."""
        for name in names:
            data = read_members(self.base / name, ("imageData",))
            if data is not None:
                yield name, data
            else:
                self.problems.add("other-json", f"{short(name)} has no shapes; it is left out")

    def entries(self) -> Iterator[Entry]:
        """Yield images and their objects."""
        assert self.photographs is not None
        for name, data in self.files(self.names):
            image: Record = {"file_name": self.photographs.find(data.get("imagePath"), name)}
            image |= {"height": data.get("imageHeight"), "width": data.get("imageWidth")}
            for key, value in data.items():
                if key not in _HEAD and (key, value) != ("flags", {}):
                    image[PREFIX + key if key in OF_IMAGES else key] = value
            yield image, self._objects(data["shapes"], name)

    def _objects(self, shapes: list[Any], name: str) -> list[Record]:
        objects: list[Record] = []
        groups: dict[tuple[Any, ...], Record] = {}
        for place, shape in enumerate(shapes):
            if not isinstance(shape, dict):
                raise DataFormatError(
                    self.base / name, "is not an object; correct it", f"shapes[{place}]"
                )
            record = _record(shape)
            if "shape_type" in record:
                said = f"shapes[{place}] of {short(name)} is a {short(record['shape_type'])}"
                self.problems.add("no-rectangle", said)
            group = shape.get("group_id")
            if "segmentation" in record and isinstance(group, int | str):
                key = (record.get(CATEGORY), group, str(record.get("id")))
                first = groups.setdefault(key, record)
                if first is not record:
                    _join(first, record)
                    continue
            objects.append(record)
        return objects


def _record(shape: Record) -> Record:
    """Return a shape as an annotation; with `shape_type` only if it has no box."""
    record: Record = {}
    if (name := text_of(shape.get("label"))) is not None:
        record[CATEGORY] = name
    if (number := shape.get(ID)) is not None:
        record["id"] = number
    kind = shape.get("shape_type") or "polygon"
    points = points_of(shape.get("points"))
    if kind == "rectangle" and _is_upright(points):
        record["bbox"] = box_around(points)
    elif kind == "polygon" and len(points) > 2:
        record["bbox"] = box_around(points)
        record["segmentation"] = [[side for point in points for side in point]]
    else:
        record |= {"shape_type": kind, "points": shape.get("points")}
    for key, value in shape.items():
        of_malcli = key == "group_id" and value in (None, number)
        if key not in _SAID and not of_malcli and (key, value) != ("flags", {}):
            record[PREFIX + key if key in COLUMNS and key != "iscrowd" else key] = value
    return record


def _is_upright(points: list[tuple[float, float]]) -> bool:
    """Return whether points are two corners, or the four of a rectangle that is not turned."""
    if len(points) != 4:
        return len(points) == 2
    x, y, w, h = box_around(points)
    corners = {(abs(px - x) > w / 2, abs(py - y) > h / 2) for px, py in points}
    off = [
        min(abs(side - low), abs(side - low - size))
        for point in points
        for side, low, size in zip(point, (x, y), (w, h), strict=True)
    ]
    return max(off) <= _SLACK and len(corners) in (1, 2, 4)


def _join(first: Record, other: Record) -> None:
    """Add the polygon of a record to the first one's."""
    first["segmentation"] += other["segmentation"]
    flat = [side for part in first["segmentation"] for side in part]
    first["bbox"] = box_around(zip(flat[::2], flat[1::2], strict=True))
    for key, value in other.items():
        first.setdefault(key, value)


def read_members(path: Path, ignored: tuple[str, ...]) -> Record | None:
    """Return the members of a JSON object with a list `shapes`; None for other JSON.

    Args:
        path: The file.
        ignored: Keys whose values are not decoded.

    Raises:
        DataFormatError: It is not JSON.
    """
    with open_regular(path) as file:
        data = file.read(MAX_JSON + 1).removeprefix(b"\xef\xbb\xbf")
    if b'"shapes"' not in data and data.lstrip()[:1] in (b"{", b"["):
        return None
    if len(data) > MAX_JSON:
        raise DataFormatError(path, f"is longer than {MAX_JSON >> 20} MB; is it an annotation?")
    try:
        raw = _raw_members(data)
        value: Any = {key: _decode(raw[key]) for key in raw if key not in ignored}
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # also of NaN, which makes one bad box
        value = _slowly(path, data)
    if not isinstance(value, dict) or not isinstance(value.get("shapes"), list):
        return None
    return {key: value[key] for key in value if key not in ignored}


def _slowly(path: Path, data: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        raise DataFormatError(path, "not UTF-8 text; is it JSON? Save it as UTF-8") from None
    except json.JSONDecodeError as error:
        said = f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataFormatError(path, said) from None
    except (ValueError, RecursionError):
        raise DataFormatError(path, "values are nested too deeply, or a number too long") from None
