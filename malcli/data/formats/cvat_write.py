"""Writes CVAT for images 1.1: a polygon a part of a mask, a box for what has no mask.

Parts of one mask share a group_id, holes are reached by bridges of no width. CVAT keeps the
attributes that the labels of its task have: `malcli_id` says which annotation a shape is, and the
labels written in `meta` name it. The text of all images is held in memory.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from malcli.data.boxtable.build import ROWS
from malcli.data.formats.cvat import COMMON, OF_MALCLI, PREFIX, SHAPE
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.tool_ids import text_of_id
from malcli.data.formats.tool_objects import DIGITS, ID, SCORE, STATUS
from malcli.data.formats.tool_shapes import Placed, xywh_of
from malcli.data.formats.xml_text import is_name, tag_text
from malcli.files import replacing
from malcli.records import BoxTable, Record, category_names, to_records

_ID = PREFIX + "id"  # of an image, as CVAT counts them
_OF_IMAGES = {"id", "file_name", "height", "width", "tags", "name", _ID}
_SAID = {"id", "image_id", "category_id", "bbox", "segmentation", "attributes", "iscrowd", *COMMON}


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what XML cannot say of the header and the images."""
    lost = losses_by_name(table, range(1, table.images.num_rows + 1))
    lost["other keys of images"] = sum(
        not isinstance(record[key], str) or not is_name(key)
        for batch in table.images.to_batches(ROWS)
        for record in to_records(batch)
        for key in record.keys() - _OF_IMAGES
    )
    for key in ("version", "meta"):
        del lost[f"header '{key}'"]
    return lost


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def write_cvat(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    lost: Counter[str] | None = None,
) -> int:
    """Write the shapes of each image.

    Args:
        path: Replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        lost: Counts what was left out, by what.

    Returns:
        The number of annotations written.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    placed = Placed(table, lost)
    texts: dict[int, list[str]] = {}
    written = 0
    for batch in batches:
        for row, name, record in placed.of(batch):
            shapes = _shapes(placed, row, name, record, written + 1)
            texts.setdefault(row, []).extend(shapes)
            written += bool(shapes)
            lost["annotations without a usable box"] += not shapes
            for key in record.keys() - _SAID:
                known = key == SHAPE or (key.startswith(OF_MALCLI) and _is_plain(record[key]))
                lost[f"key '{key}'"] += not known
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        meta = table.header.get("meta") or _meta(table)
        file.write(tag_text({"version": "1.1", "meta": meta}))
        row = 0
        for images in table.images.to_batches(ROWS):
            for record in to_records(images):
                if placed.names[row]:
                    head = tag_text({"image": _head(record, row)})
                    head = head[: head.rindex("</image>")].rstrip()
                    file.write("\n".join([head, *texts.get(row, ()), "  </image>\n"]))
                row += 1
        file.write("</annotations>\n")
    lost += Counter()  # without zeros
    return written


def _meta(table: BoxTable) -> Record:
    """Return the labels of a task that keeps what is written."""
    attributes = [
        {"name": name, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}
        for name in (ID, SCORE, STATUS)
    ]
    names = sorted(set(category_names(table.header).values()))
    labels = [{"name": name, "attributes": {"attribute": attributes}} for name in names]
    return {"task": {"labels": {"label": labels}}}


def _head(record: Record, row: int) -> Record:
    head: Record = {"@id": record.get(_ID, row), "@name": record["file_name"]}
    head |= {f"@{side}": record[side] for side in ("width", "height") if side in record}
    for key, value in record.items():
        if key not in _OF_IMAGES and isinstance(value, str):
            head.setdefault(f"@{key}", value)
    return head | ({"tag": record["tags"]} if isinstance(record.get("tags"), list) else {})


def _shapes(placed: Placed, row: int, name: str, record: Record, group: int) -> list[str]:
    """Return the elements of an annotation; none if it has neither a box nor a shape of its own.

    Args:
        placed: For the mask.
        row: Of the image.
        name: Of the category.
        record: The annotation.
        group: The group_id of parts whose annotation has an id that is text.
    """
    common: Record = {"@label": name, "@occluded": 0, "@z_order": 0}  # CVAT wants all three
    common |= {f"@{key}": record[key] for key in COMMON if _is_plain(record.get(key))}
    attributes = {"attribute": _attributes(record)}
    parts = placed.polygons(row, record)
    if len(parts) > 1:
        number = record.get("id")
        common.setdefault("@group_id", number if type(number) is int and number > 0 else group)
    shapes: list[tuple[str, Record]] = []
    for part in parts:
        shapes.append(("polygon", {"@points": _points(part)}))
    if not parts and (box := xywh_of(record)):
        x, y, w, h = box
        corners = {"@xtl": x, "@ytl": y, "@xbr": x + w, "@ybr": y + h}
        shapes.append(("box", {key: _side(value) for key, value in corners.items()}))
    elif not parts and isinstance(record.get(SHAPE), dict):
        own = dict(record[SHAPE])
        tag = str(own.pop("shape", ""))
        places = {key if isinstance(own[key], list) else f"@{key}": own[key] for key in own}
        shapes.append((tag, places))
    texts = (tag_text({tag: common | place | attributes}, "    ") for tag, place in shapes)
    return [text.rstrip("\n") for text in texts if text]


def _attributes(record: Record) -> list[Record]:
    values: dict[str, Any] = {ID: text_of_id(record.get("id"))}
    values |= {key: record[key] for key in record if key.startswith(OF_MALCLI)}
    if record.get("iscrowd") == 1:
        values["iscrowd"] = 1
    others = record.get("attributes")
    if isinstance(others, dict):
        values = {key: others[key] for key in others if _is_plain(others[key])} | values
    return [{"@name": key, "#text": values[key]} for key in values if _is_plain(values[key])]


def _points(part: Sequence[float]) -> str:
    pairs = zip(part[::2], part[1::2], strict=True)
    return ";".join(f"{_side(x)},{_side(y)}" for x, y in pairs)


def _side(value: float) -> str:
    text = f"{value:.{DIGITS}f}"
    return text.rstrip("0").rstrip(".")
