"""Pascal VOC: one XML file an image in Annotations/, images in JPEGImages/, lists in ImageSets/.

Corners are VOC's own: pixels counted from 1, the last one inside, so that xmin=1, xmax=W is the
whole width, and `bbox` is [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]. So do the VOC
toolkit and detectron2 read them; supervision and mmdetection 2 take 1 from all four corners, a
pixel less at the right and bottom. Tools that write corners from 0 cannot be told apart, and come
out one pixel wider at the left and top. Ids are given in the order of the files' names and of the
objects, from 1, categories in the order of their names, from 1. What is no column is kept under its
own name; boxes are all that is read of an object: of other shapes there is no box.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

import pyarrow as pa

from malcli.data.boxtable.build import ROWS, build_table
from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import take_boxes, take_images
from malcli.data.boxtable.spill import spool
from malcli.data.formats.registry import Sample
from malcli.data.formats.xml_text import parse_xml, put_value, root_name, value_of
from malcli.data.images.sizes import read_sizes
from malcli.errors import DataFormatError
from malcli.records import BoxTable, Problems, Record

ANNOTATIONS, IMAGES, LISTS = "Annotations", ("JPEGImages", "images"), "ImageSets/Main"
SPLITS = ("train", "val", "test")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FLAGS = ("truncated", "occluded", "difficult")  # whole numbers
KEPT = ("pose", *FLAGS, "part", "malcli_score", "malcli_status")  # keys that are written
SHAPES = ("polygon", "robndbox", "segmentation", "mask", "keypoints")  # that are no box
ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".bmp", ".tif")
DIGITS = 9  # of a corner behind the point: more than any pixel needs, less than float64's noise


def is_voc(sample: Sample) -> bool:
    """Return whether an XML file is an annotation, or the first one of a folder is."""
    if not sample.path.is_dir():
        return _is_annotation(sample.head)
    try:
        return any(_holds_annotation(folder) for folder in _likely_folders(sample.path))
    except OSError:
        return False


def _likely_folders(root: Path) -> Iterator[Path]:
    yield from (Path(folder) for folder, _, _ in os.walk(root / ANNOTATIONS))
    yield root
    for folder in sorted(root.iterdir()):
        yield from (folder / ANNOTATIONS, folder)


def _holds_annotation(folder: Path) -> bool:
    names = [name for name in os.listdir(folder) if _is_xml(name)] if folder.is_dir() else []
    if not names:
        return False
    with (folder / min(names)).open("rb") as file:
        return _is_annotation(file.read(4096))


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _is_annotation(head: bytes) -> bool:
    return root_name(head) == "annotation"


def read_voc(path: Path, images: Path | None = None) -> BoxTable:
    """Read a folder of XML files, or one; the table's path is the image folder, if there is one.

    Args:
        path: The data set's folder, its Annotations, a folder of images and XML, or an XML file.
        images: The image folder; None: JPEGImages or images beside, or else the XML's own.

    Raises:
        DataFormatError: A file is not well-formed XML, or is no annotation.
        RunError: The disk of temporary files is full.
    """
    base, names = _files(path)
    if not names:
        raise DataFormatError(path, "has no XML file; name the folder of annotations")
    root = images or _image_root(base)
    reading = _Reading(base, _Images(root), _splits(base))
    boxes = spool(take_boxes([]).schema, reading.batches(names))
    table = build_table(
        root if root.is_dir() and root != base else path,
        "voc",
        {"categories": reading.categories()},
        reading.image_table(),
        spool(boxes.table.schema, reading.numbered(boxes.batches())),
    )
    for kind, count in reading.problems.counts.items():
        table.problems.counts[kind] = count
        table.problems.examples[kind] = reading.problems.examples[kind]
    return table


def _files(path: Path) -> tuple[Path, list[str]]:
    """Return the folder of the XML files, and their names in it, sorted."""
    if not path.is_dir():
        return path.absolute().parent, [path.name]
    base = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
    found: list[str] = []
    for folder, _, files in os.walk(base):
        inside = Path(folder).relative_to(base)
        found += [(inside / name).as_posix() for name in files if _is_xml(name)]
    return base.absolute(), sorted(found)


def _image_root(base: Path) -> Path:
    """Return the folder that images lie in, for that of the XML files."""
    beside = [base.parent / name for name in IMAGES if base.name == ANNOTATIONS]
    return next((folder for folder in beside if folder.is_dir()), base)


def _splits(base: Path) -> dict[str, str]:
    """Return the split of each image that the lists beside the XML files name."""
    found: dict[str, str] = {}
    for split in SPLITS:
        file = base.parent / LISTS / f"{split}.txt"
        if file.is_file():
            lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            found.update((line.split()[0], split) for line in lines if line.strip())
    return found


class _Images:
    """Finds the file of an XML file's image.

    Args:
        root: The image folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._there: set[str] = set()
        for folder, _, files in os.walk(root):
            inside = Path(folder).relative_to(root)
            self._there.update((inside / name).as_posix() for name in files)

    def find(self, xml: str, filename: str, path: str) -> str:
        """Return the image's name in the folder, or what the XML calls it if it is not there.

        Args:
            xml: The XML file's name.
            filename: What it says; may be empty, or of another ending.
            path: As filename; of the machine that wrote it.
        """
        own = PurePosixPath(xml)
        names = [filename.replace("\\", "/"), path.replace("\\", "/").rpartition("/")[2]]
        names += [names[0].rpartition("/")[2], *(own.stem + end for end in ENDINGS)]
        folders = [own.parent, PurePosixPath()]
        if ANNOTATIONS in own.parts:
            folders += [
                PurePosixPath(*(name if part == ANNOTATIONS else part for part in own.parent.parts))
                for name in IMAGES
            ]
        for name in filter(None, names):
            for folder in folders:
                if (place := (folder / name).as_posix()) in self._there:
                    return place
        return names[0] or names[1] or own.with_suffix(ENDINGS[0]).as_posix()


@dataclass
class _Reading:
    """Reads XML files one after another.

    Attributes:
        base: Their folder.
        images: Finds images.
        splits: Of images, by name without ending.
        records: Image records so far.
        names: A number for each category name, in the order that they came.
        problems: Shapes that are no box.
    """

    base: Path
    images: _Images
    splits: dict[str, str]
    records: list[Record] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the boxes of files, with categories numbered as in `names`."""
        batch: list[Record] = []
        number = 1
        for xml in names:
            root = parse_xml(self.base / xml, "annotation")
            try:
                self.records.append(self._image(xml, root))
                for element in root.iterfind("object"):
                    batch.append({"id": number, "image_id": len(self.records)})
                    batch[-1] |= self._object(element, number, xml)
                    number += 1
                if len(batch) >= ROWS:
                    yield take_boxes(batch)
                    batch = []
            except RecursionError:
                raise DataFormatError(self.base / xml, "elements are nested too deeply") from None
        yield take_boxes(batch)

    def _image(self, xml: str, root: Element) -> Record:
        name = self.images.find(xml, _text(root, "filename"), _text(root, "path"))
        record: Record = {"id": len(self.records) + 1, "file_name": name}
        size = root.find("size")
        for side in ("height", "width"):
            value = _number(_text(size, side)) if size is not None else None
            if value and 0 < value < 2**31 and value == int(value):
                record[side] = int(value)
        for child in root:
            if child.tag not in ("filename", "size", "object"):
                record[child.tag] = value_of(child)
        if size is not None and (depth := _text(size, "depth")) not in ("", "3"):
            record["depth"] = depth
        if split := self.splits.get(PurePosixPath(xml).with_suffix("").as_posix()):
            record["split"] = split
        return record

    def _object(self, element: Element, number: int, xml: str) -> Record:
        """Return an object as an annotation; without a box that can be used, as it is."""
        record: Record = {}
        box: list[float | None] = []
        for child in element:
            if child.tag == "name" and "category_id" not in record:
                name = (child.text or "").strip()
                record["category_id"] = self.names.setdefault(name, len(self.names))
            elif child.tag == "bndbox" and not box:
                box = [_number(_text(child, corner)) for corner in CORNERS]
                if None in box:
                    put_value(record, "bndbox", value_of(child))
            else:
                put_value(record, child.tag, _flag(child))
        if box and None not in box:
            x0, y0, x1, y1 = box
            sides = (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)  # type: ignore[operator]
            record["bbox"] = [round(side, DIGITS) for side in sides]
        elif not box:
            shapes = [child.tag for child in element if child.tag in SHAPES]
            said = f"has {', '.join(shapes)} in place of bndbox" if shapes else "has no bndbox"
            self.problems.add("no-bndbox", f"annotation {number} ({short(xml)}) {said}")
        return record

    def categories(self) -> list[dict[str, Any]]:
        """Return the categories in the order of their names."""
        return [{"id": n, "name": name} for n, name in enumerate(sorted(self.names), 1)]

    def numbered(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the boxes with the categories' final ids."""
        ids = {name: number for number, name in enumerate(sorted(self.names), 1)}
        final = pa.array([ids[name] for name in self.names], pa.int64())
        for batch in batches:
            place = batch.schema.get_field_index("category_id")
            yield batch.set_column(place, "category_id", final.take(batch["category_id"]))

    def image_table(self) -> pa.Table:
        """Return the images; a size that is not stated is the header's."""
        bare = [one for one in self.records if not (one.get("height") and one.get("width"))]
        found = read_sizes(self.images.root, [one["file_name"] for one in bare])
        for record, size in zip(bare, found, strict=True):
            if size.height is not None:
                record |= {"height": size.height, "width": size.width}
        starts = range(0, max(len(self.records), 1), ROWS)
        return pa.Table.from_batches(
            [take_images(self.records[begin : begin + ROWS]) for begin in starts]
        )


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _number(text: str) -> float | None:
    """Return a finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 2**53 and "_" not in text else None


def _flag(element: Element) -> Any:  # noqa: ANN401
    """Return the value of an object's key: flags and scores are numbers."""
    value = value_of(element)
    if element.tag in FLAGS and value in ("0", "1"):
        return int(value)
    if element.tag == "malcli_score" and isinstance(value, str):
        return _number(value)
    return value
