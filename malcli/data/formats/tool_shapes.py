"""What annotation tools draw, of annotations: polygons of masks, or boxes, each at its image.

A mask is one polygon a part, holes bridged (see `geometry.polygons`); one that is no polygon yet
gets one along the edges of its pixels, and polygons that the input had stay as they were drawn. An
annotation whose mask is missing, empty or damaged is a box.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.compute as pc

from malcli.data.boxtable.image_rows import ImageRows
from malcli.data.formats.tool_objects import box_around, is_number
from malcli.data.images.find import image_path
from malcli.errors import BadImage
from malcli.geometry.polygons import polygons_of
from malcli.geometry.rle import RleError, from_segmentation
from malcli.records import BoxTable, Record, category_names

Polygon = Sequence[float]  # x0 y0 x1 y1 ..., pixels


class Placed:
    """Places annotations in images.

    Args:
        table: For `header` and `images`.
        lost: Counts what has no place.

    Attributes:
        names: The file name of each image; None if it leaves the image folder or is none.
    """

    def __init__(self, table: BoxTable, lost: Counter[str]) -> None:
        """Look at the images."""
        self._lost = lost
        self._rows = ImageRows(table.images)
        self._categories = category_names(table.header)
        sides = (pc.fill_null(table.images[side], 0).to_pylist() for side in ("height", "width"))
        self._hw = list(zip(*sides, strict=True))
        self.names = [_inside(name) for name in table.images["file_name"].to_pylist()]

    def of(
        self, batch: list[Record], *, unnamed: bool = False
    ) -> Iterator[tuple[int, str, Record]]:
        """Yield the image row, the category's name and the record of annotations that have both.

        Args:
            batch: Annotations.
            unnamed: Also those of an unknown category, whose name is empty.
        """
        for record, row in zip(batch, self._rows.of_records(batch), strict=True):
            number = record.get("category_id")
            name = self._categories.get(number) if type(number) is int else None
            name = "" if name is None and unnamed else name
            if row < 0 or not self.names[row]:
                self._lost["annotations without a usable image"] += 1
            elif name is None:
                self._lost["annotations of an unknown category"] += 1
            else:
                yield int(row), name, record

    def polygons(self, row: int, record: Record) -> list[Polygon]:
        """Return a mask's parts; none if there is no mask."""
        value = record.get("segmentation")
        if value in (None, [], {}):
            return []
        try:
            rle = from_segmentation(value, self._hw[row])
        except RleError:
            self._lost["masks that cannot be read"] += 1
            return []
        parts: list[Polygon] = value if isinstance(value, list) else list(polygons_of(rle))
        if not parts:
            self._lost["empty masks, which become boxes"] += 1
            return []
        flat = [each for part in parts for each in zip(part[::2], part[1::2], strict=True)]
        mask, box = box_around(flat), xywh_of(record)
        if (
            box is None
            or any(abs(a - b) > 1 for a, b in zip(mask[:2], box[:2], strict=True))
            or (any(abs(mask[n] + mask[n + 2] - box[n] - box[n + 2]) > 1 for n in (0, 1)))
        ):
            self._lost["boxes, which become those of their masks"] += 1
        return parts


def xywh_of(record: Record) -> list[float] | None:
    """Return a record's box; None for what is no box with an area."""
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return None
    return box if box[2] > 0 and box[3] > 0 else None


def _inside(name: str | None) -> str | None:
    try:
        return image_path(Path(), name or "").as_posix()
    except BadImage:
        return None
