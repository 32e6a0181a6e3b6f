"""Writes a project of the VGG Image Annotator 2: a region for each annotation, all in one JSON.

A mask is one polygon: its parts and holes are joined by bridges of no width, since a region holds
one; an annotation without mask is a `rect`. The class stands in the attribute that it came from, or
in `class`, as a dropdown. `malcli_id`, `malcli_score` and `malcli_status` are attributes, too;
other keys have no place. A photograph is known by its name and its size in bytes: -1 where neither
the input nor the image folder tells it. Where the photographs lie is a setting of the tool.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.columns import encode_json
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.tool_objects import ID, SCORE, STATUS
from malcli.data.formats.tool_shapes import Placed, xywh_of
from malcli.data.formats.via import FILES, HEADER
from malcli.data.images.find import image_path
from malcli.files import replacing
from malcli.geometry.polygons import bridge
from malcli.records import BoxTable, Record, category_names, to_records

SETTINGS = {"ui": {}, "core": {"buffer_size": 18, "filepath": {}, "default_filepath": ""}}
_SAID = {"id", "image_id", "category_id", "bbox", "segmentation", "region_attributes",
         "shape_attributes", SCORE, STATUS}  # fmt: skip


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what a project cannot say of the header and the images."""
    lost = losses_by_name(table, range(1, table.images.num_rows + 1))
    del lost[f"header '{HEADER}'"]
    kept = ("size", "file_attributes", "id", "file_name", "height", "width")
    images = (to_records(batch) for batch in table.images.to_batches(ROWS))
    lost["other keys of images"] = sum(
        any(key not in kept for key in record) for batch in images for record in batch
    )
    return lost


def write_via(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    images: Path | None = None,
    lost: Counter[str] | None = None,
) -> int:
    """Write a project; the text of all regions is held in memory, as the tool does.

    Args:
        path: Replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        images: Where the images are, for their sizes in bytes; None: unknown.
        lost: Counts what was left out, by what.

    Returns:
        The number of regions written.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    placed = Placed(table, lost)
    project = table.header.get(HEADER)
    project = project if isinstance(project, dict) else {}
    attribute = project.get("class")
    attribute = attribute if isinstance(attribute, str) else "class"
    regions: list[list[str]] = [[] for _ in placed.names]
    written = 0
    for batch in batches:
        for row, name, record in placed.of(batch, unnamed=True):
            shape = _shape(placed, row, record, lost)
            lost.update(f"key '{key}'" for key in record if key not in _SAID)
            lost["annotations without a usable box"] += shape is None
            if shape is not None:
                regions[row].append(_region(shape, attribute, name, record))
                written += 1
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        file.write(_head(table, project, attribute))
        names: list[str] = []
        for row, value in enumerate(_files(table, placed.names, images)):
            if value:
                file.write(",\n" if names else "\n")
                names.append(f"{value['filename']}{value['size']}")
                text = encode_json(value)[:-1]
                file.write(
                    f'{encode_json(names[-1])}:{text},"regions":[{",".join(regions[row])}]}}'
                )
        file.write('},\n"_via_data_format_version":"2.0.10",')
        file.write(f'"_via_image_id_list":{encode_json(names)}}}\n')
    lost += Counter()  # without zeros
    return written


def _head(table: BoxTable, project: dict[str, Any], attribute: str) -> str:
    """Return what stands before the files: settings and attributes, kept or made."""
    settings = project.get("settings")
    settings = (
        settings
        if isinstance(settings, dict)
        else SETTINGS | {"project": {"name": table.path.stem}}
    )
    given = project.get("attributes")
    attributes: dict[str, Any] = given if isinstance(given, dict) else {"file": {}}
    of_regions = attributes.get("region")
    of_regions = dict(of_regions) if isinstance(of_regions, dict) else {}
    if attribute not in of_regions:
        options = dict.fromkeys(sorted(set(category_names(table.header).values())), "")
        of_regions[attribute] = {
            "type": "dropdown", "description": "", "options": options, "default_options": {},
        }  # fmt: skip
    attributes = attributes | {"region": of_regions}
    said = f'"_via_settings":{encode_json(settings)},"_via_attributes":{encode_json(attributes)}'
    return f'{{{said},\n"{FILES}":{{'


def _files(
    table: BoxTable, names: list[str | None], images: Path | None
) -> Iterable[Record | None]:
    """Yield what is said of each photograph, without regions; None if it has no name."""
    row = 0
    for batch in table.images.to_batches(ROWS):
        for record in to_records(batch):
            name = names[row]
            row += 1
            size = record.get("size")
            if name and type(size) is not int:
                file = image_path(images, name) if images else None
                size = file.stat().st_size if file and file.is_file() else -1
            value: Record = {"filename": name, "size": size}
            value["file_attributes"] = record.get("file_attributes", {})
            yield value if name else None


def _shape(placed: Placed, row: int, record: Record, lost: Counter[str]) -> Record | None:
    """Return what is drawn; None for an annotation without a box and a shape of its own."""
    parts = placed.polygons(row, record)
    if parts:
        points = np.reshape(parts[0], (-1, 2))
        if len(parts) > 1:
            lost["masks of several parts, joined by bridges"] += 1
            points = bridge([np.reshape(part, (-1, 2)) for part in parts])
        xs, ys = points.T.tolist()
        return {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    if box := xywh_of(record):
        sides: Record = dict(zip(("x", "y", "width", "height"), box, strict=True))
        return {"name": "rect"} | sides
    shape = record.get("shape_attributes")
    return shape if isinstance(shape, dict) else None


def _region(shape: Record, attribute: str, name: str, record: Record) -> str:
    kept = record.get("region_attributes")
    attributes: Record = {attribute: name} if name else {}
    attributes |= kept if isinstance(kept, dict) else {}
    attributes |= {ID: record.get("id")}
    attributes |= {key: record[key] for key in (SCORE, STATUS) if key in record}
    return encode_json({"shape_attributes": shape, "region_attributes": attributes})
