"""Polygons of masks, along the edges of pixels, so that filling them gives the mask again.

The rule for parts and holes: a part (8-connected) is one polygon, and a hole in it is reached by a
bridge of no width from the nearest corner, walked there and back. What fills by even and odd
crossings (pycocotools, cv2) leaves the hole open. Where a format has room for one polygon only, the
parts are joined by such bridges, too. Knows nothing of files.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from malcli.geometry.rle import decode_windows, rle_box
from malcli.records import Rle

Loop = NDArray[np.int64]  # (N, 2) corners x y


def polygons_of(rle: Rle) -> list[list[int]]:
    """Return a checked mask's parts as polygons x0 y0 x1 y1 ..., pixels; none if it is empty."""
    return [part.ravel().tolist() for part in _parts(rle)]


def bridge(loops: Sequence[Loop]) -> Loop:
    """Return one polygon that walks all loops, each reached from the nearest corner of the others.

    Args:
        loops: At least one; the first is walked from its start.
    """
    joined = loops[0]
    for loop in loops[1:]:
        distance = ((joined[:, None] - loop[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([loop[there:], loop[: there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined


def _parts(rle: Rle) -> list[Loop]:
    """Return one polygon for each part of a mask, holes bridged."""
    x, y, w, h = rle_box(rle)
    if not w or not h:
        return []
    (mask,) = decode_windows([rle], [(x, y, x + w, y + h)])
    padded = np.pad(mask, 1)
    _, labels = cv2.connectedComponents(padded, connectivity=8)
    by_part: dict[int, list[Loop]] = {}
    for loop in _loops(padded):
        column, row = loop[0]
        label = int(labels[row : row + 2, column : column + 2].max())
        by_part.setdefault(label, []).append(loop)
    corner = np.array([x, y])
    return [bridge(sorted(loops, key=_extent)) + corner for loops in by_part.values()]


def _extent(loop: Loop) -> int:
    """Return minus the area of a loop's box: the outline comes before the holes in it."""
    return -int(np.prod(np.ptp(loop, axis=0)))


def _loops(padded: NDArray[np.uint8]) -> list[Loop]:
    """Return the outlines of a mask (H, W) with an empty border, corners only, without border.

    In each column the corners pair up to vertical edges, in each row to horizontal ones; a loop
    takes them in turns. Where two pixels meet at a corner only, there are two corners.
    """
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    touch = (a == d) & (b == c) & (a != b)
    count = ((a ^ b ^ c ^ d) & 1) + 2 * touch.astype(np.uint8)
    rows, columns = np.nonzero(count)
    repeats = count[rows, columns]
    y, x = np.repeat(rows, repeats), np.repeat(columns, repeats)
    across = _partners(np.arange(y.size))  # nonzero goes by rows
    along = _partners(np.lexsort((y, x)))
    corners = np.stack([x, y], axis=1)
    loops: list[Loop] = []
    seen = [False] * y.size
    for start in range(y.size):
        walk: list[int] = []
        at = start
        while not seen[at]:
            seen[at] = seen[along[at]] = True
            walk += (at, along[at])
            at = across[along[at]]
        if walk:
            loops.append(corners[walk])
    return loops


def _partners(order: NDArray[np.int64]) -> list[int]:
    """Return the partner of each corner, neighbours in an order being pairs."""
    partner = np.empty(order.size, dtype=np.int64)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    found: list[int] = partner.tolist()
    return found
