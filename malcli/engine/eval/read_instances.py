"""Annotation files as columns of instances with checked masks: the two sides of `eval`.

Decides which records can be used, and counts the others; knows nothing of metrics.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.formats.coco import read_results
from malcli.data.formats.open import open_boxes
from malcli.engine.eval.image_ids import row_of, rows_of_results
from malcli.errors import DataFormatError
from malcli.geometry.rle import RleError, find_good, from_segmentation, rle_box
from malcli.messages import short
from malcli.metrics.pairing import Instances
from malcli.records import (
    BoxTable,
    Problems,
    Record,
    Rle,
    category_names,
    category_records,
    records_of,
    whole_of,
)

LARGEST = 1e300  # a longer integer would not fit a float
CHUNK = 4096  # records at a time, so that only their columns stay in memory
HUMAN = "human masks that cannot be used (left out)"
PREDICTED = "predicted masks that cannot be used (IoU 0)"
ELSEWHERE = "annotations of images that --gt does not list (left out)"
SCORE = "scores that are no finite number (taken as 0)"


@dataclass(frozen=True)
class Frame:
    """The images and categories that both sides share.

    Attributes:
        row: {image id: row}, only the images that `--limit` leaves.
        names: File name of each image.
        sizes_hw: (height, width) of each image; (0, 0) if unknown.
        categories: {id: name}.
        chosen: The categories of the human instances that `--categories` leaves; None: all.
        partial: Whether either option left something out.
        frequency: {category id: r, c or f}, where LVIS says it.
    """

    row: dict[Hashable, int]
    names: list[str]
    sizes_hw: list[tuple[int, int]]
    categories: dict[int, str]
    chosen: frozenset[int] | None
    partial: bool
    frequency: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        table: The human annotations.
        source: The table of predictions, or the path of a results list.
        frame: The images that both share.
        human: Human instances, crowd included.
        predicted: Predicted instances on the same image rows.
        problems: Records that could not be used.
        checkpoint: What made the predictions, if known.
        quality: What it says of its quality on human masks.
    """

    table: BoxTable
    source: BoxTable | Path
    frame: Frame
    human: Instances
    predicted: Instances
    problems: Problems
    checkpoint: str | None = None
    quality: dict[str, Any] | None = None


def read_frame(table: BoxTable, categories: str | None = None, limit: int | None = None) -> Frame:
    """Return the images and categories of the human side.

    Args:
        table: The human annotations that `--limit` and `--categories` leave.
        categories: As the user gave it.
        limit: As the user gave it.
    """
    images = table.images.slice(0, limit)
    sizes = zip(images["height"].to_pylist(), images["width"].to_pylist(), strict=True)
    left = frozenset(table.boxes["category_id"].unique().to_pylist())
    return Frame(
        row={number: row for row, number in enumerate(images["id"].to_pylist())},
        names=[name or "" for name in images["file_name"].to_pylist()],
        sizes_hw=[(height or 0, width or 0) for height, width in sizes],
        categories=category_names(table.header),
        chosen=None if categories is None else left,
        partial=limit is not None or categories is not None,
        frequency=_frequencies(table.header),
    )


def _frequencies(header: dict[str, Any]) -> dict[int, str]:
    """Return LVIS's group of each category: rare, common or frequent."""
    found: dict[int, str] = {}
    for category in category_records(header):
        letter = category.get("frequency")
        if _is_id(category.get("id")) and isinstance(letter, str) and letter in ("r", "c", "f"):
            found[category["id"]] = letter
    return found


def read_human(table: BoxTable, frame: Frame, problems: Problems) -> Instances:
    """Return the human instances, crowd included; unusable ones are left out and counted.

    Raises:
        DataFormatError: There are instances, but no usable mask.
    """
    builder = _Builder(frame, problems, human=True)
    for chunk in _records(table):
        builder.add(chunk)
    if not builder.ids and (HUMAN in problems.counts or not table.boxes.num_rows):
        why = problems.examples.get(HUMAN, ["it holds no annotations"])[0]
        raise DataFormatError(
            table.path,
            f"no human mask to compare with ({why}); --gt needs annotations with segmentation",
        )
    return builder.columns()


def open_predicted(path: Path) -> BoxTable | Path:
    """Return a file of masks as a table, or the path itself if it is a COCO results list.

    Raises:
        DataFormatError: It cannot be understood.
    """
    if not path.is_dir():
        with open_regular(path) as file:
            columnar = file.read(4) == b"PAR1"
            file.seek(0)
            if not columnar and JsonText(path, file).peek() == "[":
                return path
    return open_boxes(path)


def read_predicted(source: BoxTable | Path, frame: Frame, problems: Problems) -> Instances:
    """Return the predicted instances; unusable masks become None and are counted.

    Args:
        source: A table of masks, or the path of a COCO results list.
        frame: The human side's images and categories.
        problems: Takes what cannot be used.

    Raises:
        DataFormatError: There are predictions, but none of an image of the human side.
    """
    chunks: Iterable[list[Record]]
    if isinstance(source, BoxTable):
        path, chunks = source.path, _records(source)
        total = source.boxes.num_rows
    else:
        results = read_results(source)
        path, total = source, len(results)
        chunks = (results[i : i + CHUNK] for i in range(0, total, CHUNK))
        frame = replace(frame, row=rows_of_results(path, frame.row, frame.names, results))
    builder = _Builder(frame, problems, human=False)
    for chunk in chunks:
        builder.add(chunk)
    if total and builder.elsewhere == total and not frame.partial:
        raise DataFormatError(
            path,
            f"none of its images is in --gt, which has ids such as {next(iter(frame.row), None)!r} "
            f"and names such as {next(iter(frame.names), '')!a}; give the masks of the same data "
            "set, with its image ids or, in a results list, its file names",
        )
    return builder.columns()


def checkpoint_of(source: BoxTable | Path) -> str | None:
    """Return the checkpoint's hash that `label` wrote into a file of masks."""
    info = source.header.get("info") if isinstance(source, BoxTable) else None
    ours = info.get("malcli") if isinstance(info, dict) else None
    checkpoint = ours.get("checkpoint") if isinstance(ours, dict) else None
    return None if checkpoint is None else str(checkpoint)


def _records(table: BoxTable) -> Iterator[list[Record]]:
    for begin in range(0, table.boxes.num_rows, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, table.boxes.num_rows))
        yield records_of(table, rows)


class _Builder:
    """Grows the columns of one side."""

    def __init__(self, frame: Frame, problems: Problems, *, human: bool) -> None:
        self.frame = frame
        self.problems = problems
        self.human = human
        self.elsewhere = 0
        self.seen = 0
        self.ids: list[Hashable] = []
        self.rles: list[Rle | None] = []
        self.numbers: list[tuple[int, int, bool, float, float]] = []
        self.boxes: list[list[float]] = []

    def add(self, records: Sequence[Record]) -> None:
        """Take the records of known images and chosen categories."""
        kept = []
        for place, record in enumerate(records, self.seen):
            row = row_of(self.frame.row, record.get("image_id"))
            if row is None:
                self.elsewhere += 1
                if not self.frame.partial:
                    self._problem(ELSEWHERE, record, place, "unknown image_id")
            elif self.frame.chosen is None or _is_in(record.get("category_id"), self.frame.chosen):
                kept.append((place, row, record))
        self.seen += len(records)
        masks = self._masks(kept)
        for (place, row, record), rle in zip(kept, masks, strict=True):
            if rle is not None or not self.human:
                self._append(place, row, record, rle)

    def _masks(self, kept: Sequence[tuple[int, int, Record]]) -> list[Rle | None]:
        """Return the checked mask of each record; compressed ones are checked many at once."""
        sizes = [self.frame.sizes_hw[row] for _, row, _ in kept]
        values = [record.get("segmentation") for _, _, record in kept]
        ready = [
            n
            for n, value in enumerate(values)
            if sizes[n] != (0, 0) and isinstance(value, dict) and type(value.get("counts")) is str
        ]
        good = find_good([values[n] for n in ready], [sizes[n] for n in ready])
        checked = {ready[n] for n in good}
        masks: list[Rle | None] = []
        for n, (place, _, record) in enumerate(kept):
            if n in checked:
                masks.append(Rle(size=list(sizes[n]), counts=record["segmentation"]["counts"]))
            else:
                masks.append(self._convert(sizes[n], record, place))
        return masks

    def _convert(self, image_hw: tuple[int, int], record: Record, place: int) -> Rle | None:
        """Return the mask of a record in any of COCO's forms, None if it has none."""
        value = record.get("segmentation")
        try:
            if value is None and not self.human:
                return None
            if value is None:
                raise RleError("it has no segmentation")
            if image_hw == (0, 0):
                raise RleError("its image has no height and width")
            return from_segmentation(value, image_hw)
        except RleError as error:
            self._refuse(str(error), record, place)
            return None

    def _refuse(self, reason: str, record: Record, place: int) -> None:
        self._problem(HUMAN if self.human else PREDICTED, record, place, reason)

    def _append(self, place: int, row: int, record: Record, rle: Rle | None) -> None:
        number, area = record.get("id"), record.get("area")
        category = whole_of(record.get("category_id"))
        box = _box(record.get("bbox"))
        if self.human and rle is not None and not math.isfinite(box[0]):
            box = [float(side) for side in rle_box(rle)]
        self.ids.append(number if isinstance(number, int | str) else ("row", place))
        self.rles.append(rle)
        self.boxes.append(box)
        self.numbers.append(
            (
                row,
                -1 if category is None else category,
                record.get("iscrowd") == 1,
                self._score(record, place),
                float(area) if _is_finite(area) else math.nan,
            )
        )

    def _score(self, record: Record, place: int) -> float:
        """Return `malcli_score`, else `score`, else 1."""
        value = record.get("malcli_score")
        value = record.get("score") if value is None else value
        if value is None or self.human:
            return 1.0
        if _is_finite(value):
            return float(value)
        self._problem(SCORE, record, place, f"score {short(value)}")
        return 0.0

    def _problem(self, kind: str, record: Record, place: int, reason: str) -> None:
        number = record.get("id")
        name = f"annotations[{place}]" if number is None else f"id {short(number)}"
        self.problems.add(kind, f"{name}: {reason}")

    def columns(self) -> Instances:
        """Return what was taken so far."""
        rows, categories, crowd, score, area = (
            zip(*self.numbers, strict=True) if self.numbers else ((), (), (), (), ())
        )
        return Instances(
            ids=self.ids,
            image=np.array(rows, dtype=np.int64),
            category=np.array(categories, dtype=np.int64),
            xywh=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            rles=self.rles,
            crowd=np.array(crowd, dtype=bool),
            score=np.array(score, dtype=np.float64),
            area=np.array(area, dtype=np.float64),
        )


def _is_in(value: object, chosen: frozenset[int]) -> bool:
    return whole_of(value) in chosen and whole_of(value) is not None


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**63


def _is_finite(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST  # NaN is below nothing


def _box(value: object) -> list[float]:
    """Return x y w h, pixels; NaN if it is no box."""
    if isinstance(value, list | tuple) and len(value) == 4:
        sides = [float(side) for side in value if _is_finite(side)]
        if len(sides) == 4 and sides[2] > 0 and sides[3] > 0:
            return sides
    return [math.nan] * 4
