"""VGG Image Annotator (VIA 1 and 2): its project, its JSON of regions, and its CSV.

A `rect` is a box, a `polygon` a mask drawn by hand and the box around it; circles, ellipses, lines
and points keep their place and their `shape_attributes`, and get no box. The attribute of regions
that names the class: `class`, `label`, `name`, `type` or `category` (the first of these that has
text, in any case), or else the one with most different texts, of equals the first. Of a checkbox
the ticked names count, with commas between. The other attributes stay under `region_attributes`,
those of a file, and its `size` in bytes, in its image, and a project's settings in the header.
No file states the photographs' sizes: they come from the headers. JSON is read twice and a file at
a time, the CSV row by row.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.formats.registry import Sample
from malcli.data.formats.tool_objects import (
    CATEGORY,
    ID,
    SCORE,
    STATUS,
    Entry,
    Photographs,
    box_around,
    is_number,
    points_of,
    table_of,
    text_of,
)
from malcli.errors import DataFormatError
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

FILES = "_via_img_metadata"
HEADER = "via"  # key of the header: a project's settings and attributes, and the class's one
OF_PROJECT = {"_via_settings": "settings", "_via_attributes": "attributes"}
CLASSES = ("class", "label", "name", "type", "category")
MOST = 10_000  # different texts of an attribute that are counted
_PROJECT = re.compile(rb'"_via_(?:img_metadata|settings)"\s*:')
_REGIONS = re.compile(rb'"regions"\s*:\s*[\[{]')
_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def is_via(sample: Sample) -> bool:
    """Return whether a file is a project, regions of files, or a CSV with VIA's columns."""
    if sample.path.is_dir():
        return False
    if sample.is_json:
        regions = _REGIONS.search(sample.edges) and b'"filename"' in sample.edges
        empty = regions and b'"file_attributes"' in sample.edges
        shapes = regions and b'"shape_attributes"' in sample.edges
        return sample.text[:1] == b"{" and bool(_PROJECT.search(sample.edges) or shapes or empty)
    line = sample.text.split(b"\n", 1)[0]
    return all(name.encode() in line for name in _COLUMNS)


def read_via(path: Path, images: Path | None = None) -> BoxTable:
    """Read a file; the table's path is the image folder, if it is not the file's.

    Args:
        path: The file.
        images: The image folder; None: that of the file, or `images` beside it.

    Raises:
        DataFormatError: It is neither JSON nor CSV as VIA writes them.
        RunError: The disk of temporary files is full.
    """
    base = path.absolute().parent
    photographs = Photographs(base, images)
    project: dict[str, Any] = {}
    attribute = _class_attribute(files_of(path, project))
    if attribute is not None:
        project["class"] = attribute
    header = {HEADER: project} if project else {}
    problems = Problems()
    entries = _entries(files_of(path, {}), photographs, attribute, problems)
    place = photographs.root if photographs.root != base else path
    return table_of(place, "via", photographs.root, entries, header, problems)


def files_of(path: Path, project: dict[str, Any]) -> Iterator[Record]:
    """Yield what is said of each photograph, with `regions` as a list.

    Args:
        path: JSON or CSV.
        project: Gets its settings and attributes.

    Raises:
        DataFormatError: It is neither as VIA writes them.
    """
    with open_regular(path) as file:
        is_json = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"")
        file.seek(0)
        if not is_json:
            yield from _rows(path, file)
            return
        text = JsonText(path, file)
        for key in text.members():
            if key == FILES:
                for name in text.members():
                    yield _checked(path, text.value(), name)
            elif key.startswith("_via_"):
                value = text.value()
                if key in OF_PROJECT:
                    project[OF_PROJECT[key]] = value
            else:
                yield _checked(path, text.value(), key)
        text.finish()


def _checked(path: Path, value: object, key: str) -> Record:
    if not isinstance(value, dict) or not isinstance(value.get("filename"), str):
        raise DataFormatError(path, "has no filename; VIA's JSON names each file", short(key))
    regions = value.get("regions") or []
    regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
    if not isinstance(regions, list) or not all(isinstance(each, dict) for each in regions):
        raise DataFormatError(path, "is no list of regions; correct it", short(key), "regions")
    return value | {"regions": regions}


def _rows(path: Path, file: Any) -> Iterator[Record]:  # noqa: ANN401
    """Yield the photographs of a CSV; the rows of one stand together."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    columns: list[str] = []
    current: Record = {}
    try:
        for row in reader:
            if not columns:
                columns = [name.strip().lstrip("#") for name in row]
                lacking = [name for name in _COLUMNS if name not in columns]
                if lacking:
                    said = f"has no column {lacking[0]}; VIA writes JSON or CSV with it"
                    raise DataFormatError(path, said, "line 1")
                continue
            if len(row) != len(columns):
                said = f"has {len(row)} columns, the first line {len(columns)}; correct it"
                raise DataFormatError(path, said, f"line {reader.line_num}")
            value = dict(zip(columns, row, strict=True))
            if current.get("filename") != value["filename"]:
                if current:
                    yield current
                current = _file_of(path, value, reader.line_num)
            shape = _json(path, value, "region_shape_attributes", reader.line_num)
            if shape:
                attributes = _json(path, value, "region_attributes", reader.line_num)
                region = {"shape_attributes": shape, "region_attributes": attributes}
                current["regions"].append(region)
    except UnicodeDecodeError:
        raise DataFormatError(path, "not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        said = f"not valid CSV ({error}); correct it"
        raise DataFormatError(path, said, f"line {reader.line_num}") from None
    finally:
        text.detach()  # whoever opened the file closes it
    if current:
        yield current


def _file_of(path: Path, value: dict[str, str], line: int) -> Record:
    found: Record = {"filename": value["filename"], "regions": []}
    if (size := value.get("file_size", "")).lstrip("-").isdecimal():
        found["size"] = int(size)
    if attributes := _json(path, value, "file_attributes", line):
        found["file_attributes"] = attributes
    return found


def _json(path: Path, value: dict[str, str], column: str, line: int) -> Record:
    try:
        found = json.loads(value.get(column) or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        said = f"{short(value[column])} is no JSON object; correct it"
        raise DataFormatError(path, said, f"line {line}", column)
    return found


def _class_attribute(files: Iterable[Record]) -> str | None:
    """Return the attribute of regions that names the class; None if no region has any."""
    texts: dict[str, set[str]] = {}
    for file in files:
        for region in file["regions"]:
            attributes = region.get("region_attributes")
            for key, value in attributes.items() if isinstance(attributes, dict) else ():
                if key not in (ID, SCORE, STATUS) and (text := _class_of(value)):
                    found = texts.setdefault(key, set())
                    if len(found) < MOST:
                        found.add(text)
    for name in CLASSES:
        for key in texts:
            if key.lower() == name:
                return key
    return max(texts, key=lambda key: len(texts[key]), default=None)


def _class_of(value: object) -> str | None:
    """Return the text of an attribute; of a checkbox, the names that are ticked."""
    if isinstance(value, dict):
        value = ",".join(key for key, ticked in value.items() if ticked in (True, "true"))
    return text_of(value) or None


def _entries(
    files: Iterable[Record], photographs: Photographs, attribute: str | None, problems: Problems
) -> Iterator[Entry]:
    for file in files:
        image: Record = {"file_name": photographs.find(file["filename"])}
        image |= {key: file[key] for key in ("size", "file_attributes") if file.get(key)}
        objects = [_record(region, attribute) for region in file["regions"]]
        for number, record in enumerate(objects):
            if "bbox" not in record:
                shape = record.get("shape_attributes")
                kind = shape.get("name") if isinstance(shape, dict) else None
                said = f"region {number} of {short(file['filename'])} is a {short(kind)}"
                problems.add("no-rect", said)
        yield image, objects


def _record(region: Record, attribute: str | None) -> Record:
    """Return a region as an annotation; with `shape_attributes` only if it has no box."""
    record: Record = {}
    given = region.get("region_attributes")
    attributes = dict(given) if isinstance(given, dict) else {}
    if attribute is not None and (name := _class_of(attributes.get(attribute))):
        record[CATEGORY] = name
        del attributes[attribute]
    if (number := attributes.pop(ID, None)) not in (None, ""):
        is_text = isinstance(number, str) and number.lstrip("-").isdecimal()
        record["id"] = int(number) if is_text else number
    if STATUS in attributes:
        record[STATUS] = attributes.pop(STATUS)
    if SCORE in attributes:
        record[SCORE] = _score(attributes.pop(SCORE))
    record |= _drawn(region.get("shape_attributes"))
    return record | ({"region_attributes": attributes} if attributes else {})


def _score(value: object) -> object:
    """Return a score; the tool saves what was edited as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _drawn(shape: object) -> Record:
    given = shape if isinstance(shape, dict) else {}
    if given.get("name") == "rect":
        sides = [given.get(key) for key in ("x", "y", "width", "height")]
        if all(map(is_number, sides)):
            return {"bbox": sides}
    if given.get("name") == "polygon":
        xs, ys = given.get("all_points_x"), given.get("all_points_y")
        if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) > 2:
            points = points_of(list(zip(xs, ys, strict=True)))
            if points:
                flat = [side for point in points for side in point]
                return {"bbox": box_around(points), "segmentation": [flat]}
    return {"shape_attributes": shape}
