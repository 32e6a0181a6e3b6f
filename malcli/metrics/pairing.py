"""Which predicted instance belongs to which human one: by annotation id, else by its box.

Works on columns of ids, categories and boxes; knows nothing of masks' content or of files.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from malcli.records import Rle

# Boxes agree if no corner differs by more than this: formats round, some to whole pixels.
BOX_TOLERANCE = 1.0


@dataclass(frozen=True)
class Instances:
    """Columns of the instances of one side, N rows.

    Attributes:
        ids: Annotation ids.
        image: (N,) rows of the image list that both sides share.
        category: (N,) category ids.
        xywh: (N, 4) boxes, pixels; NaN where missing or malformed.
        rles: Checked masks of their image's size; None where there is none.
        crowd: (N,) bool.
        score: (N,) confidence.
        area: (N,) as given; NaN where missing.
    """

    ids: list[Hashable]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: NDArray[np.float64]
    rles: list[Rle | None]
    crowd: NDArray[np.bool_]
    score: NDArray[np.float64]
    area: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.ids)


@dataclass(frozen=True)
class Pairs:
    """Human instances with their predictions.

    Attributes:
        human: (M,) rows of the human instances that are no crowd, in order.
        predicted: (M,) row of each one's prediction; -1 if it is missing.
        counts: `instances` = `paired` + `missing`, `unmatched` (predictions without a human
            instance) and `crowd` (human ones left out). A prediction that is empty or was skipped
            is paired: it has a record.
    """

    human: NDArray[np.int64]
    predicted: NDArray[np.int64]
    counts: dict[str, int]


def pair_instances(human: Instances, predicted: Instances) -> Pairs:
    """Pair the instances of two sides that share their image rows and category ids.

    Ids that were renumbered by another tool can point to a wrong instance of the same image, so
    the order is: same id with an agreeing box; same category and agreeing box; same id alone.

    Returns:
        Pairs; crowd is left out on both sides.
    """
    rows = np.flatnonzero(~human.crowd)
    crowd_ids = {(human.ids[i], int(human.image[i])) for i in np.flatnonzero(human.crowd)}
    left = {
        j
        for j in np.flatnonzero(~predicted.crowd).tolist()
        if (predicted.ids[j], int(predicted.image[j])) not in crowd_ids
    }
    by_id: dict[tuple[Hashable, int], int] = {}
    for j in sorted(left):
        by_id.setdefault((predicted.ids[j], int(predicted.image[j])), j)
    same_id = [by_id.get((human.ids[i], int(human.image[i])), -1) for i in rows.tolist()]
    found = np.full(len(human), -1)
    agree = _boxes_agree(human.xywh[rows], predicted.xywh, np.array(same_id, dtype=np.int64))
    _take(zip(rows.tolist(), same_id, strict=True), found, left, lambda n: bool(agree[n]))
    _take_by_box(human, predicted, [i for i in rows.tolist() if found[i] < 0], found, left)
    _take(zip(rows.tolist(), same_id, strict=True), found, left, lambda n: True)
    paired = int((found[rows] >= 0).sum())
    counts = {
        "instances": len(rows),
        "paired": paired,
        "missing": len(rows) - paired,
        "unmatched": len(left),
        "crowd": len(human) - len(rows),
    }
    return Pairs(rows, found[rows], counts)


def _boxes_agree(
    xywh: NDArray[np.float64], others: NDArray[np.float64], partner: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which boxes have all corners near their partner's; False without a partner."""
    agree = np.zeros(len(xywh), dtype=bool)
    has = partner >= 0
    agree[has] = _corner_gap(xywh[has], others[partner[has]]) <= BOX_TOLERANCE
    return agree


def _corner_gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest difference of a corner's coordinate; NaN for a malformed box."""
    start = np.abs(a[..., :2] - b[..., :2])
    end = np.abs(a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:])
    gap: NDArray[np.float64] = np.maximum(start, end).max(axis=-1)
    return gap


def _take(
    pairs: Iterable[tuple[int, int]],
    found: NDArray[np.int64],
    left: set[int],
    accept: Callable[[int], bool],
) -> None:
    """Record the pairs (human row, prediction) that are free and accepted by their position."""
    for n, (i, j) in enumerate(pairs):
        if found[i] < 0 and j in left and accept(n):
            found[i] = j
            left.discard(j)


def _take_by_box(
    human: Instances,
    predicted: Instances,
    rows: list[int],
    found: NDArray[np.int64],
    left: set[int],
) -> None:
    """Record pairs of the same image and category whose boxes agree, nearest first."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for j in sorted(left):
        groups[int(predicted.image[j]), int(predicted.category[j])].append(j)
    candidates: list[tuple[float, int, int]] = []
    for i in rows:
        others = groups.get((int(human.image[i]), int(human.category[i])), [])
        gaps = _corner_gap(human.xywh[i], predicted.xywh[others]).tolist() if others else []
        near = zip(gaps, others, strict=True)
        candidates += [(gap, i, j) for gap, j in near if gap <= BOX_TOLERANCE]
    for _, i, j in sorted(candidates):
        if found[i] < 0 and j in left:
            found[i] = j
            left.discard(j)
