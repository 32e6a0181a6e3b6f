"""LVIS v1: COCO JSON whose images are known by their URL, with polygons only and no `iscrowd`.

An image's file name is the last two parts of its `coco_url`, since the validation images lie in two
folders (`train2017`, `val2017`). `neg_category_ids` and `not_exhaustive_category_ids`, without
which LVIS AP is wrong, pass through as every other key does. Knows nothing of images on disk.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from malcli.data.boxtable.columns import encode_json, is_text
from malcli.data.formats.coco import read_coco, write_coco
from malcli.data.formats.registry import Sample
from malcli.records import BoxTable, Record, to_records

LISTS = ("neg_category_ids", "not_exhaustive_category_ids")  # of images, of category ids
_LISTS = re.compile(rb'"(?:neg_category_ids|not_exhaustive_category_ids)"\s*:')


def is_lvis(sample: Sample) -> bool:
    """Return whether a JSON file has lists of LVIS, or images that are known by their URLs only."""
    text = sample.edges
    by_url = b'"coco_url"' in text and b'"file_name"' not in text
    return sample.is_json and (by_url or bool(_LISTS.search(text)))


def read_lvis(path: Path, folder: Path | None = None) -> BoxTable:
    """Read an LVIS file as `read_coco` does, with file names from the images' URLs.

    Raises:
        DataFormatError: It is not JSON, not LVIS, or its ids are missing or not unique.
        RunError: The disk is full.
    """
    return read_coco(path, folder, "lvis", _name_by_url)


def _name_by_url(images: pa.Table) -> pa.Table:
    """Return the images with the names that their URLs say; a name of its own stays in `extra`."""
    names: list[str | None] = []
    extras: list[str | None] = []
    columns = (images[key].to_pylist() for key in ("file_name", "extra"))
    for name, extra in zip(*columns, strict=True):
        record: Record = json.loads(extra) if extra is not None else {}
        named = name_of_url(record.get("coco_url"))
        if named is not None and name is not None:
            record["file_name"] = name
        names.append(named or name)
        extras.append(encode_json(record) if record else None)
    for key, values in (("file_name", names), ("extra", extras)):
        place = images.schema.get_field_index(key)
        images = images.set_column(place, key, pa.array(values, pa.string()))
    return images


def name_of_url(url: Any) -> str | None:  # noqa: ANN401
    """Return the last two parts of a URL, such as `val2017/000000000139.jpg`; None if it has none.

    Whether the name is safe to open is for `images.resolve` to say.
    """
    if not isinstance(url, str) or not is_text(url):
        return None
    return "/".join(url.rstrip("/").split("/")[-2:]) or None


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count the images that lack what LVIS needs."""
    lost: Counter[str] = Counter()
    extra = table.images["extra"]
    for key in ("coco_url", *LISTS):
        has = pc.fill_null(pc.match_substring(extra, f'"{key}"'), False)
        if key == "coco_url":
            named = pc.fill_null(pc.match_substring(table.images["file_name"], "/"), False)
            has = pc.or_(has, named)
        lost[f"images without {key}, which LVIS needs"] = pc.sum(pc.invert(has)).as_py() or 0
    return lost


def write_lvis(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    lost: Counter[str] | None = None,
) -> int:
    """Write LVIS JSON as `write_coco` does; a name that the URL says is not written.

    An image without URL gets its name as one, which loaders take, if that has a folder.

    Args:
        path: As in `write_coco`.
        table: As in `write_coco`.
        batches: Lists of annotations.
        lost: Counts what loaders of LVIS refuse.

    Returns:
        The number of annotations.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    return write_coco(path, table, _counted(batches, lost), _image_records)


def _counted(batches: Iterable[list[Record]], lost: Counter[str] | None) -> Iterable[list[Record]]:
    """Yield the batches; count in `lost` the masks that loaders refuse."""
    for batch in batches:
        masks = sum(isinstance(record.get("segmentation"), dict) for record in batch)
        if lost is not None and masks:
            lost["RLE masks, which loaders of LVIS refuse (try --rle polygon)"] += masks
        yield batch


def _image_records(images: pa.RecordBatch) -> list[Record]:
    records = to_records(images)
    for record, extra in zip(records, images["extra"].to_pylist(), strict=True):
        name = record.get("file_name")
        if "coco_url" not in record:
            if isinstance(name, str) and "/" in name:
                record["coco_url"] = name
        elif name == name_of_url(record["coco_url"]) and "file_name" not in json.loads(extra):
            del record["file_name"]
    return records
