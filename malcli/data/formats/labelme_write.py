"""Writes labelme JSON, one file a photograph, beside links to the photographs: a folder to open.

A mask is a polygon; its parts share a group_id, holes are reached by bridges of no width, along
which a tool shows a line. An annotation without mask is a rectangle. Every other key of an
annotation stands in its shape, as labelme and X-AnyLabeling keep it when they save; `area` does
not: editing would make it false. `malcli_id` says which annotation a shape is.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.columns import encode_json
from malcli.data.formats.labelme import MARK, OF_IMAGES, PREFIX
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.tool_objects import ID
from malcli.data.formats.tool_shapes import Placed, xywh_of
from malcli.data.images.find import image_path
from malcli.errors import OutputError
from malcli.files import refuse_foreign_folder, replacing_folder
from malcli.messages import short
from malcli.records import BoxTable, Record, to_records

VERSION = "5.5.0"  # of labelme, whose form of file this is
_FIRST = f'{{"{MARK}":"malcli"'


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what files of one image each cannot say of the header and the images."""
    files = [_json_name(name or "") for name in table.images["file_name"].to_pylist()]
    rows = {file: row for row, file in enumerate(sorted(files), 1)}
    lost = losses_by_name(table, [rows[file] for file in files])
    del lost["other keys of images"]  # they are written
    return lost


def refuse_other_labelme(root: Path) -> None:
    """Refuse to replace a folder with files that malcli did not make, or that a tool has saved."""

    def is_ours(path: Path) -> bool:
        if (root / path).is_symlink():
            return True
        with (root / path).open("rb") as file:
            return path.suffix == ".json" and file.read(len(_FIRST)) == _FIRST.encode()

    refuse_foreign_folder(root, is_ours)


def write_labelme(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    images: Path | None = None,
    lost: Counter[str] | None = None,
) -> int:
    """Write a file for each image, and a link to the image beside it.

    Args:
        path: The folder; replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        images: Where the images are, to link them; None: no links.
        lost: Counts what was left out, by what.

    Returns:
        The number of annotations written.

    Raises:
        OutputError: The folder cannot be written, or two images would share a file.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    placed = Placed(table, lost)
    files = _files(placed.names)
    counts: Counter[int] = Counter()  # shapes of each image
    written = 0
    with replacing_folder(path) as made:
        for row, text in enumerate(_heads(table)):
            if files[row]:
                _append(made / files[row], text)
        for batch in batches:
            texts: dict[int, list[str]] = {}
            for row, name, record in placed.of(batch):
                shapes = _shapes(placed, row, name, record, written + 1)
                texts.setdefault(row, []).extend(shapes)
                written += bool(shapes)
                lost["annotations without a usable box"] += not shapes
                lost["key 'area'"] += "area" in record
            for row, shapes in texts.items():
                text = "".join(f",\n{shape}" for shape in shapes)
                _append(made / files[row], text if counts[row] else text[1:])
                counts[row] += len(shapes)
        for file in filter(None, files):
            _append(made / file, "]}\n")
        if images is not None:
            _link(made, path, images, placed.names)
    lost += Counter()  # without zeros
    return written


def _json_name(name: str) -> str:
    return os.path.splitext(name)[0] + ".json"


def _files(names: list[str | None]) -> list[str]:
    """Return the JSON file of each image; empty if it has none.

    Raises:
        OutputError: Two images would share a file.
    """
    first: dict[str, str] = {}
    files = [_json_name(name) if name else "" for name in names]
    for file, name in zip(files, names, strict=True):
        if name and (other := first.setdefault(file.lower(), name)) is not name:
            raise OutputError(
                f"{short(other)} and {short(name)} would both be {file}; rename one of them"
            )
    return files


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="ascii", newline="\n") as file:
        file.write(text)


def _heads(table: BoxTable) -> Iterable[str]:
    """Yield what stands before the shapes, of each image."""
    for batch in table.images.to_batches(ROWS):
        for record in to_records(batch):
            head: Record = {"version": VERSION, "flags": {}}
            head |= {_plain(key): record[key] for key in record if key not in OF_IMAGES}
            head["imagePath"] = str(record.get("file_name")).replace("\\", "/").rpartition("/")[2]
            head["imageData"] = None
            head |= {"imageHeight": record.get("height"), "imageWidth": record.get("width")}
            yield f"{_FIRST},{encode_json(head)[1:-1]},\n" + '"shapes":['


def _plain(key: str) -> str:
    return key.removeprefix(PREFIX)


def _shapes(placed: Placed, row: int, name: str, record: Record, group: int) -> list[str]:
    """Return the shapes of an annotation; none if it has neither a box nor a shape of its own.

    Args:
        placed: For the mask.
        row: Of the image.
        name: Of the category.
        record: The annotation.
        group: The group_id of parts whose annotation has an id that is text.
    """
    own = ("image_id", "category_id", "bbox", "segmentation", "area", "id")
    number = record.get("id")
    shape: Record = {"label": name, "points": None, "group_id": None, "shape_type": None}
    shape |= {"flags": {}} | {_plain(key): record[key] for key in record if key not in own}
    shape[ID] = number
    parts = placed.polygons(row, record)
    pairs: list[Any] = [list(map(list, zip(part[::2], part[1::2], strict=True))) for part in parts]
    kind = "polygon"
    if len(parts) > 1 and shape["group_id"] is None:
        shape["group_id"] = number if type(number) is int else group  # a tool wants a number
    if not parts and (box := xywh_of(record)):
        x, y, w, h = box
        kind, pairs = "rectangle", [[[x, y], [x + w, y + h]]]
    elif not parts and "points" in record and "shape_type" in record:
        kind, pairs = record["shape_type"], [record["points"]]
    return [encode_json(shape | {"points": points, "shape_type": kind}) for points in pairs]


def _link(made: Path, root: Path, images: Path, names: list[str | None]) -> None:
    """Link every image that is there into its place, relative to it."""
    for name in filter(None, names):
        if (source := image_path(images, name)).is_file():
            link = made / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(source.resolve(), (root / name).parent.resolve()))
