"""Crop sizes by box size (`--crop-size auto`): tiny boxes get smaller crops, to save time.

The grid of scores is a quarter of the crop, so with four crop pixels for each pixel of the box it
is about as fine as the photograph. Labeler that ships, crops of 192 pixels, defaults of `label`,
`benchmarks/crop_sizes.py` (mIoU in points; in brackets CPU time as a share of that at 192):

    COCO photographs       boxes   at 192          auto          128
    train                    595    69.25  69.19 (0.86)  67.17 (0.43)
    val                      731    68.39  68.13 (0.88)  66.42 (0.41)
    val, small boxes         222    66.79  65.92         65.95

The labeler was fitted on boxes of train, whose human masks chose `DETAIL`; auto on train is put
together from the runs of each size. On val auto loses 0.26 points (95 % interval 0.05 to 0.50),
all of it on small boxes. Larger boxes would lose 1.5 to 6 points at 2/3 or 1/2, and keep their
crops. Not measured on labelers of other crop sizes. Knows nothing of networks.
"""

from collections.abc import Iterable, Iterator, Sequence

from malcli.data.crops.label_crops import Roi

AUTO = "auto"
SHARES = (0.5, 2 / 3)  # of the checkpoint's own crop size, beside the whole of it
DETAIL = 4.0  # crop pixels for each pixel of a box's longest side; 3 loses 0.3 points on train


def crop_sides(given: int | str, native: int, stride: int) -> tuple[int, ...]:
    """Return the sides that a job's crops may have, ascending, pixels; the last is the largest.

    Args:
        given: A side that all crops have, or `auto`.
        native: Side of the crops that the checkpoint was trained with, pixels.
        stride: The encoder's; sides are its multiples.
    """
    if given != AUTO:
        return (int(given),)
    sides = {max(1, round(native * share / stride)) * stride for share in SHARES}
    return (*sorted(side for side in sides if side < native), native)


def side_of(roi: Roi, sides: Sequence[int]) -> int:
    """Return the side of a box's crop: the smallest that shows its detail, else the largest.

    Args:
        roi: The box.
        sides: As `crop_sides` gives them.
    """
    x0, y0, x1, y1 = (roi.window if roi.pixels is None else roi.pixels).tolist()
    needed = DETAIL * max(x1 - x0, y1 - y0)
    return next((side for side in sides if side >= needed), sides[-1])


def same_sided(rois: Iterable[Roi], sides: Sequence[int], count: int) -> Iterator[list[Roi]]:
    """Yield the RoIs in lists of `count` that share a side; the last ones may be shorter.

    RoIs of a side keep their order, so that they make the batches of a job of that side alone.
    """
    waiting: dict[int, list[Roi]] = {side: [] for side in sides}
    for roi in rois:
        batch = waiting[side_of(roi, sides)]
        batch.append(roi)
        if len(batch) == count:
            yield list(batch)
            batch.clear()
    yield from filter(None, waiting.values())
