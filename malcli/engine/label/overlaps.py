"""`label --overlaps`: masks of neighbouring boxes that share no pixel, image by image."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from malcli.engine.label.parts import Outcome
from malcli.geometry.overlaps import without_overlaps
from malcli.geometry.rle import area, empty_rle
from malcli.records import STATUS_EMPTY, STATUS_OK, Rle


def settle_contested(
    outcomes: Sequence[Outcome], images: Sequence[int], rule: str
) -> list[Outcome]:
    """Return the outcomes with each contested pixel left to one mask.

    Args:
        outcomes: Of whole images.
        images: The image of each.
        rule: `smaller`: the smaller mask keeps it; `score`: the one with the higher score.

    Returns:
        In the order of the images; a mask that loses all its pixels is empty.
    """
    found: list[Outcome] = []
    pairs = sorted(zip(images, outcomes, strict=True), key=lambda pair: (pair[0], pair[1].row))
    for _, group in groupby(pairs, key=itemgetter(0)):
        found += _of_image([outcome for _, outcome in group], rule)
    return found


def _of_image(outcomes: list[Outcome], rule: str) -> list[Outcome]:
    with_mask = [outcome for outcome in outcomes if outcome.status == STATUS_OK]
    kept = [outcome for outcome in outcomes if outcome.status != STATUS_OK]
    if rule == "smaller":
        ranks = [float(outcome.area or 0) for outcome in with_mask]
    else:
        ranks = [-(outcome.score or 0.0) for outcome in with_mask]
    masks = without_overlaps([_mask_of(outcome) for outcome in with_mask], ranks)
    return kept + [_with_mask(one, mask) for one, mask in zip(with_mask, masks, strict=True)]


def _mask_of(outcome: Outcome) -> Rle:
    assert outcome.height is not None
    assert outcome.width is not None
    assert outcome.counts is not None
    return Rle(size=[outcome.height, outcome.width], counts=outcome.counts)


def _with_mask(outcome: Outcome, mask: Rle) -> Outcome:
    """Return the outcome with another mask; without a pixel it is empty."""
    left = area(mask)
    if left:
        return outcome._replace(counts=mask["counts"], area=left)
    counts = empty_rle((mask["size"][0], mask["size"][1]))["counts"]
    return outcome._replace(status=STATUS_EMPTY, counts=counts, area=0, score=0.0)
