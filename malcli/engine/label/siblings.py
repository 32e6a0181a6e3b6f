"""Several processes of one labelling command: what others finish meanwhile, the results of all.

Each process does its share without the others; these functions only tell the user.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malcli.engine.inputs import FILE_KINDS

if TYPE_CHECKING:
    from malcli.engine.label.parts import PartFolder

LOOK_SECONDS = 5.0  # between looks at the folder, which may be on another machine
RESULTS = "MALCLI_RESULTS"  # variable that names the folder for results


class Siblings:
    """Counts boxes of parts that others finish.

    Args:
        parts: The parts of the job.
        theirs: Those that other processes of the command do.
    """

    def __init__(self, parts: "PartFolder", theirs: Collection[int]) -> None:
        """Nothing of theirs is known yet."""
        self._parts = parts
        self._left = set(theirs)
        self._next = 0.0

    def news(self) -> int:
        """Return the boxes of parts that were finished since the last look, a while ago."""
        now = time.monotonic()
        if not self._left or now < self._next:
            return 0
        self._next = now + LOOK_SECONDS
        done = self._left & self._parts.present()
        self._left -= done
        return sum(len(self._parts.rows(index)) for index in done)


def hand_in(result: Mapping[str, Any], labelled: tuple[int, float]) -> bool:
    """Leave a result where the process that started this one looks for it.

    Args:
        result: The object of `malcli label --json`.
        labelled: Boxes that this process did, and the seconds that it took.

    Returns:
        False if no process started this one, or its folder cannot be written to.
    """
    folder = os.environ.get(RESULTS)
    if folder is None:
        return False
    values = {**result, "labelled": labelled}
    try:
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(values), encoding="utf-8")
    except OSError:  # full, such as /tmp; the labels are elsewhere
        return False
    return True


def combine(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the results of all processes as one.

    Args:
        results: As `hand_in` left them.

    Returns:
        As of one process: the whole job's counts if one of them merged, else those of the shares;
        seconds and memory of all; boxes a second over the time of the slowest.
    """
    merged = [one for one in results if one["merged"]]
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for one in merged[:1] or results:
        counts.update(one["counts"])
    for one in results:
        seconds.update(one["seconds"])
    boxes, times = zip(*(one["labelled"] for one in results), strict=True)
    kept = {key: value for key, value in results[0].items() if key != "labelled"}
    return kept | {
        "counts": dict(sorted(counts.items())),
        "boxes_per_s": round(sum(boxes) / max(times), 3) if max(times) else 0.0,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": round(sum(one["peak_memory_mb"] for one in results), 1),
        "merged": bool(merged),
        "problems": _all_problems([one["problems"] for one in results]),
    }


def _all_problems(problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is wrong: each process has seen all records, but only its own files."""
    found: dict[str, Any] = {}
    for one in problems:
        for kind, new in one.items():
            old = found.get(kind)
            if old is None or kind not in FILE_KINDS:
                found[kind] = old or new
            else:
                examples = [*old["examples"], *new["examples"]][:10]
                found[kind] = {"count": old["count"] + new["count"], "examples": examples}
    return dict(sorted(found.items()))
