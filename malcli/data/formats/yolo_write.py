"""Writes YOLO data sets: data.yaml, labels/<split>/, and links to the images in images/<split>/.

Boxes, or one polygon an object: its parts and holes are joined by bridges of no width (see
`geometry.polygons`), since a line holds one polygon. Classes are numbered from 0 in the order of
their ids. A record that a line cannot say is left out, and counted.

A folder is of polygons if most records have a mask, else of boxes. Trainers take the lines of a
file all for polygons or all for boxes, so that records of the other kind are said.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.checks import refuse_nothing
from malcli.data.boxtable.image_rows import ImageRows
from malcli.data.formats.losses import losses_of
from malcli.data.formats.yolo_read import label_path
from malcli.data.images.find import image_path
from malcli.errors import BadImage, OutputError
from malcli.files import refuse_foreign_folder, replacing_folder
from malcli.geometry.polygons import bridge, polygons_of
from malcli.geometry.rle import RleError, from_segmentation, has_mask
from malcli.records import BoxTable, Record, Rle, category_names, whole_of

MARK = "# Made by malcli."
MIXED = "boxes without a mask among polygons, which trainers misread (--boxes-only: all boxes)"
SAID = {"image_id", "category_id", "bbox", "segmentation"}  # keys that a line says
_SPLIT = re.compile(r"train|valid|val|test")


def write_yolo(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    images: Path | None = None,
    polygons: bool | None = None,
    lost: Counter[str] | None = None,
) -> int:
    """Write a data set of one split, or of those that the images' names say.

    Args:
        path: The folder, or data.yaml in it; replaced when all is written.
        table: For `header`, `images` and the name of the split.
        batches: Lists of annotations.
        images: Where the images are, to link them; None: no links.
        polygons: Write masks as polygons; None: if more records have a mask than have none.
        lost: Counts what was left out, by what.

    Returns:
        The number of objects written.

    Raises:
        DataFormatError: There are annotations, but none that a line can say.
        OutputError: The folder cannot be written, or holds other things, or two images would share
            a label file and no link can give one of them another name.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    root = folder_of(path)
    if polygons is None:
        polygons = is_of_masks(table)
    with replacing_folder(root) as made:
        lines = _Lines(table, polygons, lost)
        if images is None:
            lines.refuse_renamed(path)
        for batch in batches:
            for place, text in lines.of(batch).items():
                file = label_path(made, place)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a", encoding="ascii", newline="\n") as opened:
                    opened.write(text)
        refuse_nothing(table.path, lines.count, lost)
        splits = {PurePosixPath(place).parts[1] for place in lines.places if place}
        (made / "data.yaml").write_text(_yaml(table, sorted(splits)), encoding="ascii")
        if images is not None:
            _link(made, root, images, table, lines.places)
    return lines.count


def folder_of(path: Path) -> Path:
    """Return the data set's folder of a target: itself, or that of its data.yaml."""
    return path.absolute().parent if path.suffix.lower() in (".yaml", ".yml") else path


def outputs_of(path: Path) -> list[Path]:
    """Return the folder of an output."""
    return [folder_of(path)]


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what names, numbered from 0, and a list of images cannot say."""
    places = {number: n for n, number in enumerate(sorted(category_names(table.header)))}
    return losses_of(table, range(1, table.images.num_rows + 1), places)


def refuse_other_yolo(root: Path) -> None:
    """Refuse to replace a folder that is no data set made here; links are no loss."""
    file = root / "data.yaml"
    marked = file.is_file() and file.read_bytes().startswith(MARK.encode())

    def is_ours(path: Path) -> bool:
        if path.parts[0] == "images":
            return (root / path).is_symlink()
        if path.parts[0] == "labels":
            return path.suffix == ".txt"
        return path.parts == ("data.yaml",)

    refuse_foreign_folder(root, lambda path: marked and is_ours(path))


def is_of_masks(table: BoxTable) -> bool:
    """Return whether more annotations have a mask than have none, crowds and skipped ones apart."""
    masks = boxes = 0
    for batch in table.batches("segmentation", "iscrowd", "extra"):
        # As `has_mask`: what holds more than brackets.
        masked = pc.match_substring_regex(batch["segmentation"], r"[^\[\]{}\s,]")
        masked = pc.fill_null(masked, False)
        single = pc.not_equal(pc.fill_null(batch["iscrowd"], 0), 1)
        skipped = pc.fill_null(pc.match_substring(batch["extra"], '"malcli_status"'), False)
        bare = pc.and_not(pc.invert(masked), skipped)
        masks += pc.sum(pc.and_(single, masked)).as_py() or 0
        boxes += pc.sum(pc.and_(single, bare)).as_py() or 0
    return masks > boxes


class _Lines:
    """Makes the lines of annotations.

    Attributes:
        places: `images/<split>/<name>` of each image; empty if its name leaves the folder.
        count: Lines made.
    """

    def __init__(self, table: BoxTable, polygons: bool, lost: Counter[str]) -> None:
        self._polygons = polygons
        self._lost = lost
        self._rows = ImageRows(table.images)
        self._classes = {number: n for n, number in enumerate(sorted(category_names(table.header)))}
        sides = (pc.fill_null(table.images[side], 0).to_pylist() for side in ("height", "width"))
        self._hw = list(zip(*sides, strict=True))
        split = split_of(table.path)
        self.places, self._renamed = places_of(table.images["file_name"].to_pylist(), split)
        for name, (_, new) in list(self._renamed.items())[:1]:
            said = f"names of images whose stem another has, such as {name!a}, now {new!a}"
            lost[said] = len(self._renamed)
        self.count = 0

    def of(self, batch: list[Record]) -> dict[str, str]:
        """Return the text for each image's label file."""
        texts: dict[str, str] = {}
        for record, row in zip(batch, self._rows.of_records(batch), strict=True):
            self._lost.update(f"key '{key}'" for key in record if key not in SAID)
            place = self.places[row] if row >= 0 else ""
            line = self._line(record, self._hw[row]) if place else "without a usable image"
            if line[0].isdigit():
                texts[place] = texts.get(place, "") + line + "\n"
                self.count += 1
            else:
                self._lost[f"annotations {line}"] += 1
        return texts

    def refuse_renamed(self, path: Path) -> None:
        """Raise OutputError if an image needs another name: without links it keeps its own."""
        for name, (other, _) in self._renamed.items():
            raise OutputError(
                f"{path}: {other!a} and {name!a} would share one label file; rename one, or give "
                "--images, so that one is linked under another name"
            )

    def _line(self, record: Record, hw: tuple[int, int]) -> str:
        """Return a record's line, or why there is none."""
        category = whole_of(record.get("category_id"))
        number = None if category is None else self._classes.get(category)
        if number is None:
            return "of an unknown category"
        if record.get("iscrowd") in (1, True):
            return "of crowds"
        if not all(hw):
            return "of images without a size"
        return self._shape(number, record, hw)

    def _shape(self, number: int, record: Record, hw: tuple[int, int]) -> str:
        """Return the line of a mask; in a folder of boxes, or where there is no mask, of a box."""
        value = record.get("segmentation")
        if not self._polygons:
            if has_mask(value):
                self._lost["masks, since most records have none"] += 1
            return self._box(number, record.get("bbox"), hw)
        if has_mask(value):
            try:
                return self._polygon(number, from_segmentation(value, hw), record, hw)
            except RleError:
                self._lost["masks that cannot be read"] += 1
        elif "malcli_status" in record:  # skipped in labelling
            return "without a mask"
        line = self._box(number, record.get("bbox"), hw)
        if line[0].isdigit():
            self._lost[MIXED] += 1
        return line

    def _polygon(self, number: int, rle: Rle, record: Record, hw: tuple[int, int]) -> str:
        parts = polygons_of(rle)
        if not parts:
            return "with an empty mask"
        if len(parts) > 1:
            self._lost["masks of several parts, joined by bridges"] += 1
        points = bridge([np.reshape(part, (-1, 2)) for part in parts])
        if not _is_box(record.get("bbox"), points.min(axis=0), points.max(axis=0)):
            self._lost["boxes, which become those of their masks"] += 1
        return _text(number, (points / (hw[1], hw[0])).ravel().tolist())

    def _box(self, number: int, bbox: object, hw: tuple[int, int]) -> str:
        try:
            x, y, w, h = np.asarray(bbox, dtype=np.float64).reshape(4).tolist()
        except (TypeError, ValueError, OverflowError):
            return "without a usable box"
        x0, x1 = (min(max(value / hw[1], 0), 1) for value in (x, x + w))
        y0, y1 = (min(max(value / hw[0], 0), 1) for value in (y, y + h))
        if not (x1 > x0 and y1 > y0):
            return "without a usable box"
        if x < 0 or y < 0 or x + w > hw[1] or y + h > hw[0]:
            self._lost["parts of boxes outside their image"] += 1
        return _text(number, [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def _is_box(bbox: object, low: NDArray[np.int64], high: NDArray[np.int64]) -> bool:
    """Return whether a box is that of these corners, to a pixel."""
    try:
        x, y, w, h = np.asarray(bbox, dtype=np.float64).reshape(4).tolist()
    except (TypeError, ValueError, OverflowError):
        return False
    return bool(np.abs(np.array([x, y, x + w, y + h]) - [*low, *high]).max() <= 1)


def _text(number: int, values: list[float]) -> str:
    return " ".join([str(number), *(f"{value:.8g}" for value in values)])


def split_of(path: Path) -> str:
    """Return the split that an annotation file's name says; train if none."""
    found = _SPLIT.search(path.stem.lower())
    return {"valid": "val", None: "train"}.get(found and found[0], found[0] if found else "train")


def place_of(name: str | None, split: str) -> str:
    """Return `images/<split>/<name>`: as the name says, else in the given split.

    Empty for a name that leaves the folder, or that is none.
    """
    if not name:
        return ""
    try:
        parts = image_path(Path(), name).as_posix().split("/")
    except BadImage:
        return ""
    if parts[0] == "images" and len(parts) > 2:
        return "/".join(parts)
    return "/".join(["images", split, *parts])


def places_of(names: list[str | None], split: str) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Return each image's place, no two of which have one label file.

    Also the names that changed for it, each with the name that has its stem and the new one: of
    a.jpg and a.png, whose label file would be a.txt, the second becomes a-png.png.
    """
    owner: dict[str, str] = {}  # a place without its suffix -> the name that has it
    renamed: dict[str, tuple[str, str]] = {}
    places = []
    for name in names:
        stem, suffix = os.path.splitext(place_of(name, split))
        wanted, number = stem, 1
        while stem and owner.setdefault(wanted, name or "") != name:
            wanted = f"{stem}-{suffix[1:]}" + (f"-{number}" if number > 1 else "")
            number += 1
        if wanted != stem:
            renamed[name or ""] = (owner[stem], PurePosixPath(wanted).name + suffix)
        places.append(wanted + suffix)
    return places, renamed


def _yaml(table: BoxTable, splits: list[str]) -> str:
    names = category_names(table.header)
    lines = [MARK, *(f"{json.dumps(split)}: {json.dumps('images/' + split)}" for split in splits)]
    lines += ["names:" if names else "names: {}"]
    lines += [f"  {n}: {json.dumps(names[number])}" for n, number in enumerate(sorted(names))]
    return "\n".join(lines) + "\n"


def _link(made: Path, root: Path, images: Path, table: BoxTable, places: list[str]) -> None:
    """Link every image that is there into its place, relative to it."""
    for name, place in zip(table.images["file_name"].to_pylist(), places, strict=True):
        if place and (source := image_path(images, name)).is_file():
            link = made / place
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                final = (root / place).parent.resolve()
                link.symlink_to(os.path.relpath(source.resolve(), final))
