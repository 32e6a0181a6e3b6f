"""Open Images V4 to V7: a CSV of relative boxes, names of classes in a CSV without header.

Columns are found by name. The file states no image sizes: they come from the headers. A box of a
group is skipped as `group` (and gets `iscrowd`), one that is the whole view as `inside`. Columns
that are not needed are kept under their own names. Masks come from `openimages_masks`. Annotations
get their row's number as id, from 1, categories the number of their line in the class descriptions.
"""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.build import build_table
from malcli.data.boxtable.checks import GROUP, INSIDE, OK, STATUSES, short
from malcli.data.boxtable.columns import join_members
from malcli.data.boxtable.json_stream import open_regular
from malcli.data.boxtable.spill import spool
from malcli.data.formats.openimages.csv_rows import members_of, numbers_of, opened_csv
from malcli.data.formats.openimages.masks import (
    ROWS,
    MaskColumns,
    Masks,
    no_masks,
    open_masks,
    split_of,
)
from malcli.data.formats.registry import Sample
from malcli.data.images.decode import STORED
from malcli.data.images.find import find_folder
from malcli.data.images.sizes import Found, read_sizes
from malcli.errors import DataFormatError, MissingImageError
from malcli.records import BoxTable, Problems, box_schema, image_schema

SIDES = ("XMin", "YMin", "XMax", "YMax")
NEEDED = ("ImageID", "LabelName", *SIDES)
SUFFIXES = (".jpg", ".jpeg", ".png")  # of images, in the order that they are looked for
MAX_DESCRIPTIONS = 1 << 26  # bytes
ROTATION = ("ImageID", "Rotation")  # degrees counter-clockwise, to show an image upright
HEADING = ("LabelName", "DisplayName")  # V7's descriptions have one

SCHEMA = pa.schema([each for each in box_schema(pa.int64(), pa.string()) if each.name != "image"])


def is_openimages(sample: Sample) -> bool:
    """Return whether a file's first line names an image id and sides of a box."""
    line = sample.text.splitlines()[0] if sample.text else b""
    return not sample.is_json and b"ImageID" in line and b"XMin" in line


def read_openimages(
    path: Path, images: Path | None = None, *, with_masks: bool = True, frame: str = STORED
) -> BoxTable:
    """Read a CSV of boxes, in bounded memory beside the list of images.

    Args:
        path: The CSV.
        images: The image folder; None: looked up beside the CSV.
        with_masks: Read the masks, too, if a CSV of masks and PNG files are beside it.
        frame: Whose sizes count, as in `read_size`.

    Raises:
        DataFormatError: Not a CSV of boxes or of masks, cut short, or not UTF-8.
        MissingImageError: None of the images is there.
        RunError: The disk of temporary files is full.
    """
    ids, labels = _first_pass(path)
    names = pa.chunked_array([pa.array([f"{each}{SUFFIXES[0]}" for each in ids], pa.string())])
    found: list[Found] = []
    if ids:
        root = _folder(path, names, ids, images)
        found = read_sizes(root, list(ids), SUFFIXES, frame=frame)
    categories = _categories(path, labels)
    numbers = {each["mid"]: each["id"] for each in categories}
    hw = np.array([(each.height or 0, each.width or 0) for each in found]).reshape(-1, 2)
    problems = Problems()
    turned = _rotations(path, ids, problems)
    masks = open_masks(path, problems) if with_masks else None
    boxes = spool(SCHEMA, _boxes(path, ids, numbers, hw.astype(np.float64), masks))
    if masks is not None:
        masks.finish()
    header = {"categories": categories}
    table = build_table(path, "openimages", header, _images(ids, found, turned), boxes)
    table.problems.counts.update(problems.counts)
    table.problems.examples.update(problems.examples)
    return table


def _folder(path: Path, names: pa.ChunkedArray, ids: dict[str, int], images: Path | None) -> Path:
    """Return the image folder; images are .jpg unless none of them is there."""
    for suffix in SUFFIXES[1:]:
        with contextlib.suppress(MissingImageError):
            return find_folder(path, names, images).root
        names = pa.chunked_array([pa.array([each + suffix for each in ids], pa.string())])
    return find_folder(path, names, images).root


def _images(ids: dict[str, int], found: list[Found], turned: dict[str, str]) -> pa.Table:
    """Return the columns of images; one that is not there has no name."""
    extra = [f"{{{turned[name]}}}" if name in turned else None for name in ids]
    names, heights, widths = zip(*found, strict=True) if found else ((), (), ())
    columns = [list(ids), names, heights, widths, extra]
    return pa.Table.from_arrays(
        [
            pa.array(column, field.type)
            for column, field in zip(columns, image_schema(pa.string()), strict=True)
        ],
        schema=image_schema(pa.string()),
    )


def _rotations(path: Path, ids: dict[str, int], problems: Problems) -> dict[str, str]:
    """Return `"Rotation":degrees` of the images that are to be turned, from the CSV of images.

    Open Images does not say whether its boxes are those of the image as it is stored or turned:
    malcli takes both as they are, and counts these images.
    """
    folders = (path.absolute().parent, path.absolute().parent.parent)
    files = [file for folder in folders for file in sorted(folder.glob("*rotation*.csv"))]
    turned: dict[str, str] = {}
    for file in (file for file in files if split_of(file) in (split_of(path), None)):
        try:
            with opened_csv(file, ROTATION, "images", list(ROTATION)) as reader:
                for batch in reader:
                    angle = np.nan_to_num(numbers_of(batch["Rotation"]), posinf=0, neginf=0)
                    some = batch.filter(pa.array(angle % 360 != 0))
                    texts = members_of("Rotation", some["Rotation"]).to_pylist()
                    pairs = zip(some["ImageID"].to_pylist(), texts, strict=True)
                    turned.update((name, text) for name, text in pairs if name in ids)
        except DataFormatError as error:
            problems.add("no-rotations", f"{error}; it was not read")
        break
    for name, text in turned.items():
        problems.add("rotated-image", f"image {short(name)}: {text}, taken as it is stored")
    return turned


def _first_pass(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the row of each image id, in the order of the file, and the labels, sorted."""
    ids: dict[str, int] = {}
    labels: set[str] = set()
    with opened_csv(path, NEEDED, "boxes", ["ImageID", "LabelName"]) as reader:
        for batch in reader:
            for name in pc.unique(batch["ImageID"]).to_pylist():
                ids.setdefault(name, len(ids))
            labels.update(pc.unique(batch["LabelName"]).to_pylist())
    return ids, sorted(labels)


def _categories(path: Path, labels: list[str]) -> list[dict[str, Any]]:
    """Return the described classes, then those that have no description, by their labels."""
    described = _descriptions(path)
    found: list[dict[str, Any]] = []
    for mid in [*described, *(label for label in labels if label not in described)]:
        found.append({"id": len(found) + 1, "name": described.get(mid, mid), "mid": mid})
    return found


def _descriptions(path: Path) -> dict[str, str]:
    """Return the names of classes by label from the CSV beside; none if there is none."""
    folders = (path.absolute().parent, path.absolute().parent.parent)
    files = [file for folder in folders for file in sorted(folder.glob("*class-descriptions*.csv"))]
    if not files:
        return {}
    file = min(
        files, key=lambda file: (not file.name.startswith(path.stem), "boxable" not in file.name)
    )
    with open_regular(file) as opened:
        data = opened.read(MAX_DESCRIPTIONS)
    try:
        rows = list(csv.reader(data.decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(file, f"not a CSV of class names ({short(str(error))})") from None
    return {row[0]: row[1] for row in rows if len(row) >= 2 and tuple(row[:2]) != HEADING}


def _boxes(
    path: Path,
    ids: dict[str, int],
    numbers: dict[str, int],
    hw: NDArray[np.float64],
    masks: Masks | None,
) -> Iterator[pa.RecordBatch]:
    """Yield the columns of boxes in pixels.

    Args:
        path: The CSV.
        ids: Row of each image.
        numbers: Category id of each label.
        hw: (N, 2) sizes of the images; 0 if unknown.
        masks: Of the boxes.
    """
    begin = 1
    with opened_csv(path, NEEDED, "boxes") as reader:
        for block in reader:
            rows = ROWS if masks else max(block.num_rows, 1)
            for at in range(0, block.num_rows, rows):
                batch = block.slice(at, rows)
                size = hw[_mapped(batch["ImageID"], ids)]
                given = masks.columns(batch, begin, size) if masks else no_masks(batch.num_rows)
                yield _columns(batch, begin, numbers, size, given)
                begin += batch.num_rows


def _columns(
    batch: pa.RecordBatch,
    begin: int,
    numbers: dict[str, int],
    size: NDArray[np.float64],
    masks: MaskColumns,
) -> pa.RecordBatch:
    sides = [numbers_of(batch[name]) for name in SIDES]
    height, width = size.T
    x0, y0, x1, y1 = sides
    with np.errstate(over="ignore", invalid="ignore"):
        xywh = np.stack([x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height], axis=1)
    bad = ~np.isfinite(xywh).all(axis=1) | (size <= 0).any(axis=1)
    xywh[bad] = 0
    group, inside = (_flag(batch, name) for name in ("IsGroupOf", "IsInside"))
    status = np.where(group, GROUP, np.where(inside, INSIDE, OK)).astype(np.int8)
    named = pa.DictionaryArray.from_arrays(pa.array(status), pa.array(STATUSES))
    values = {
        "id": pa.array(np.arange(begin, begin + batch.num_rows)),
        "image_id": batch["ImageID"],
        "category_id": pa.array(_mapped(batch["LabelName"], numbers)),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(xywh.ravel()), 4, mask=pa.array(bad)),
        "area": masks.area,
        "iscrowd": pa.array(group.astype(np.int8)),
        "segmentation": masks.segmentation,
        "status": named.dictionary_decode(),
        "extra": _extra(batch, bad, masks.members),
    }
    columns = [values[field.name].cast(field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _mapped(column: pa.Array, values: dict[str, int]) -> NDArray[np.int64]:
    """Return the value of each text."""
    coded = column.dictionary_encode()
    by_code = np.array([values[text] for text in coded.dictionary.to_pylist()], dtype=np.int64)
    return np.asarray(by_code[coded.indices.to_numpy()])


def _flag(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    """Return where a flag is 1; machine boxes have -1."""
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=bool)
    return np.asarray(pc.equal(batch[name], "1"), dtype=bool)


def _extra(batch: pa.RecordBatch, bad: NDArray[np.bool_], of_masks: pa.Array) -> pa.Array:
    """Return the other columns as JSON objects; those of a bad box with its sides, as they are."""
    names = [name for name in batch.schema.names if name not in NEEDED]
    # Those of masks come first: of equal keys the last counts.
    parts = [of_masks, *(members_of(name, batch[name]) for name in names)]
    if bad.any():
        rows = pa.array(bad)
        parts += [
            pc.if_else(rows, members_of(name, batch[name]), pa.scalar(None, pa.string()))
            for name in SIDES
        ]
    return join_members(parts, batch.num_rows)
