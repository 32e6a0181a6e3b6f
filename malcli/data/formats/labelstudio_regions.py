"""Regions of Label Studio as annotations: percent of an image's size as pixels, lines of malcli.

What malcli says of a region stands in its `meta.text`, a line each, such as `malcli_id 5`: the text
that the tool shows beside a region, and keeps when a prediction becomes an annotation, which gets
new ids.
"""

import re
from typing import Any

from malcli.data.formats.tool_ids import id_of_text
from malcli.data.formats.tool_objects import (
    CATEGORY,
    DIGITS,
    ID,
    SCORE,
    box_around,
    is_number,
    points_of,
    text_of,
)
from malcli.records import Record

OWN = "labelstudio"  # key of what Label Studio says of a box or of an image, and malcli does not
PART, CROWD = "malcli_part", "malcli_iscrowd"
SIZE = ("original_width", "original_height")  # of an image, in pixels
_SIDES = ("x", "y", "width", "height")
_LINE = re.compile(r"(malcli_\w+) (.+)")


def is_region(value: object) -> bool:
    """Return whether a result's value is a place in the image."""
    return isinstance(value, dict) and bool({"x", "points", "rle"} & value.keys())


def names_of(value: Record) -> list[str]:
    """Return the names that a value gives its region."""
    for key, names in value.items():
        if key.endswith("labels") and isinstance(names, list):
            return [name for name in map(text_of, names) if name is not None]
    return []


def record_of(result: Record, value: Record, size: tuple[int, int] | None) -> Record:
    """Return a result as an annotation; what has no box keeps its value.

    Args:
        result: With its score under the key that the annotation gets.
        value: Of it, a region.
        size: Width and height of the image, pixels; None if they are not known.
    """
    record: Record = {}
    names = names_of(value)
    if names:
        record[CATEGORY] = names[0]
    own = {key: result[key] for key in result if key not in ("value", *SIZE)}
    for key in (SCORE, "score"):
        if key in own:
            record[key] = own.pop(key)
    if own.get("image_rotation") == 0:
        del own["image_rotation"]
    said, own = _of_malcli(own)
    record |= said
    place = {} if result.get("image_rotation") else _place(value, size)
    if not place:
        own["value"] = value
    elif len(names) > 1:
        own["labels"] = names
    return record | place | ({OWN: own} if own else {})


def _of_malcli(own: Record) -> tuple[Record, Record]:
    """Return what the lines of a region's text say for malcli, and the result without them."""
    meta = own.get("meta")
    texts = meta.get("text") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not isinstance(texts, list):
        return {}, own
    lines = [line for text in texts for line in str(text).splitlines()]
    found = {m[1]: m[2].strip() for m in map(_LINE.fullmatch, lines) if m}
    if not found:
        return {}, own
    record: Record = dict(found)
    if ID in found:
        record["id"] = id_of_text(record.pop(ID))
        if str(own.get("id")).startswith("malcli-"):
            own = {key: own[key] for key in own if key != "id"}
    if record.pop(CROWD, None):
        record["iscrowd"] = 1
    if SCORE in found:
        try:
            record[SCORE] = float(found[SCORE])
        except ValueError:
            del record[SCORE]
    others = [line for line in lines if not _LINE.fullmatch(line)]
    rest = {key: meta[key] for key in meta if key != "text"} | ({"text": others} if others else {})
    own = {key: own[key] for key in own if key != "meta"} | ({"meta": rest} if rest else {})
    return record, own


def _place(value: Record, size: tuple[int, int] | None) -> Record:
    """Return the box, and mask, of a value in percent; empty if it has none."""
    if not size or value.get("rotation"):
        return {}
    width, height = size
    points = points_of(value.get("points"))
    if len(points) > 2:
        flat = [
            round(side * full / 100, DIGITS)
            for point in points
            for side, full in zip(point, size, strict=True)
        ]
        return {"bbox": around([flat]), "segmentation": [flat]}
    sides: list[Any] = [value.get(key) for key in _SIDES]
    if not all(map(is_number, sides)):
        return {}
    full = (width, height, width, height)
    box = [round(side * whole / 100, DIGITS) for side, whole in zip(sides, full, strict=True)]
    return {"bbox": box}


def around(parts: list[list[float]]) -> list[float]:
    """Return the box around polygons x0 y0 x1 y1 ..."""
    return box_around((x, y) for part in parts for x, y in zip(part[::2], part[1::2], strict=True))
