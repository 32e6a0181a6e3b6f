"""Judges boxes: the status that a record alone decides, and the list of what is wrong.

Knows columns, no file format, and opens no image.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.errors import DataFormatError
from malcli.geometry.rle import MAX_PIXELS, MAX_SIDE, is_too_large
from malcli.messages import short as short
from malcli.records import (
    DESIGN_REASONS,
    STATUS_OK,
    UNUSABLE_REASONS,
    Problems,
    skipped,
    to_records,
    xywh_of,
)

SHOWN = 10  # examples of a kind of problem
FEW = 3  # boxes, whose form says nothing yet
OVER = 1.02  # of an image's side: where a box that was drawn in it does not end
FULL_TURN = 360  # degrees

# What a record alone decides; the numbers below stand for them in columns, lowest first.
REASONS = ("", *UNUSABLE_REASONS, *DESIGN_REASONS)
STATUSES = (STATUS_OK, *map(skipped, REASONS[1:]))
OK, NO_IMAGE, BAD_IMAGE, BAD_BOX, CROWD, GROUP, INSIDE = range(len(STATUSES))

Bools = NDArray[np.bool_]
Rows = NDArray[np.int32]


class Judge:
    """Gives boxes their status, batch by batch, and counts what is wrong.

    Args:
        images: Columns of `image_schema`.
        categories: Ids of the categories.
        problems: Where it counts.
    """

    def __init__(self, images: pa.Table, categories: list[int], problems: Problems) -> None:
        """Judge the images."""
        self._problems = problems
        self._categories = np.array(categories, dtype=np.int64)
        self._names = images["file_name"]
        sides = [pc.fill_null(images[side], 0).to_numpy() for side in ("height", "width")]
        self._hw = np.stack(sides, axis=1).astype(np.float64)
        named = _bools(pc.not_equal(images["file_name"], ""))
        height, width = self._hw.T
        large = (self._hw > MAX_SIDE).any(axis=1) | (height * width > MAX_PIXELS)
        usable = (self._hw > 0).all(axis=1) & ~large
        status = np.where(named, np.where(usable, OK, BAD_IMAGE), NO_IMAGE)
        # The last is for boxes of unknown images, whose row is -1.
        self._images = np.append(status, NO_IMAGE).astype(np.int8)
        self._seen = Counter[str]()  # boxes that could be what people take for x, y, w, h

    def status(self, boxes: pa.Table, image: Rows) -> NDArray[np.int8]:
        """Return the index in STATUSES of each box, and count its problems.

        Args:
            boxes: Columns of `box_schema`; a `status` only where the reader skips by design.
            image: (N,) row of each box's image, -1 if unknown.
        """
        status = self._images[image]
        hw = self._hw[np.where(status == OK, image, 0)] if len(self._hw) else np.zeros((1, 2))
        xywh = xywh_of(boxes["bbox"])
        self._see(xywh[status == OK], hw[status == OK] if len(hw) == len(status) else hw[:0])
        status[(status == OK) & ~overlaps(xywh, hw)] = BAD_BOX
        design = _by_design(boxes)
        left_out = (status == OK) & (design != OK)
        status[left_out] = design[left_out]
        self._count(boxes, status, image)
        return status

    def finish(self) -> None:
        """Count boxes that all look like corners or like shares of their image."""
        seen = self._seen
        if seen["all"] >= FEW and seen["corners"] == seen["all"] <= 5 * seen["over"]:
            self._problems.add(
                "corners-as-bbox",
                f"{seen['over']} of {seen['all']} boxes hang over their image, and all would fit "
                "as corners x0, y0, x1, y1; a bbox is x, y, width, height",
                seen["over"],
            )
        if seen["shares"] and seen["relative"] == seen["all"]:
            self._problems.add(
                "relative-bbox",
                "no number of any box is above 1: shares of the image? a bbox is in pixels; "
                "multiply by width and height",
                seen["all"],
            )

    def _see(self, xywh: NDArray[np.float64], hw: NDArray[np.float64]) -> None:
        """Count the boxes (N, 4) of images (N, 2) that look like another form."""
        sound = (xywh[:, 2:] > 0).all(axis=1)
        xywh, (height, width) = xywh[sound], hw[sound].T
        x, y, w, h = xywh.T
        corners = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
        over = (x + w > OVER * width) | (y + h > OVER * height)
        relative = ((xywh >= 0) & (xywh <= 1)).all(axis=1)
        shares = relative & (xywh % 1 != 0).any(axis=1)
        found = {"all": sound, "corners": corners, "over": over, "relative": relative}
        self._seen.update({name: int(some.sum()) for name, some in found.items()})
        self._seen["shares"] += int(shares.sum())

    def _count(self, boxes: pa.Table, status: NDArray[np.int8], image: Rows) -> None:
        def reason(row: int) -> str:
            place = int(image[row])
            name = self._names[place].as_py() if place >= 0 else None
            size = self._hw[place] if place >= 0 else (0, 0)
            return _reason(boxes, row, int(status[row]), place >= 0, name, tuple(size))

        for code in (NO_IMAGE, BAD_IMAGE, BAD_BOX):
            note(self._problems, REASONS[code], status == code, reason)
        category = boxes["category_id"]
        known = np.isin(pc.fill_null(category, 0).to_numpy(), self._categories)
        known &= _bools(pc.is_valid(category))
        note(self._problems, "unknown-category", ~known, lambda row: _reason(boxes, row, OK))
        angles = _angles(boxes["extra"])
        turned = np.isin(np.arange(boxes.num_rows), [*angles])
        note(self._problems, "rotated-bbox", turned, lambda row: _turned(boxes, row, angles[row]))


def _angles(extra: pa.ChunkedArray) -> dict[int, float]:
    """Return the rotation of boxes that have one other than 0, degrees, by row.

    CVAT writes `attributes.rotation` beside the bbox of the rectangle before it was turned.
    """
    found: dict[int, float] = {}
    for row in np.flatnonzero(_bools(pc.match_substring(extra, '"rotation":'))):
        record = json.loads(extra[int(row)].as_py())
        attributes = record.get("attributes")
        given = [record.get("rotation")]
        given += [attributes.get("rotation")] if isinstance(attributes, dict) else []
        for angle in given:
            if isinstance(angle, int | float) and abs(angle) < FULL_TURN**3 and angle % FULL_TURN:
                found[int(row)] = float(angle)
    return found


def _turned(boxes: pa.Table, row: int, angle: float) -> str:
    return (
        f"annotation {short(boxes['id'][row].as_py())}: its rotation of {angle:g} degrees is not "
        "read, and its mask is cut by the upright bbox; give the box around the turned one"
    )


def _by_design(boxes: pa.Table) -> NDArray[np.int8]:
    """Return the status of boxes that are skipped though they are fine; else OK."""
    design = np.full(boxes.num_rows, OK, dtype=np.int8)
    if "status" in boxes.schema.names:
        given = pc.fill_null(pc.index_in(boxes["status"], value_set=pa.array(STATUSES)), OK)
        design = given.to_numpy().astype(np.int8)
        design[design < CROWD] = OK
    design[_bools(pc.equal(boxes["iscrowd"], 1)) & (design == OK)] = CROWD
    return design


def overlaps(xywh: NDArray[np.float64], hw: NDArray[np.float64]) -> Bools:
    """Return which boxes (N, 4) have sides above zero and a part inside their images (N, 2)."""
    x, y, w, h = xywh.T
    with np.errstate(over="ignore", invalid="ignore"):
        inside = (x < hw[:, 1]) & (y < hw[:, 0]) & (x + w > 0) & (y + h > 0)
    return np.asarray((w > 0) & (h > 0) & inside)  # a malformed box is NaN, which compares false


def note(problems: Problems, kind: str, bad: Bools, example: Callable[[int], str]) -> None:
    """Count the bad rows of a batch; `example` gives a row's line, for the first ten of all."""
    rows = np.flatnonzero(bad)
    room = max(SHOWN - len(problems.examples.get(kind, ())), 0)
    for row in rows[:room]:
        problems.add(kind, example(int(row)))
    if rows.size > room:
        problems.add(kind, "", int(rows.size) - room)  # the examples are full


def refuse_nothing(path: Path, written: int, lost: Mapping[str, int]) -> None:
    """Refuse an output without a record where there were annotations.

    Args:
        path: What was read.
        written: Records in the output.
        lost: What was left out: `annotations <why>` are records.

    Raises:
        DataFormatError: None was written, and some were left out.
    """
    why = {what: count for what, count in lost.items() if what.startswith("annotations ")}
    if why and not written:
        said = ", ".join(f"{n} {what.removeprefix('annotations ')}" for what, n in why.items())
        raise DataFormatError(path, f"none of its annotations can be written: {said}")


def _reason(
    boxes: pa.Table,
    row: int,
    code: int,
    image_known: bool = True,
    name: str | None = None,
    image_hw: tuple[float, float] = (0, 0),
) -> str:
    """Return one line on what is wrong with a box; OK is about its category.

    Args:
        boxes: The batch.
        row: Of the box.
        code: Its place in STATUSES.
        image_known: Whether `images` has its image.
        name: Of the image's file.
        image_hw: Its height and width.
    """
    columns = boxes.select(["id", "image_id", "category_id", "bbox", "extra"])
    record: dict[str, Any] = to_records(columns.slice(row, 1))[0]
    if code == OK:
        what = f"category_id {short(record.get('category_id'))} is not in categories"
    elif not image_known:
        what = f"image_id {short(record.get('image_id'))} is not in images"
    elif code == NO_IMAGE:
        what = f"image {short(record['image_id'])} has no file_name"
    elif code == BAD_IMAGE and is_too_large(image_hw):
        what = f"image {short(record['image_id'])} has {image_hw[0]:.0f} x {image_hw[1]:.0f} pixels"
        what += f", more than masks can have (sides up to {MAX_SIDE}, {MAX_PIXELS} in all)"
    elif code == BAD_IMAGE:
        what = f"image {short(record['image_id'])} has no height and width above zero"
    elif "bbox" in record:
        what = f"bbox {short(record['bbox'])} is not x, y, w, h with an area inside its image"
        what += f" {short(name)}"
    elif "line" in record:  # of a text, as YOLO's
        what = f"the line {short(record['line'])} for image {short(name)} is no box"
    else:
        what = f"no bbox (image {short(name)})"
    return f"annotation {short(record.get('id'))}: {what}"


def _bools(column: pa.ChunkedArray) -> Bools:
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=bool)
