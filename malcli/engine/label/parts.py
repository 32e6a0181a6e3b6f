"""The parts of a labelling job: the plan, the part files, and the way back into input order.

    OUT.parts/part-00003.parquet   one row a box of part 3
    OUT.parts/.merge....tmp/       of a merge under way

A part is whole images in input order, about 1,024 boxes; it is the unit of work and of commit, so
results do not depend on shards, processes or restarts. Between its pages and its footer, where no
reader of Parquet looks, lies the SHA-256 of all other bytes: a part that a disk damaged is made
again. Knows nothing of networks, images or jobs.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from malcli.checksums import DamagedError
from malcli.data.boxtable.columns import uncollected
from malcli.data.formats.registry import format_of_output, writer_of
from malcli.errors import OutputError, RunError
from malcli.files import folder_beside, replacing
from malcli.records import BoxTable, Record, to_records
from malcli.report.progress import log

PART_BOXES = 1024
BUCKETS = 200  # files that a merge sorts into; more would meet the limit of open files
BUCKET_ROWS = 65_536  # of a small job
PARTS_READ = 64  # at a time by a merge; one by one, each would put a few rows into every bucket
PART_NAME = re.compile(r"part-(\d+)\.parquet")
MERGED_ROWS = 8192  # records that a writer gets at once
JOB_KEY = b"malcli_job"  # of a part's metadata
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # of the input
        ("status", pa.string()),
        ("height", pa.int32()),  # of the mask, null without one
        ("width", pa.int32()),
        ("counts", pa.string()),  # run lengths of the mask, null without one
        ("area", pa.int64()),
        ("score", pa.float64()),
    ]
)


class Outcome(NamedTuple):
    """A row of a part: what became of a box. Without a mask there is neither area nor score."""

    row: int
    status: str
    height: int | None = None
    width: int | None = None
    counts: str | None = None
    area: int | None = None
    score: float | None = None


def plan(starts: NDArray[np.int64], boxes: int, part_boxes: int) -> NDArray[np.int64]:
    """Return the bounds of the parts, (P + 1,): part i is `order[bounds[i]:bounds[i + 1]]`.

    Args:
        starts: As in BoxTable: where each image begins in `order`, and where the last one ends.
        boxes: Number of boxes; those after the last image have none and may be cut anywhere.
        part_boxes: A part ends at the first end of an image at or beyond this many boxes.
    """
    bounds = [0]
    while bounds[-1] < boxes:
        wanted = bounds[-1] + part_boxes
        if bounds[-1] >= starts[-1]:
            bounds.append(min(wanted, boxes))
        else:
            place = int(np.searchsorted(starts, wanted))
            bounds.append(int(starts[min(place, len(starts) - 1)]))
    return np.array(bounds, dtype=np.int64)


class PartFolder:
    """The part files of one output.

    Args:
        path: The folder.
        table: The boxes.

    Attributes:
        job: What the parts say of their job, and what only those that count say; set once the
            job's manifest is known.
    """

    def __init__(self, path: Path, table: BoxTable) -> None:
        """Plan the parts; nothing is read or written yet."""
        self.path = path
        self.table = table
        self.job = ""
        self.bounds = plan(table.starts, table.boxes.num_rows, PART_BOXES)
        self._done: dict[int, Counter[str]] = {}  # parts with their boxes of each status

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.bounds) - 1

    def rows(self, index: int) -> NDArray[np.int64]:
        """Return the rows of a part's boxes, those of an image next to each other."""
        return self.table.order[self.bounds[index] : self.bounds[index + 1]]

    def file(self, index: int) -> Path:
        """Return the path of a part."""
        return self.path / f"part-{index:05d}.parquet"

    def is_done(self, index: int) -> bool:
        """Return whether a part is there, whole, this job's, and holds the part's boxes.

        A damaged one is told; what was found once is not looked at again.
        """
        if index not in self._done:
            try:
                part = self._read(index)
                if part.schema != SCHEMA:
                    raise ValueError("has other columns")
                if not np.array_equal(part["row"].to_numpy(), np.sort(self.rows(index))):
                    raise ValueError("holds other boxes")
            except FileNotFoundError:
                return False
            except OutputError:  # another job's
                return False
            except (OSError, ValueError, pa.ArrowException) as error:
                reason = str(error).partition("\n")[0][:80]
                log(f"{self.file(index)}: cannot be used ({reason}); it has to be made again")
                return False
            self._done[index] = Counter(part["status"].to_pylist())
        return True

    def missing(self, share: Sequence[int] | None = None) -> list[int]:
        """Return the parts of a share (None: all) that are not done."""
        parts = range(len(self)) if share is None else share
        return [index for index in parts if not self.is_done(index)]

    def present(self) -> set[int]:
        """Return the parts whose file is there, whole or not: one look at the folder."""
        with contextlib.suppress(FileNotFoundError):
            names = (PART_NAME.fullmatch(entry.name) for entry in os.scandir(self.path))
            return {int(name[1]) for name in names if name}
        return set()

    def write(self, index: int, outcomes: Sequence[Outcome]) -> None:
        """Commit a part: one outcome a box, in any order.

        Raises:
            OutputError: The folder cannot be written to.
            RunError: The disk is full.
        """
        names, columns = SCHEMA.names, zip(*sorted(outcomes, key=itemgetter(0)), strict=True)
        schema = SCHEMA.with_metadata({JOB_KEY: self.job})
        table = pa.table(dict(zip(names, map(list, columns), strict=True)), schema=schema)
        with replacing(self.file(index), sweep=False) as temporary:  # goes with the whole folder
            made = io.BytesIO()
            pq.write_table(table, made, compression="zstd")
            temporary.write_bytes(_sealed(made.getvalue()))
        self._done[index] = Counter(one.status for one in outcomes)

    def count(self, share: Sequence[int] | None = None) -> dict[str, int]:
        """Return the boxes of each status in a share's parts (None: all); they are done."""
        counts: Counter[str] = Counter()
        for index in range(len(self)) if share is None else share:
            counts.update(self._done[index])
        return dict(sorted(counts.items()))

    def in_order(self, scratch: Path) -> Iterator[pa.Table]:
        """Yield the columns of all boxes in input order, a bounded number of rows at a time.

        Sorts on disk: rows go to files by range, and each file fits into memory.

        Args:
            scratch: A folder for those files.

        Raises:
            OutputError: A part has been replaced by another job's since it was done.
        """
        boxes = self.table.boxes.num_rows
        size = max(BUCKET_ROWS, -(-boxes // BUCKETS))
        bounds = np.arange(0, boxes + size, size)
        files = [scratch / f"bucket-{number}" for number in range(-(-boxes // size))]
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(pa.ipc.new_stream(str(file), SCHEMA)) for file in files]
            for begin in range(0, len(self), PARTS_READ):
                group = range(begin, min(begin + PARTS_READ, len(self)))
                rows = _sorted([self._read_again(index) for index in group])
                places = np.searchsorted(rows["row"].to_numpy(), bounds)
                for number, (start, stop) in enumerate(pairwise(places)):
                    if stop > start:
                        writers[number].write_table(rows.slice(start, stop - start))
        for file in files:
            with pa.ipc.open_stream(str(file)) as reader:
                yield _sorted([reader.read_all()])
            file.unlink()

    def outcomes(self, index: int) -> list[Outcome]:
        """Return what became of the boxes of a part, or of those that its file holds.

        Raises:
            ValueError: It is damaged.
            OSError: It cannot be read.
            OutputError: It is another job's.
        """
        return [Outcome(**row) for row in self._read(index).to_pylist()]

    def _read(self, index: int) -> pa.Table:
        """Return a part of this job.

        Raises:
            DamagedError: Its checksum differs.
            OutputError: It is another job's.
        """
        content = self.file(index).read_bytes()
        if not _is_sealed(content):
            raise DamagedError
        with pq.ParquetFile(io.BytesIO(content)) as file:
            part = file.read(use_threads=False)
        if (part.schema.metadata or {}).get(JOB_KEY) != self.job.encode():
            raise OutputError(
                f"{self.file(index)}: belongs to another job, which has the same --out; give "
                f"another --out, or start the same command again once that job has ended"
            )
        return part.replace_schema_metadata()

    def _read_again(self, index: int) -> pa.Table:
        """Return a part that was found done, maybe days ago."""
        try:
            return self._read(index)
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path}: a part was removed while this job was at work; start the same "
                f"command again"
            ) from error
        except ValueError as error:
            raise RunError(
                f"{self.file(index)}: was damaged since it was made ({error}); start the same "
                f"command again, which makes it again"
            ) from error


def _sealed(content: bytes) -> bytes:
    """Return a Parquet file with the SHA-256 of its bytes before its footer."""
    footer = _footer(content)
    return content[:footer] + hashlib.sha256(content).digest() + content[footer:]


def _is_sealed(content: bytes) -> bool:
    """Return whether a Parquet file is what `_sealed` returned, to the bit."""
    footer = _footer(content)
    seal = max(footer - hashlib.sha256().digest_size, 0)
    rest = hashlib.sha256(content[:seal])
    rest.update(content[footer:])
    return content[seal:footer] == rest.digest()


def _footer(content: bytes) -> int:
    """Return where the footer begins: its length stands before the last four bytes, `PAR1`."""
    return max(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), 0)


def _sorted(tables: list[pa.Table]) -> pa.Table:
    """Return all rows in the order of the input."""
    whole = pa.concat_tables(tables).combine_chunks()  # rows of one chunk are taken much faster
    return whole.take(pa.array(np.argsort(whole["row"].to_numpy(), kind="stable")))


def missing_error(folder: Path, missing: Sequence[int], parts: int) -> RunError:
    """Return the error of a merge that lacks parts; it names the first ten."""
    names = ", ".join(str(index) for index in missing[:10])
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    return RunError(
        f"{folder}: {len(missing)} of {parts} parts are missing: {names}{more}; run the shards "
        f"that they belong to (part i belongs to shard i % N of N)"
    )


def merge(parts: PartFolder, out: Path, stamp: dict[str, Any], check: Callable[[], None]) -> None:
    """Write the output from all parts, in input order, whole or not at all.

    Sorts in a folder of its own, so that two merges at once do not meet: the last one to finish
    replaces the output by equal bytes.

    Args:
        parts: All done.
        out: JSON or Parquet, by its suffix.
        stamp: Becomes `info.malcli`.
        check: Called between batches of records; may raise to end the merge.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    table = dataclasses.replace(parts.table, header=_header(parts.table.header, stamp))
    with folder_beside(parts.path / "merge") as scratch, uncollected():  # a third of the time
        writer_of(format_of_output(out))(out, table, _records(parts, scratch, check))


def _header(header: dict[str, Any], stamp: dict[str, Any]) -> dict[str, Any]:
    """Return the header with `info` first, where a reader of the stamp looks."""
    info = header.get("info", {})
    kept = info if isinstance(info, dict) else {"info": info}
    return {"info": {**kept, "malcli": stamp}} | {
        key: value for key, value in header.items() if key != "info"
    }


def _records(parts: PartFolder, scratch: Path, check: Callable[[], None]) -> Iterator[list[Record]]:
    """Yield the input's annotations with their masks."""
    for columns in parts.in_order(scratch):
        for begin in range(0, columns.num_rows, MERGED_ROWS):
            check()
            made = columns.slice(begin, MERGED_ROWS)
            records = to_records(parts.table.boxes.slice(made["row"][0].as_py(), made.num_rows))
            _put(records, made)
            yield records


def _put(records: list[Record], made: pa.Table) -> None:
    """Set the annotations' masks, areas, scores and statuses; a skipped one keeps its area."""
    columns = (made[name].to_pylist() for name in SCHEMA.names[1:])
    for record, row in zip(records, zip(*columns, strict=True), strict=True):
        status, height, width, counts, area, score = row
        record.pop("malcli_score", None)
        record.pop("malcli_status", None)
        if counts is None:
            record.pop("segmentation", None)
        else:
            record["segmentation"] = {"size": [height, width], "counts": counts}
            record["area"] = area
            record["malcli_score"] = score
        record["malcli_status"] = status
