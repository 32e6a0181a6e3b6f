"""What `label` will meet: its settings and names, the boxes, the images and their headers.

Opens no image beyond its header, and loads no network.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import ImageFolder, find_images
from malcli.data.images.read import check_header
from malcli.data.images.sizes import fill_sizes
from malcli.errors import BadImage, DataFormatError, MissingImageError
from malcli.records import (
    IMAGE_REASONS,
    NO_MEMORY,
    STATUS_EMPTY,
    STATUS_OK,
    UNUSABLE_REASONS,
    BoxTable,
    Problems,
    skipped,
)
from malcli.report.progress import Progress, log

CHECKED = 4096  # image records at a time

UNSETTLED = "unsettled-exif"  # photographs whose frame their size does not tell
UNREAD = (*IMAGE_REASONS, NO_MEMORY)  # what may become of an image
# Of problems that files have, not records.
FILE_KINDS = (*(f"{reason}-file" for reason in UNREAD), UNSETTLED)
HEADER_STATUS = (STATUS_OK, *map(skipped, UNREAD))
BAD_STATUSES = tuple(map(skipped, (*UNUSABLE_REASONS, NO_MEMORY)))


def open_table(config: LabelConfig) -> BoxTable:
    """Read the boxes.

    Raises:
        DataFormatError: The annotations cannot be understood.
        MissingImageError: A merge needs sizes that only the images say, and none is there.
    """
    table = open_boxes(
        config.boxes, config.format, config.images, with_masks=False, exif=config.exif
    )
    sized = with_sizes(table, config.boxes, config.images, config.exif, required=config.merge)
    return select(sized, config.categories, config.limit)


def open_data(config: LabelConfig) -> tuple[BoxTable, ImageFolder]:
    """Read the boxes and find their images.

    Raises:
        DataFormatError: The annotations cannot be understood.
        MissingImageError: None of the images is there.
    """
    table = open_table(config)
    folder = find_images(config.boxes, table, config.images, config.exif, config.max_failures)
    log(
        f"{config.boxes}: {table.boxes.num_rows} boxes in {table.images.num_rows} images; these in "
        f"{folder.root} ({folder.found} of the first {folder.tried} are there)"
    )
    return table, folder


def with_sizes(
    table: BoxTable, path: Path, images: Path | None, exif: str, *, required: bool = False
) -> BoxTable:
    """Return the table with sizes that it lacks from the images' headers; say so.

    Raises:
        MissingImageError: They are required, and no image is there.
    """
    try:
        sized = fill_sizes(table, path, images, exif)
    except MissingImageError:
        if required:
            raise
        return table
    if sized is not table:
        log(f"{path}: images without width and height have those of their files")
    return sized


def refuse_unusable(path: Path, counts: Mapping[str, int], problems: Problems) -> None:
    """Refuse boxes of which none can be labelled, for a reason other than their kind.

    Args:
        path: Of the boxes.
        counts: Boxes by status.
        problems: For the first examples.

    Raises:
        DataFormatError: There are boxes, and each is skipped; crowds alone are fine, and boxes for
            which the machine's memory did not suffice can be tried again.
    """
    bad = {status: counts[status] for status in BAD_STATUSES if counts.get(status)}
    if not bad or any(map(counts.get, (STATUS_OK, STATUS_EMPTY, skipped(NO_MEMORY)))):
        return
    kinds = [status.removeprefix("skipped:") + end for status in bad for end in ("", "-file")]
    examples = [one for kind in kinds for one in problems.examples.get(kind, []) if one]
    said = ", ".join(f"{count} {status}" for status, count in bad.items())
    first = f"; first: {examples[0]}" if examples else ""
    raise DataFormatError(path, f"none of its boxes can be labelled ({said}){first}")


def statuses_of(table: BoxTable) -> dict[str, int]:
    """Return the boxes of each status that the records alone decide."""
    counts: Counter[str] = Counter()
    for batch in table.batches("status"):
        found = batch["status"].value_counts()
        counts.update(dict(zip(*(part.to_pylist() for part in found.flatten()), strict=True)))
    return dict(counts)


def workers_of(config: LabelConfig) -> int:
    """Return the number of threads that read images; more than four bring little."""
    return min(4, os.cpu_count() or 1) if config.workers is None else config.workers


def check_images(config: LabelConfig, table: BoxTable, folder: ImageFolder) -> dict[str, int]:
    """Return the boxes of each status if every image is what its header says.

    Args:
        config: For the largest image and the number of threads.
        table: Its `problems` get a line for each bad image.
        folder: Where the images are.
    """
    codes: list[int] = []
    with Progress(table.images.num_rows, "images", "check") as progress:
        for errors in check_headers(table, folder, config.max_pixels, workers_of(config)):
            for error in errors:
                status, kind = STATUS_OK, UNSETTLED
                if isinstance(error, BadImage):
                    status, kind = skipped(error.status), f"{error.status}-file"
                codes.append(HEADER_STATUS.index(status))
                if error:
                    table.problems.add(kind, str(error))
            progress.advance(len(errors))
    code = np.array([*codes, 0])  # the last is for boxes of unknown images, whose row is -1
    counts: dict[str, int] = {}
    for batch in table.batches("status", "image"):
        found = code[batch["image"].to_numpy()]
        for status, header in zip(batch["status"].to_pylist(), found, strict=True):
            name = HEADER_STATUS[header] if status == STATUS_OK else status
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def report_problems(problems: Problems, kinds: Sequence[str] = ()) -> None:
    """Name on stderr what is wrong, of some kinds or all: totals, and the first ten of each."""
    for kind, count in sorted(problems.counts.items()):
        if not kinds or kind in kinds:
            log(f"{kind}: {count}")
            for example in filter(None, problems.examples.get(kind, [])):
                log(f"  {example}")


def refuse_problems(path: Path, problems: Problems) -> None:
    """Refuse records that cannot be used: what `--strict` asks for.

    Raises:
        DataFormatError: There are any.
    """
    counts = sorted(problems.counts.items())
    if counts:
        examples = [example for shown in problems.examples.values() for example in shown]
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
        raise DataFormatError(path, f"--strict: {kinds}; first: {examples[0]}")


def check_headers(
    table: BoxTable, folder: ImageFolder, max_pixels: int, workers: int
) -> Iterator[list[BadImage | str | None]]:
    """Yield what is wrong with each image of the table, in order, some thousand at a time.

    A text is no failure: it says what `check_image` could not settle.

    Args:
        table: Images without a name or a size are left to its own `problems`.
        folder: Where they are.
        max_pixels: Larger ones are wrong.
        workers: Threads that open files.
    """

    def check(record: dict[str, Any]) -> BadImage | str | None:
        hw = (record["height"] or 0, record["width"] or 0)
        if not record["file_name"] or min(hw) <= 0:
            return None
        try:
            return check_header(folder, record["file_name"], hw, max_pixels)
        except BadImage as error:
            return error

    columns = table.images.select(["file_name", "height", "width"])
    with ThreadPoolExecutor(max(workers, 1), "malcli") as pool:
        for begin in range(0, columns.num_rows, CHECKED):
            yield list(pool.map(check, columns.slice(begin, CHECKED).to_pylist()))
