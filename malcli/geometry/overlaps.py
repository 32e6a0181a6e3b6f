"""Who gets the pixels that the masks of two neighbours claim: one owner a pixel."""

from collections.abc import Sequence

import numpy as np

from malcli.geometry.rle import decode_windows, encode_crop, rle_box
from malcli.records import Rle


def without_overlaps(rles: Sequence[Rle], ranks: Sequence[float]) -> list[Rle]:
    """Return the masks of an image with every pixel left to the claimant of the lowest rank.

    Args:
        rles: Checked masks, all of one size.
        ranks: As many; of equal ones the first mask wins.

    Returns:
        Masks of which no two share a pixel; their union is that of the given ones.
    """
    if not rles:
        return []
    height, width = rles[0]["size"]
    windows = []
    for rle in rles:
        x, y, w, h = rle_box(rle)
        windows.append((x, y, x + w, y + h))
    places = [np.s_[y0:y1, x0:x1] for x0, y0, x1, y1 in windows]
    owner_HW = np.full((height, width), -1, dtype=np.int64)
    masks = decode_windows(rles, windows)
    # Painted from the last to the first, so that the first one stays.
    for index in sorted(range(len(rles)), key=lambda index: (ranks[index], index), reverse=True):
        owner_HW[places[index]][masks[index] > 0] = index
    return [
        encode_crop(owner_HW[place] == index, x0, y0, (height, width))
        for index, (place, (x0, y0, _, _)) in enumerate(zip(places, windows, strict=True))
    ]
