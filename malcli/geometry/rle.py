"""COCO run lengths: encode a crop without building its image, decode with checks, measure.

A run-length string holds the lengths of runs in column-major order, zeros first, as base-32 varints
of differences to the length two places before (from the fourth on). pycocotools does the work in C,
but returns uninitialised memory for strings whose lengths do not add up, so every string of unknown
origin goes through `check_rle` first. This module knows nothing of files or instances.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from malcli.messages import short
from malcli.records import Rle

# pycocotools counts pixels in 32 bits and draws polygons on a grid of fifths in 31 bits, up to ten
# images away (FAR): beyond either it writes wrong masks or beyond its memory.
MAX_PIXELS = 2**32 - 1
MAX_SIDE = 2**24
# Seven base-32 digits hold every length up to MAX_PIXELS; longer ones are garbage.
MAX_DIGITS = 7
# Edges are walked point by point: a point a billion pixels away would take gigabytes.
FAR = 10.0
# Steps of a fifth of a pixel along the edges of a record's polygons; each takes 16 bytes.
MAX_STEPS = 2**25
MIN_NUMBERS = 6  # of a polygon: three points


class RleError(ValueError):
    """A mask cannot be understood; the message says why, without the place."""


def hw_of(rle: Rle) -> tuple[int, int]:
    """Return (height, width) of the image that a mask is of."""
    return rle["size"][0], rle["size"][1]


def is_too_large(image_hw: Sequence[float]) -> bool:
    """Return whether an image of (height, width) pixels has more than run lengths can count."""
    height, width = image_hw
    return height > MAX_SIDE or width > MAX_SIDE or height * width > MAX_PIXELS


def encode_crop(
    mask_hw: NDArray[np.bool_] | NDArray[np.uint8], x: int, y: int, image_hw: tuple[int, int]
) -> Rle:
    """Return the RLE of an image whose only foreground is a crop's mask, without the image.

    Args:
        mask_hw: (h, w) bool or 0/1 uint8.
        x: Image column of the mask's first column, pixels.
        y: Image row of the mask's first row, pixels.
        image_hw: (height, width) of the image; the mask lies inside.

    Returns:
        Byte for byte what pycocotools gives for the whole image.

    Raises:
        ValueError: The mask leaves the image.
    """
    (height, width), (rows, columns) = image_hw, mask_hw.shape
    if x < 0 or y < 0 or x + columns > width or y + rows > height:
        raise ValueError(f"a {rows} x {columns} mask at row {y}, column {x} leaves {image_hw}")
    if not mask_hw.any():
        return empty_rle(image_hw)
    after = width - x - columns
    # The zero column makes the strip end in background, as the image does.
    strip = np.zeros((height, columns + (after > 0)), dtype=np.uint8, order="F")
    strip[y : y + rows, :columns] = mask_hw
    counts: bytes = coco_mask.encode(strip)["counts"]
    if x > 0:
        counts = _add_to_first(counts, x * height)
    if after > 1:
        counts = _add_to_last(counts, (after - 1) * height)
    return Rle(size=[height, width], counts=counts.decode("ascii"))


def empty_rle(image_hw: tuple[int, int]) -> Rle:
    """Return the RLE of a mask without foreground."""
    height, width = image_hw
    return Rle(size=[height, width], counts=_digits(height * width).decode("ascii"))


def _add_to_first(counts: bytes, amount: int) -> bytes:
    """Return counts with the first length grown; no later difference refers to it."""
    end = 1
    while (counts[end - 1] - 48) & 32:
        end += 1
    return _digits(_number(counts[:end]) + amount) + counts[end:]


def _add_to_last(counts: bytes, amount: int) -> bytes:
    """Return counts with the last length grown; its difference grows by as much."""
    begin = len(counts) - 1
    while begin > 0 and (counts[begin - 1] - 48) & 32:
        begin -= 1
    return counts[:begin] + _digits(_number(counts[begin:]) + amount)


def _number(digits: bytes) -> int:
    """Return the signed number of one varint."""
    value = 0
    for place, char in enumerate(digits):
        value |= ((char - 48) & 31) << (5 * place)
    return value - (1 << (5 * len(digits))) if (digits[-1] - 48) & 16 else value


def _digits(number: int) -> bytes:
    """Return the varint of a signed number."""
    out = bytearray()
    while True:
        digit = number & 31
        number >>= 5
        if number == (-1 if digit & 16 else 0):
            out.append(digit + 48)
            return bytes(out)
        out.append((digit | 32) + 48)


def run_lengths(counts: str) -> NDArray[np.int64]:
    """Return the lengths of the runs of a compressed string, zeros first.

    Raises:
        RleError: The string is no sequence of varints.
    """
    return run_lengths_of([counts])[0]


def run_lengths_of(strings: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the run lengths of many strings at once.

    Raises:
        RleError: One of the strings is no sequence of varints.
    """
    encoded = [_ascii(text) for text in strings]
    char = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int64) - 48
    bounds = np.cumsum([len(text) for text in encoded])
    last = (char & 32) == 0
    if char.size == 0 or not (last[bounds - 1].all() and ((char >= 0) & (char < 64)).all()):
        raise RleError("its counts are not run lengths")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    length = ends - starts
    if length.max() > MAX_DIGITS:
        raise RleError("its counts are not run lengths")
    place = np.arange(char.size) - np.repeat(starts, length)
    value = np.add.reduceat((char & 31) << (5 * place), starts)
    negative = (char[ends - 1] & 16) > 0
    if (negative & (length == MAX_DIGITS)).any():  # pycocotools reads these as other numbers
        raise RleError("one of its runs is 2^29 pixels shorter than the one before of its kind")
    value -= np.where(negative, np.int64(1) << (5 * length), 0)
    splits = np.searchsorted(ends, bounds)
    return _undo_differences(value, splits + 1)


def _ascii(text: str) -> bytes:
    """Return the bytes of a non-empty ASCII string."""
    if not text or not text.isascii():
        raise RleError("its counts are not run lengths")
    return text.encode("ascii")


def _undo_differences(value: NDArray[np.int64], stops: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return lengths from differences: from index 3 on, each refers two places back."""
    starts = np.concatenate([[0], stops[:-1]])
    index = np.arange(value.size) - np.repeat(starts, stops - starts)
    lengths = np.where(index == 0, value, 0)
    for parity in (0, 1):
        chain = (index % 2 == parity) & (index > 0)
        total = np.cumsum(np.where(chain, value, 0))
        before = np.concatenate([[0], total])[starts]
        lengths = np.where(chain, total - np.repeat(before, stops - starts), lengths)
    return np.split(lengths, stops[:-1])


def check_rle(rle: object, image_hw: tuple[int, int]) -> None:
    """Refuse a compressed mask that is not one of an image of this size.

    Args:
        rle: Anything; a good one has `size` [height, width] and `counts`, str.
        image_hw: (height, width), pixels.

    Raises:
        RleError: Wrong size, or counts that are garbage or do not add up.
    """
    counts = _counts_of(rle, image_hw)
    if not isinstance(counts, str):
        raise RleError("its counts are not a string")
    _check_lengths(run_lengths(counts), image_hw)


def _counts_of(rle: object, image_hw: tuple[int, int]) -> object:
    """Return the counts of an RLE whose size is that of the image."""
    if not isinstance(rle, dict):
        raise RleError("it is not an RLE object")
    _refuse_size(image_hw)
    size = rle.get("size")
    if not isinstance(size, list | tuple) or list(size) != list(image_hw):
        raise RleError(f"its size is {short(size)}, the image's {list(image_hw)}")
    return rle.get("counts")


def _refuse_size(image_hw: tuple[int, int]) -> None:
    if is_too_large(image_hw):
        raise RleError(
            f"its image of {image_hw[0]} x {image_hw[1]} pixels is larger than masks can be "
            f"(sides up to {MAX_SIDE}, {MAX_PIXELS} pixels)"
        )


def _check_lengths(lengths: NDArray[np.int64], image_hw: tuple[int, int]) -> None:
    pixels = image_hw[0] * image_hw[1]
    if lengths.size == 0 or lengths.min() < 0 or lengths.sum() != pixels:
        raise RleError(f"its run lengths do not add up to the image's {pixels} pixels")


def find_good(rles: Sequence[object], sizes_hw: Sequence[tuple[int, int]]) -> set[int]:
    """Return which of many masks can be used as they are; faster than one by one.

    `from_segmentation` says what is wrong with the others, or writes them as pycocotools wants.
    """
    good: set[int] = set()
    for begin in range(0, len(rles), 1024):
        group = range(begin, min(begin + 1024, len(rles)))
        try:
            counts = [_counts_of(rles[i], sizes_hw[i]) for i in group]
            strings = [text for text in counts if isinstance(text, str)]
            lengths = run_lengths_of(strings)
            if len(strings) == len(group) and _all_add_up(lengths, [sizes_hw[i] for i in group]):
                good.update(group)
                continue
        except RleError:
            pass  # one by one
        good.update(i for i in group if _is_good(rles[i], sizes_hw[i]))
    return good


def _is_good(rle: object, image_hw: tuple[int, int]) -> bool:
    try:
        counts = _counts_of(rle, image_hw)
        return isinstance(counts, str) and _all_add_up([run_lengths(counts)], [image_hw])
    except RleError:
        return False


def _all_add_up(lengths: list[NDArray[np.int64]], sizes: list[tuple[int, int]]) -> bool:
    """Return whether runs have their images' pixels, and none but a first one is empty."""
    flat = np.concatenate(lengths)
    starts = np.cumsum([0] + [part.size for part in lengths[:-1]])
    wanted = np.array([height * width for height, width in sizes])
    empty = int((flat == 0).sum() - (flat[starts] == 0).sum())
    return bool(flat.min() >= 0 and not empty and (np.add.reduceat(flat, starts) == wanted).all())


def has_mask(value: object) -> bool:
    """Return whether a `segmentation` says a mask; tools write None, [], {} or [[]] for none."""
    if isinstance(value, list | tuple):
        return any(has_mask(part) for part in value)
    return value is not None and value != {}


def from_segmentation(value: object, image_hw: tuple[int, int]) -> Rle:
    """Return the RLE of a COCO `segmentation`: polygons, uncompressed or compressed RLE.

    Args:
        value: As read from JSON; compressed counts may be bytes, too.
        image_hw: (height, width), pixels.

    Raises:
        RleError: It is none of the three, of another size, or damaged.
    """
    _refuse_size(image_hw)
    if isinstance(value, list | tuple):
        return _from_polygons(value, image_hw)
    counts = _counts_of(value, image_hw)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if isinstance(counts, str):
        lengths = run_lengths(counts)
        _check_lengths(lengths, image_hw)
        if lengths[1:].all():
            return Rle(size=list(image_hw), counts=counts)
        return _from_lengths(lengths.tolist(), image_hw)
    if isinstance(counts, list) and all(type(count) is int for count in counts):
        if sum(counts) != image_hw[0] * image_hw[1] or min(counts) < 0:
            raise RleError("its run lengths do not add up to the image's pixels")
        return _from_lengths(counts, image_hw)
    raise RleError("its counts are neither a string nor a list of whole numbers")


def _from_lengths(lengths: list[int], image_hw: tuple[int, int]) -> Rle:
    """Return the RLE of runs; an empty one between two is left out, and these are one.

    Of empty runs pycocotools finds boxes outside the image, and no overlap.
    """
    kept = lengths[:1]
    for place, length in enumerate(lengths[1:], 1):
        if not length:
            continue
        if len(kept) % 2 == place % 2:
            kept.append(length)
        else:
            kept[-1] += length
    plain = {"size": list(image_hw), "counts": kept}
    rle = _as_text(coco_mask.frPyObjects(plain, *image_hw))
    run_lengths(rle["counts"])  # those that pycocotools itself could not read are refused
    return rle


def _from_polygons(polygons: Sequence[object], image_hw: tuple[int, int]) -> Rle:
    """Return the union of polygons; a flat list of numbers is one polygon."""
    if polygons and not any(isinstance(part, list | tuple) for part in polygons):
        polygons = [polygons]
    parts = [_points(part, image_hw) for part in polygons]
    # A part of two points or less encloses nothing: it adds no pixel, as in pycocotools.
    checked = [part for part in parts if len(part) >= MIN_NUMBERS]
    if not checked:
        raise RleError("none of its polygons has three points")
    if sum(map(_steps, checked)) > MAX_STEPS:
        raise RleError("its polygons have edges of millions of pixels")
    drawn = coco_mask.frPyObjects(checked, *image_hw)
    for part in drawn if image_hw[0] * image_hw[1] >= 2**29 else ():
        run_lengths(part["counts"].decode("ascii"))  # merging those reads them wrongly
    rle = _as_text(coco_mask.merge(drawn))
    run_lengths(rle["counts"])
    return rle


def _steps(polygon: list[float]) -> float:
    """Return how many points pycocotools makes along a polygon's edges."""
    corners = np.array(polygon).reshape(-1, 2)
    edges = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
    return float(5 * edges.sum())


def _points(polygon: object, image_hw: tuple[int, int]) -> list[float]:
    """Return x0 y0 x1 y1 ... as floats; a last x without its y is left, as in pycocotools."""
    if not isinstance(polygon, list | tuple):
        raise RleError("a polygon is no list of numbers")
    limit = FAR * max(image_hw) + 100
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in polygon):
        raise RleError("a polygon holds something else than numbers")
    if not all(abs(number) <= limit for number in polygon):  # NaN is below nothing
        raise RleError("a polygon's point is not finite, or far outside the image")
    return [float(number) for number in polygon[: len(polygon) // 2 * 2]]


def _as_text(rle: dict[str, Any]) -> Rle:
    counts = rle["counts"]
    return Rle(size=[int(side) for side in rle["size"]], counts=counts.decode("ascii"))


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an RLE.

    Raises:
        RleError: Its counts are garbage or do not add up to its size.
    """
    check_rle(rle, (rle["size"][0], rle["size"][1]))
    return cast(NDArray[np.bool_], coco_mask.decode(rle).astype(bool))


def decode_windows(
    rles: Sequence[Rle], windows: Sequence[tuple[int, int, int, int]]
) -> list[NDArray[np.uint8]]:
    """Return the pixels of checked masks in one window each, (h, w) 0/1, without their images.

    Args:
        rles: Checked.
        windows: As many x0 y0 x1 y1, whole pixels inside the image.
    """
    masks = []
    lengths = run_lengths_of([rle["counts"] for rle in rles]) if rles else []
    for rle, runs, (x0, y0, x1, y1) in zip(rles, lengths, windows, strict=True):
        height = rle["size"][0]
        edges = np.concatenate([[0], np.cumsum(runs)])
        kept = np.diff(np.clip(edges, x0 * height, x1 * height))
        value = (np.arange(kept.size) % 2).astype(np.uint8)
        masks.append(np.repeat(value, kept).reshape(x1 - x0, height)[:, y0:y1].T)
    return masks


def area(rle: Rle) -> int:
    """Return the pixels of a checked RLE."""
    return int(coco_mask.area(rle))


def rle_box(rle: Rle) -> tuple[int, int, int, int]:
    """Return x y w h of a checked RLE's foreground, pixels; zeros if there is none."""
    x, y, w, h = (int(side) for side in coco_mask.toBbox(rle))
    return x, y, w, h


def paired_iou(a: Sequence[Rle], b: Sequence[Rle]) -> NDArray[np.float64]:
    """Return the IoU of each a with its b, (N,); 0 where both are empty.

    Args:
        a: Checked masks.
        b: As many, of the same sizes.
    """
    iou = np.zeros(len(a))
    # Few at a time: one call has a fixed cost, but also looks at every a with every b.
    for begin in range(0, len(a), 4):
        part = slice(begin, begin + 4)
        grid = coco_mask.iou(a[part], b[part], [0] * len(b[part]))
        iou[part] = np.diagonal(grid)
    return np.maximum(iou, 0)
