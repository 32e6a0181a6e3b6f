"""Apple's Create ML JSON: a list of images, each with labels and boxes by their centres, in pixels.

`[{"image": "a.jpg", "annotations": [{"label": "dog", "coordinates": {"x": 5, "y": 5, "width": 4,
"height": 4}}]}]`; `imagefilename` says `image`, too. The centre in pixels from the top left is
Create ML's default: a file cannot say another one. It holds boxes only, and no sizes: they come
from the headers. Every other key stays; written are labels and boxes, and `malcli_id` where ids are
other than the order of the file would give.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.columns import encode_json
from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.registry import Sample
from malcli.data.formats.tool_objects import (
    CATEGORY,
    COLUMNS,
    DIGITS,
    ID,
    Entry,
    Photographs,
    is_number,
    table_of,
    text_of,
)
from malcli.data.formats.tool_shapes import Placed, xywh_of
from malcli.errors import DataFormatError
from malcli.files import replacing
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

IMAGE, OBJECTS = ("image", "imagefilename"), ("annotations", "annotation")
SIDES = ("x", "y", "width", "height")
PREFIX = "createml_"  # before keys that are columns here
OF_IMAGES = ("id", "file_name", "height", "width")
_IMAGE = re.compile(rb'"(?:image|imagefilename)"\s*:\s*"')
_OBJECTS = re.compile(rb'"annotations?"\s*:\s*\[')


def is_createml(sample: Sample) -> bool:
    """Return whether a file is a list of images with annotations."""
    is_list = sample.is_json and sample.text[:1] == b"["
    return is_list and bool(_IMAGE.search(sample.edges) and _OBJECTS.search(sample.edges))


def read_createml(path: Path, images: Path | None = None) -> BoxTable:
    """Read a file; the table's path is the image folder, if it is not the file's.

    Args:
        path: The file.
        images: The image folder; None: that of the file, or `images` beside it.

    Raises:
        DataFormatError: It is not JSON, or no list of images.
        RunError: The disk of temporary files is full.
    """
    base = path.absolute().parent
    photographs = Photographs(base, images)
    problems = Problems()
    entries = _entries(path, photographs, problems)
    place = photographs.root if photographs.root != base else path
    return table_of(place, "createml", photographs.root, entries, {}, problems)


def _entries(path: Path, photographs: Photographs, problems: Problems) -> Iterator[Entry]:
    with open_regular(path) as file:
        text = JsonText(path, file)
        if text.peek() != "[":
            raise DataFormatError(path, "is no list; Create ML's JSON is a list of images")
        row = 0
        for batch in text.batches(ROWS):
            for value in batch:
                yield _entry(path, value, f"[{row}]", photographs, problems)
                row += 1
        text.finish()


def _entry(
    path: Path, value: object, place: str, photographs: Photographs, problems: Problems
) -> Entry:
    """Return an image and its objects."""
    image_key = next((key for key in IMAGE if isinstance(value, dict) and key in value), "")
    if not isinstance(value, dict) or not isinstance(value.get(image_key), str):
        raise DataFormatError(path, "has no image; every element names one", place, IMAGE[0])
    key = next((key for key in OBJECTS if key in value), OBJECTS[0])
    objects = value.get(key) or []
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise DataFormatError(path, "is no list of objects; correct it", place, key)
    image: Record = {"file_name": photographs.find(value[image_key])}
    rest = {name: value[name] for name in value if name not in (image_key, key)}
    image |= {PREFIX + name if name in OF_IMAGES else name: rest[name] for name in rest}
    records = [_record(each) for each in objects]
    for number, record in enumerate(records):
        if "bbox" not in record:
            said = f"{place}.{key}[{number}] ({short(value[image_key])}) has no four coordinates"
            problems.add("no-coordinates", said)
    return image, records


def _record(value: Record) -> Record:
    record: Record = {}
    if (name := text_of(value.get("label"))) is not None:
        record[CATEGORY] = name
    if ID in value:
        record["id"] = value[ID]
    given = value.get("coordinates")
    sides: list[Any] = [given.get(each) for each in SIDES] if isinstance(given, dict) else [None]
    if all(map(is_number, sides)):
        x, y, w, h = sides
        record["bbox"] = [round(x - w / 2, DIGITS), round(y - h / 2, DIGITS), w, h]
    elif "coordinates" in value:
        record["coordinates"] = given
    for key in value:
        if key not in ("label", "coordinates", ID):
            record[PREFIX + key if key in COLUMNS else key] = value[key]
    return record


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what a list of boxes cannot say of the header and the images."""
    return losses_by_name(table, range(1, table.images.num_rows + 1))


def write_createml(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    lost: Counter[str] | None = None,
) -> int:
    """Write the boxes of each image; the text of all of them is held in memory.

    Args:
        path: Replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        lost: Counts what was left out, by what.

    Returns:
        The number of boxes written.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    placed = Placed(table, lost)
    objects: list[list[tuple[object, Record]]] = [[] for _ in placed.names]
    said = {"id", "image_id", "category_id", "bbox", "segmentation"}
    for batch in batches:
        for row, name, record in placed.of(batch):
            box = xywh_of(record)
            lost["annotations without a usable box"] += box is None
            lost["masks, which Create ML cannot say"] += record.get("segmentation") is not None
            lost.update(f"key '{key}'" for key in record if key not in said)
            if box is not None:
                x, y, w, h = box
                coordinates = dict(zip(SIDES, (x + w / 2, y + h / 2, w, h), strict=True))
                value: Record = {"label": name, "coordinates": coordinates}
                objects[row].append((record.get("id"), value))
    numbers = [number for pairs in objects for number, _ in pairs]
    in_order = numbers == list(range(1, len(numbers) + 1))
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        lines: list[str] = []
        for image, pairs in zip(placed.names, objects, strict=True):
            if not image:
                continue
            values = [value | ({} if in_order else {ID: number}) for number, value in pairs]
            lines.append(encode_json({"image": image, "annotations": values}))
        file.write("[" + ",\n".join(lines) + "]\n")
    lost += Counter()  # without zeros
    return len(numbers)
