"""Objects of annotation tools into a BoxTable: photographs found, ids and categories numbered.

Images and objects get ids in the order in which they come, from 1, categories in the order of their
names. An object that carries an id, as files that malcli wrote do, keeps it; objects drawn since
get the numbers behind the largest one. A size that is not stated is that of the header.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from malcli.data.boxtable.build import ROWS, build_table
from malcli.data.boxtable.columns import is_text, take_boxes, take_images
from malcli.data.boxtable.spill import spool
from malcli.data.formats.yolo_read import SUFFIXES
from malcli.data.images.sizes import read_sizes
from malcli.errors import DataFormatError
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

ID, SCORE, STATUS = "malcli_id", "malcli_score", "malcli_status"  # keys in the tools' files
CATEGORY = "category"  # of an object: the category's name, in place of its id
COLUMNS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
DIGITS = 9  # behind the point of a side: more than any pixel needs, less than float64's noise
Entry = tuple[Record, list[Record]]  # an image, and its objects


def table_of(
    path: Path,
    format: str,
    root: Path,
    entries: Iterable[Entry],
    header: dict[str, Any],
    problems: Problems,
) -> BoxTable:
    """Return the table of images and their objects.

    Args:
        path: The table's; for messages, too.
        format: Its name.
        root: The image folder, for sizes.
        entries: Images without `id`, and objects: `id` if they have one, the name of their category
            under CATEGORY, and any other keys of annotations. Changed.
        header: Gets the categories; `entries` may add to it.
        problems: What `entries` find.

    Raises:
        DataFormatError: A value is nested too deeply.
        RunError: The disk of temporary files is full.
    """
    made = _Numbering(path, problems)
    boxes = spool(take_boxes([]).schema, made.batches(entries))
    boxes = spool(boxes.table.schema, made.numbered(boxes.batches()))
    categories = [{"id": n, "name": name} for n, name in enumerate(sorted(made.names), 1)]
    images = _sized(root, made.images)
    table = build_table(path, format, header | {"categories": categories}, images, boxes)
    for kind, count in problems.counts.items():
        table.problems.counts[kind] = table.problems.counts.get(kind, 0) + count
        table.problems.examples.setdefault(kind, []).extend(problems.examples[kind])
    return table


@dataclass
class _Numbering:
    """Gives ids.

    Attributes:
        path: For messages.
        problems: Ids that stand twice.
        images: Image records so far.
        names: A number for each category name, in the order that they came.
        taken: Ids that objects carry.
        open: Rows of objects without id.
    """

    path: Path
    problems: Problems
    images: list[Record] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    taken: set[int | str] = field(default_factory=set)
    open: "array[int]" = field(default_factory=lambda: array("q"))

    def batches(self, entries: Iterable[Entry]) -> Iterator[pa.RecordBatch]:
        """Yield the objects with the ids that they carry, or 0."""
        batch: list[Record] = []
        row = 0
        for image, objects in entries:
            self.images.append({"id": len(self.images) + 1} | image)
            for each in objects:
                name = each.pop(CATEGORY, None)
                record: Record = {"id": self._id(each.pop("id", None), row, image)}
                record["image_id"] = len(self.images)
                if name is not None:
                    record["category_id"] = self.names.setdefault(name, len(self.names))
                batch.append(record | each)
                row += 1
            if len(batch) >= ROWS:
                yield self._taken(batch)
                batch = []
        yield self._taken(batch)

    def _taken(self, batch: list[Record]) -> pa.RecordBatch:
        try:
            return take_boxes(batch)
        except RecursionError:
            last = self.images[-1]["file_name"]
            raise DataFormatError(
                self.path, f"values are nested too deeply, up to image {short(last)}; flatten them"
            ) from None

    def _id(self, carried: object, row: int, image: Record) -> int | str:
        usable = type(carried) is int and abs(carried) < 2**63
        usable = usable or (isinstance(carried, str) and is_text(carried))
        if usable and carried not in self.taken:
            self.taken.add(carried)  # type: ignore[arg-type]
            return carried  # type: ignore[return-value]
        if carried is not None:
            said = "stands twice" if usable else "is no id"
            place = short(image["file_name"])
            self.problems.add("new-id", f"{ID} {short(carried)} ({place}) {said}; it gets another")
        self.open.append(row)
        return 0

    def numbered(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the objects with their final ids, and those of the categories."""
        ids = {name: number for number, name in enumerate(sorted(self.names), 1)}
        final = pa.array([ids[name] for name in self.names], pa.int64())
        fresh = max((each for each in self.taken if type(each) is int), default=0) + 1
        begin = at = 0
        for batch in batches:
            column = batch["id"].to_pylist()
            end = begin + len(column)
            while at < len(self.open) and self.open[at] < end:
                column[self.open[at] - begin] = fresh + at
                at += 1
            begin = end
            place = batch.schema.get_field_index("category_id")
            batch = batch.set_column(place, "category_id", final.take(batch["category_id"]))
            place = batch.schema.get_field_index("id")
            yield batch.set_column(place, "id", pa.array(column, pa.int64()))


def _sized(root: Path, records: list[Record]) -> pa.Table:
    """Return the columns of images; sizes that are not stated are the headers'."""
    for record in records:
        for side in ("height", "width"):
            if not _is_side(record.get(side)):
                record.pop(side, None)
    bare = [one for one in records if not ("height" in one and "width" in one)]
    found = read_sizes(root, [one["file_name"] for one in bare])
    for record, size in zip(bare, found, strict=True):
        if size.height is not None:
            record |= {"height": size.height, "width": size.width}
    starts = range(0, max(len(records), 1), ROWS)
    batches = [take_images(records[begin : begin + ROWS]) for begin in starts]
    return pa.Table.from_batches(batches)


def _is_side(value: object) -> bool:
    number = type(value) is int or (type(value) is float and value.is_integer())
    return number and 0 < value < 2**31  # type: ignore[operator]


class Photographs:
    """Finds the photograph of an annotation, and only inside the image folder.

    Args:
        base: The folder of the annotations.
        images: The image folder; None: looked up.
        said: What an annotation calls its photograph, to look up the folder: `base`, or if no
            photograph lies in it the folder beside it that `said` leads to, or `images` beside it.

    Attributes:
        root: The image folder.
    """

    def __init__(self, base: Path, images: Path | None, said: str = "") -> None:
        """List the photographs."""
        self.root = images or base
        self._list()
        if images is None and not self._by_stem:
            parts = PurePosixPath(said.replace("\\", "/")).parts
            beside = parts[1:-1] if parts[:1] == ("..",) and ".." not in parts[1:] else ()
            for folder in (*([Path(*beside)] if beside else []), Path("images")):
                if (base.parent / folder).is_dir():
                    self.root = base.parent / folder
                    self._list()
                    break

    def _list(self) -> None:
        self._there: set[str] = set()
        self._by_stem: dict[str, str] = {}
        for folder, _, files in os.walk(self.root):
            inside = os.path.relpath(folder, self.root).replace(os.sep, "/")
            before = "" if inside == "." else inside + "/"
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    self._there.add(before + name)
                    self._by_stem.setdefault(before + stem, before + name)

    def find(self, said: object, own: str = "") -> str:
        """Return the photograph's name in the folder, or what is said if it is not there.

        Tried in this order, each beside the annotation and then in the image folder: what is said
        (with its `..`, if that stays inside), its last part, and the annotation's or the
        photograph's name with any suffix.

        Args:
            said: Relative or of another machine, with any slashes.
            own: The annotation file's name in its folder.
        """
        text = said.replace("\\", "/") if isinstance(said, str) else ""
        beside = str(PurePosixPath(own).parent)
        last = text.rpartition("/")[2]
        for name in filter(None, (text, last)):
            for folder in (beside, "."):
                place = os.path.normpath(f"{folder}/{name}")
                if place in self._there:
                    return place
        stems = [PurePosixPath(own).stem, os.path.splitext(last)[0]]
        for stem in filter(None, stems):
            for folder in (beside, "."):
                place = os.path.normpath(f"{folder}/{stem}")
                if place in self._by_stem:
                    return self._by_stem[place]
        return text or os.path.normpath(f"{beside}/{PurePosixPath(own).stem}.jpg")


def points_of(value: object) -> list[tuple[float, float]]:
    """Return points as finite numbers; none if any is something else."""
    points: list[tuple[float, float]] = []
    for each in value if isinstance(value, list | tuple) else ():
        if not isinstance(each, list | tuple) or len(each) != 2 or not all(map(is_number, each)):
            return []
        points.append((each[0], each[1]))
    return points


def is_number(value: object) -> bool:
    """Return whether a value is a number that a column can hold."""
    return type(value) in (int, float) and abs(value) < 2**53  # type: ignore[arg-type]


def box_around(points: Iterable[tuple[float, float]]) -> list[float]:
    """Return the box xywh of at least one point, in pixels."""
    xs, ys = zip(*points, strict=True)
    x, y = min(xs), min(ys)
    return [x, y, round(max(xs) - x, DIGITS), round(max(ys) - y, DIGITS)]


def text_of(value: object) -> str | None:
    """Return a category's name; None if the value is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()
