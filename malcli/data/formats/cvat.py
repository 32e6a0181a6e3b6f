"""CVAT for images 1.1: one XML file with <image> elements, streamed, or the folder that it is in.

An upright box is a box, a polygon or mask a mask drawn by hand; polygons of one label, one group_id
and one malcli_id are the parts of one object. Corners count from 0, to the outer edges of pixels.
Everything else (rotated boxes, points, polylines, ellipses, cuboids, skeletons) keeps its place and
what it says under `cvat_shape`, and gets no box. Attributes stay under `attributes`, tags of an
image under its `tags`, `meta` in the header; occluded, z_order and group_id of 0 are not kept.
Tracks of videos are refused.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from malcli.data.formats.registry import Sample
from malcli.data.formats.tool_ids import id_of_text
from malcli.data.formats.tool_objects import (
    CATEGORY,
    COLUMNS,
    DIGITS,
    ID,
    SCORE,
    Entry,
    box_around,
    table_of,
)
from malcli.data.formats.xml_text import root_name, stream_xml, value_of
from malcli.errors import DataFormatError
from malcli.geometry.rle import encode_crop, is_too_large
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

ROOT, FILE = "annotations", "annotations.xml"
SHAPE = "cvat_shape"  # key of what gets no box: `shape`, its name, and what it says of its place
WHOLE = ("occluded", "z_order", "group_id")  # attributes of elements that are numbers
COMMON = ("source", *WHOLE)  # that every shape may have
OF_MALCLI = "malcli_"  # begins names of attributes that are keys of their own
PREFIX = "cvat_"  # before keys that are columns here
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_WINDOW = ("left", "top", "width", "height")
_PLACES = {"box": {*_CORNERS, "rotation"}, "polygon": {"points"}, "mask": {"rle", *_WINDOW}}
_SIZE = ("height", "width")


def is_cvat(sample: Sample) -> bool:
    """Return whether a file's first element is `annotations`, or that of annotations.xml in it."""
    if not sample.path.is_dir():
        return root_name(sample.head) == ROOT
    try:
        with (sample.path / FILE).open("rb") as file:
            return root_name(file.read(4096)) == ROOT
    except OSError:
        return False


def read_cvat(path: Path, images: Path | None = None) -> BoxTable:
    """Read a file, or annotations.xml in a folder.

    Args:
        path: The file or folder.
        images: The image folder, for images whose size is not stated; None: the file's own.

    Raises:
        DataFormatError: It is not well-formed XML, not CVAT's, or holds tracks.
        RunError: The disk of temporary files is full.
    """
    file = path / FILE if path.is_dir() else path
    header: dict[str, Any] = {}
    problems = Problems()
    entries = _entries(file, header, problems)
    beside = file.absolute().parent / "images"
    root = images or (beside if beside.is_dir() else beside.parent)
    place = root if path.is_dir() and root.is_dir() else file
    return table_of(place, "cvat", root, entries, header, problems)


def _entries(path: Path, header: dict[str, Any], problems: Problems) -> Iterator[Entry]:
    for child in stream_xml(path, ROOT):
        if child.tag == "track":
            raise DataFormatError(
                path, "holds tracks of a video; export it from CVAT as 'CVAT for images 1.1'"
            )
        if child.tag == "image":
            image = _image(child)
            yield image, _objects(child, image, problems)
        elif child.tag != "categories":  # that key is taken
            header[child.tag] = value_of(child)


def _image(element: Element) -> Record:
    record: Record = {"file_name": element.get("name", "")}
    for side in _SIZE:
        record[side] = _whole(element.get(side))
    for key, text in element.attrib.items():
        if key not in ("name", *_SIZE):
            record[PREFIX + key if key in ("id", "file_name", "tags") else key] = text
    if tags := [value_of(child) for child in element.iterfind("tag")]:
        record["tags"] = tags
    return record


def _objects(element: Element, image: Record, problems: Problems) -> list[Record]:
    objects: list[Record] = []
    groups: dict[tuple[Any, ...], Record] = {}
    for child in element:
        if child.tag == "tag":
            continue
        record = _record(child, image)
        if SHAPE in record:
            turned = child.tag == "box" and "rotation" in record[SHAPE]
            said = f"<{child.tag[:40]}> of {short(image['file_name'])} "
            said += f"is rotated by {short(record[SHAPE]['rotation'])}" if turned else "is no box"
            problems.add("rotated-bbox" if turned else "no-box", said)
        if "group_id" in record and isinstance(record.get("segmentation"), list):
            key = (record.get(CATEGORY), record["group_id"], str(record.get("id")))
            if record["group_id"] == record.get("id"):
                del record["group_id"]  # of the parts of a mask, by malcli
            first = groups.setdefault(key, record)
            if first is not record:
                _join(first, record)
                continue
        objects.append(record)
    return objects


def _join(first: Record, other: Record) -> None:
    """Add the polygon of a record to the first one's; other keys are the first one's."""
    first["segmentation"] += other["segmentation"]
    points = [pair for part in first["segmentation"] for pair in _pairs(part)]
    first["bbox"] = box_around(points)


def _record(element: Element, image: Record) -> Record:
    """Return an element as an annotation; what has no box keeps its place under SHAPE."""
    given = dict(element.attrib)
    record: Record = {CATEGORY: given.pop("label", None)}
    for key in COMMON:
        if key in given:
            text = given.pop(key)
            number = _whole(text) if key in WHOLE else None
            if number != 0:  # every file has it
                record[key] = text if number is None else number
    record |= _attributes(element)
    place = _place(element, image)
    places = _PLACES.get(element.tag, set())
    if not place:
        places = set(given)
        record[SHAPE] = {"shape": element.tag} | given
        for child in element:
            if child.tag != "attribute":
                record[SHAPE].setdefault(child.tag, []).append(value_of(child))
    for key in given.keys() - places:
        record[PREFIX + key if key in COLUMNS else key] = given[key]
    return record | place


def _attributes(element: Element) -> Record:
    """Return malcli's keys, and `attributes` if there are others."""
    record: Record = {}
    others: dict[str, str] = {}
    for child in element.iterfind("attribute"):
        name, text = child.get("name", ""), (child.text or "").strip()
        if name == ID:
            record["id"] = id_of_text(text) if text else None
        elif name == SCORE and (score := _numbers([text])):
            record[name] = score[0]
        elif name == "iscrowd" and text in ("0", "1"):
            record[name] = int(text)
        elif name.startswith(OF_MALCLI):
            record[name] = text
        else:
            others[name] = text
    return record | ({"attributes": others} if others else {})


def _place(element: Element, image: Record) -> Record:
    """Return the box and the mask of an element; empty if it has none."""
    if element.tag == "box":
        corners = _numbers([element.get(key) for key in _CORNERS])
        turned = _numbers([element.get("rotation", "0")])
        if len(corners) != 4 or turned != [0]:
            return {}
        x, y, right, bottom = corners
        return {"bbox": [x, y, round(right - x, DIGITS), round(bottom - y, DIGITS)]}
    if element.tag == "polygon":
        flat = _numbers(element.get("points", "").replace(";", ",").split(","))
        if len(flat) < 6 or len(flat) % 2:
            return {}
        return {"bbox": box_around(_pairs(flat)), "segmentation": [flat]}
    return _mask(element, image) if element.tag == "mask" else {}


def _mask(element: Element, image: Record) -> Record:
    """Return a mask given by runs along the rows of its window, background first."""
    window = [_whole(element.get(key)) for key in _WINDOW]
    runs = [_whole(text) for text in element.get("rle", "").split(",")]
    height, width = (image[side] for side in _SIZE)
    if None in window or None in runs or not height or not width or is_too_large((height, width)):
        return {}
    x, y, w, h = window
    fits = 0 < w <= width - x and 0 < h <= height - y  # type: ignore[operator]
    if not fits or sum(runs) != w * h:  # type: ignore[arg-type, operator]
        return {}
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)  # type: ignore[arg-type]
    rle = encode_crop(flat.reshape(h, w), x, y, (height, width))  # type: ignore[arg-type]
    return {"bbox": window, "segmentation": rle}


def _whole(text: str | None) -> int | None:
    """Return a whole number from 0 on, or None."""
    text = (text or "").strip()
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else None


def _numbers(texts: list[str | None] | list[str]) -> list[float]:
    """Return numbers, whole ones as integers; none if any is no number that a column can hold."""
    found: list[float] = []
    for text in texts:
        try:
            value = float(text or "")
        except ValueError:
            return []
        if not math.isfinite(value) or abs(value) >= 2**53 or "_" in (text or ""):
            return []
        found.append(int(value) if value.is_integer() else value)
    return found


def _pairs(flat: list[float]) -> list[tuple[float, float]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
