"""Writes Open Images: a CSV of relative boxes, and masks as PNG with a CSV of their own.

    FILE.csv                      boxes
    FILE-class-descriptions.csv   label and name of each class, without header
    FILE-masks.csv, FILE-masks/   where there are masks

The ImageID is the file name without its ending. A record without a box or image that can be used is
left out, and counted.
"""

import contextlib
import csv
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.compute as pc
from PIL import Image

from malcli.data.boxtable.checks import refuse_nothing
from malcli.data.boxtable.image_rows import ImageRows
from malcli.data.formats.losses import losses_of
from malcli.data.images.find import image_path
from malcli.errors import BadImage
from malcli.files import refuse_foreign_folder, replacing, replacing_folder
from malcli.geometry.rle import RleError, decode_rle, from_segmentation, has_mask
from malcli.records import BoxTable, Record, category_names, category_records, whole_of

BOX_COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)
MASK_COLUMNS = (
    *("MaskPath", "ImageID", "LabelName", "BoxID"),
    *("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU", "Clicks"),
)
FLAGS = BOX_COLUMNS[8:]
OF_MASKS = {"PredictedIoU", "Clicks"}  # keys that only the row of a mask says
SAID = {"image_id", "category_id", "bbox", "segmentation", "iscrowd", *BOX_COLUMNS}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def files_of(path: Path) -> list[Path]:
    """Return the files and the folder of an output; the last two only where there are masks."""
    ends = ("-class-descriptions.csv", "-masks.csv", "-masks")
    return [path, *(path.with_name(path.stem + end) for end in ends)]


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what names, numbered from 1, and a list of boxes cannot say."""
    numbers = [each.get("id") for each in category_records(table.header)]
    rows = {number: row for row, number in enumerate(numbers, 1) if type(number) is int}
    names = [PurePosixPath(name or "") for name in table.images["file_name"].to_pylist()]
    stems = [str(name.with_suffix("") if name.name else "") for name in names]
    lost = losses_of(table, stems, rows, ("id", "name", "mid"))
    lost["images without boxes"] = int((table.starts[1:] == table.starts[:-1]).sum())
    return lost


def refuse_other_masks(path: Path) -> None:
    """Refuse to replace a folder of masks with other files in it."""
    refuse_foreign_folder(files_of(path)[3], lambda file: file.suffix == ".png")


def write_openimages(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    images: Path | None = None,
    lost: Counter[str] | None = None,
) -> int:
    """Write boxes, class names and masks.

    Args:
        path: The CSV; it and its companions are replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        images: Not needed.
        lost: Counts what was left out, by what.

    Returns:
        The number of boxes.

    Raises:
        DataFormatError: There are annotations, but none that a row can say.
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    boxes_csv, names_csv, masks_csv, masks = files_of(path)
    rows = _Rows(table, lost)
    with contextlib.ExitStack() as stack:
        boxes = _writer(stack, boxes_csv, BOX_COLUMNS)
        names = _writer(stack, names_csv, ())
        names.writerows(_labels(table.header).items())
        folder, index = None, None
        for record, row in rows.of(batches):
            boxes.writerow(row[name] for name in BOX_COLUMNS)
            mask = rows.mask(record)
            if mask is None:
                continue
            if folder is None or index is None:
                index = _writer(stack, masks_csv, MASK_COLUMNS)
                folder = stack.enter_context(replacing_folder(masks))
            number = _UNSAFE.sub("_", str(record.get("id")))
            stem = f"{row['ImageID']}_{row['LabelName']}"
            name = _UNSAFE.sub("", stem.replace("/", ""))[:180] + f"_{number}.png"
            mask.save(folder / name)
            sides = [row[side] for side in ("XMin", "XMax", "YMin", "YMax")]
            score = record.get("malcli_score", record.get("PredictedIoU", ""))
            clicks = record.get("Clicks", "")
            index.writerow([name, row["ImageID"], row["LabelName"], number, *sides, score, clicks])
        refuse_nothing(table.path, rows.count, lost)
    if folder is None:  # masks of an earlier output would be taken for those of these boxes
        masks_csv.unlink(missing_ok=True)
        shutil.rmtree(masks, ignore_errors=True)
    return rows.count


def _writer(stack: contextlib.ExitStack, path: Path, columns: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Return a CSV writer of a file that is replaced when the stack closes."""
    temporary = stack.enter_context(replacing(path))
    file = stack.enter_context(
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    )
    writer = csv.writer(file, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    return writer


def _labels(header: dict[str, Any]) -> dict[str, str]:
    """Return the names of the classes by label: their `mid`, or else their name."""
    return {_mid(each): str(each.get("name", each["id"])) for each in _categories(header)}


def _categories(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    known = category_names(header)
    for each in category_records(header):
        if type(each.get("id")) is int and each["id"] in known:
            yield each


def _mid(category: dict[str, Any]) -> str:
    mid = category.get("mid")
    return mid if isinstance(mid, str) and mid else str(category.get("name", category["id"]))


class _Rows:
    """Makes the rows of annotations.

    Attributes:
        count: Rows made.
    """

    def __init__(self, table: BoxTable, lost: Counter[str]) -> None:
        self._lost = lost
        self._rows = ImageRows(table.images)
        self._mids = {each["id"]: _mid(each) for each in _categories(table.header)}
        self._names = [_image_id(name) for name in table.images["file_name"].to_pylist()]
        sides = (pc.fill_null(table.images[side], 0).to_pylist() for side in ("height", "width"))
        self._hw = list(zip(*sides, strict=True))
        self._last_hw = (0, 0)
        self.count = 0

    def of(self, batches: Iterable[list[Record]]) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Yield each annotation that a row can say, and the row."""
        for batch in batches:
            for record, image in zip(batch, self._rows.of_records(batch), strict=True):
                said = SAID if record.get("segmentation") is None else SAID | OF_MASKS
                self._lost.update(f"key '{key}'" for key in record if key not in said)
                row = self._row(record, int(image))
                if isinstance(row, str):
                    self._lost[f"annotations {row}"] += 1
                else:
                    self.count += 1
                    yield record, row

    def _row(self, record: Record, image: int) -> dict[str, Any] | str:
        """Return the values of a row, or why there is none."""
        name = self._names[image] if image >= 0 else ""
        if not name and "XMin" in record and isinstance(record.get("image_id"), str):
            name = record["image_id"]  # of a CSV whose image is not there
        if not name:
            return "without a usable image"
        category = whole_of(record.get("category_id"))
        mid = None if category is None else self._mids.get(category)
        if mid is None:
            return "of an unknown category"
        height, width = self._last_hw = self._hw[image]
        crowd = int(record.get("iscrowd") in (1, True))
        row = {"ImageID": name, "LabelName": mid, "Source": "", "Confidence": 1}
        row |= dict.fromkeys(FLAGS, 0) | {key: record[key] for key in BOX_COLUMNS if key in record}
        row |= {"ImageID": name, "LabelName": mid}
        row["IsGroupOf"] = record.get("IsGroupOf", crowd)
        try:
            x, y, w, h = (float(side) for side in record["bbox"])
            sides = (x / width, (x + w) / width, y / height, (y + h) / height)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
            return row if "XMin" in record else "without a usable box or image size"
        return row | dict(zip(("XMin", "XMax", "YMin", "YMax"), sides, strict=True))

    def mask(self, record: Record) -> Image.Image | None:
        """Return the mask of the annotation whose row came last."""
        if not has_mask(record.get("segmentation")):
            return None
        try:
            pixels = decode_rle(from_segmentation(record["segmentation"], self._last_hw))
        except (RleError, ValueError):
            self._lost["masks that cannot be read"] += 1
            return None
        return Image.fromarray(pixels)


def _image_id(name: str | None) -> str:
    """Return a file's name without its ending; empty if it leaves the folder or is none."""
    try:
        return image_path(Path(), name or "").with_suffix("").as_posix()
    except (BadImage, ValueError):
        return ""
