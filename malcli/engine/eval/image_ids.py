"""Which image of the human side an id means: also one of another type, or a file's name."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from malcli.records import Record, whole_of
from malcli.report.progress import log


def row_of(rows: Mapping[Hashable, int], key: object) -> int | None:
    """Return rows[key], also of "12" for 12 and the other way; None if it is not there."""
    if not isinstance(key, Hashable):
        return None
    if key in rows or not isinstance(key, int | str) or isinstance(key, bool):
        return rows.get(key)
    other = str(key) if isinstance(key, int) else whole_of(key)
    return rows.get(other) if str(other) == str(key) else None


def rows_of_results(
    path: Path, rows: Mapping[Hashable, int], names: Sequence[str], results: Sequence[Record]
) -> dict[Hashable, int]:
    """Return rows by id or, if no result has such an id, by the names of the files.

    Ultralytics writes the file's name without its suffix, as a number where it is one.

    Args:
        path: Of the results, for the log.
        rows: {image id: row} of the human side.
        names: File name of each row.
        results: Detections, each with an `image_id`.
    """
    given = {each["image_id"] for each in results}
    if not given or any(row_of(rows, each) is not None for each in given):
        return dict(rows)
    stems: dict[Hashable, int] = {}
    for row in rows.values():
        base = names[row].replace("\\", "/").rpartition("/")[2]
        stem = base.rpartition(".")[0] or base
        for key in {stem, base, *([int(stem)] if stem.isdecimal() and len(stem) < 18 else [])}:
            stems[key] = -1 if key in stems else row  # two of one name: neither
    stems = {key: row for key, row in stems.items() if row >= 0}
    if not given & stems.keys():
        return dict(rows)
    log(f"eval: {path}: its image_ids are names of files of --gt; taken for these images")
    return stems
