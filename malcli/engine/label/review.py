"""What people look at after labelling: a CSV of the least sure masks, and a page of pictures.

Both are made from the finished output, so a restart can write them, too.
"""

import csv
import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes
from malcli.engine.label.settings import REVIEW_COLUMNS
from malcli.files import replacing
from malcli.records import STATUS_OK, BoxTable, Problems, category_names, records_of
from malcli.report.html import label_page, write_page
from malcli.report.plots import MALCLI, Example, Subject, draw_subjects, photo_reader
from malcli.report.progress import log

REVIEWED = 1000  # rows of the CSV
SHOWN = 12  # pictures of each kind
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run text that begins so

Scored = tuple[float, int, str]  # score, row, status


def write_extras(
    config: LabelConfig, out: Path, summary: dict[str, Any], problems: Problems
) -> None:
    """Write what the config asks for of the two: `write_review`, `write_report`."""
    if config.review:
        write_review(out, config.review)
    if config.report:
        write_report(config, out, summary, problems)


def write_review(out: Path, review: Path) -> None:
    """Write the least sure masks of an output, the least sure first.

    Columns: `id` of the annotation, `image` (file name), `category` (name), `score`
    (`malcli_score`, the estimated IoU; 0: empty), `status`.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    table = open_boxes(out)
    least = heapq.nsmallest(REVIEWED, _scores(table))
    names = category_names(table.header)
    records = records_of(table, np.array([row for _, row, _ in least], dtype=np.int64))
    with replacing(review) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(REVIEW_COLUMNS)
        for (score, row, status), record in zip(least, records, strict=True):
            category = record.get("category_id")
            name = names.get(category, category) if isinstance(category, int) else category
            cells = (record["id"], _file_name(table, row), name)
            writer.writerow([*map(_cell, cells), score, status])
    log(f"{review}: the {len(least)} least sure masks")


def write_report(
    config: LabelConfig, out: Path, summary: dict[str, Any], problems: Problems
) -> None:
    """Write a page with the surest, the least sure and random masks on their photographs.

    Args:
        config: For the page's path and the images.
        out: The finished output.
        summary: What `--json` prints.
        problems: What is wrong with which records.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    assert config.report is not None
    table = open_boxes(out)
    labelled = [one for one in _scores(table) if one[2] == STATUS_OK]
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(labelled), min(SHOWN, len(labelled)), replace=False)
    picked = {
        "The least sure": heapq.nsmallest(SHOWN, labelled),
        "The surest": heapq.nlargest(SHOWN, labelled),
        "Random": [labelled[int(place)] for place in sorted(chosen)],
    }
    table_of_input = open_boxes(
        config.boxes, config.format, config.images, with_masks=False, exif=config.exif
    )
    read = photo_reader(table_of_input, config.images, config.max_pixels, log, config.exif)
    galleries: dict[str, list[Example]] = {
        title: draw_subjects([_subject(table, one) for one in scored], read)
        for title, scored in picked.items()
    }
    listed = {
        f"{kind}: {count}": [text for text in problems.examples.get(kind, []) if text]
        for kind, count in sorted(problems.counts.items())
    }
    write_page(config.report, label_page(summary, galleries, listed))
    log(f"{config.report}: the report")


def _scores(table: BoxTable) -> Iterator[Scored]:
    """Yield every mask that a labeler made, empty ones, too."""
    row = 0
    for batch in table.boxes.select(["extra"]).to_batches():
        for text in batch["extra"].to_pylist():
            extra = json.loads(text) if text else {}
            score, status = extra.get("malcli_score"), extra.get("malcli_status")
            if isinstance(score, int | float) and isinstance(status, str):
                yield float(score), row, status
            row += 1


def _subject(table: BoxTable, scored: Scored) -> Subject:
    """Return what to draw for a mask."""
    score, row, _ = scored
    (record,) = records_of(table, np.array([row]))
    image = table.images.slice(table.boxes["image"][row].as_py(), 1).to_pylist()[0]
    category = category_names(table.header).get(record.get("category_id", -1), "unknown category")
    return Subject(
        file_name=image["file_name"],
        image_hw=(image["height"], image["width"]),
        xywh=table.xywh(np.array([row]))[0],
        masks=((record["segmentation"], MALCLI),),
        caption=(f"{category}, score {score:.2f}", f"id {record['id']}, {image['file_name']}"),
    )


def _file_name(table: BoxTable, row: int) -> str:
    number = table.boxes["image"][row].as_py()
    names: pa.ChunkedArray = table.images["file_name"]
    return names[number].as_py() or "" if number >= 0 else ""


def _cell(value: object) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = str(value)
    is_number = text.removeprefix("-").isdigit()
    return "'" + text if text.startswith(FORMULA) and not is_number else text
