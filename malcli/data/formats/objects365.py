"""Objects365 v1 and v2: COCO JSON with the flags `isfake` and `isreflected`.

File names carry patch folders (`images/v1/patch8/objects365_v1_00420917.jpg`) or none; where the
images lie is for `images.resolve` to find. Categories stay as they are, with their own order, odd
names and spaces: train and validation files order them differently, and v1 has others than v2.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from malcli.data.formats.coco import read_coco, write_coco
from malcli.data.formats.registry import Sample
from malcli.records import BoxTable, Record

_HABITS = re.compile(
    rb'"(?:isfake|isreflected)"\s*:|objects365_v[12]_\d|obj365_(?:train|val|test)_\d'
)


def is_objects365(sample: Sample) -> bool:
    """Return whether a JSON file has flags or file names of Objects365."""
    return sample.is_json and bool(_HABITS.search(sample.edges))


def read_objects365(path: Path, folder: Path | None = None) -> BoxTable:
    """Read an Objects365 file as `read_coco` does, every flag kept.

    Raises:
        DataFormatError: It is not JSON, not Objects365, or its ids are missing or not unique.
        RunError: The disk is full.
    """
    return read_coco(path, folder, "objects365")


def write_objects365(path: Path, table: BoxTable, batches: Iterable[list[Record]]) -> int:
    """Write Objects365 JSON as `write_coco` does.

    Returns:
        The number of annotations.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    return write_coco(path, table, batches)
