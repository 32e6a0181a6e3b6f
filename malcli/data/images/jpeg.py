"""Finds JPEGs that end before their picture does. Knows nothing of files and folders.

A JPEG that was cut and given an end marker (by a download tool, or a "repair") is valid for every
decoder: the missing blocks come out as flat grey, and libjpeg's warning does not reach Pillow's
callers. Here the question is put to the decoder itself: bytes that follow a whole scan are
skipped, bytes that follow a cut one are decoded and change the picture.
"""

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

CORNER = 8  # pixels of the last row that are looked at
GREY = (127, 128)  # blocks without data, in RGB, grey and (inverted) CMYK
LAST_BITS = 0x10  # Ah << 4 | Al of a scan that adds the lowest bit to coefficients (T.81, B.2.3)
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # with its fill bytes; no restarts
_START_OF_SCAN, _END_OF_IMAGE, _RESTART_INTERVAL = b"\xda", b"\xd9", b"\xdd"
# Bytes that decode to something from whatever bit they start at.
_FILLERS = (bytes(range(1, 255)), bytes(range(254, 0, -1)))


@dataclass(frozen=True)
class Scans:
    """The scans of a JPEG.

    Attributes:
        ends: Where the data of each ends.
        approximation: The last one's successive approximation, Ah << 4 | Al; of a whole file's
            last scan, Al is 0.
        restarts: The data have restart markers.
    """

    ends: tuple[int, ...]
    approximation: int
    restarts: bool


def may_be_cut(image: Image.Image) -> bool:
    """Return whether a decoded image needs the closer look of `is_cut`, at next to no cost.

    A JPEG does if its last pixels have the grey of missing blocks, or if it is progressive, where
    what is missing may only be blurred. Decoders of other formats say that a file was cut.
    """
    if image.format not in ("JPEG", "MPO"):
        return False
    if image.info.get("progressive"):
        return True
    width, height = image.size
    last = np.asarray(image.crop((max(width - CORNER, 0), height - 1, width, height)))
    return bool(GREY[0] <= last.min() and last.max() <= GREY[1])


def is_cut(raw: bytes, image: Image.Image) -> bool:
    """Return whether a JPEG ends before all of its scans and blocks are there.

    Not found, since they hardly show: a last column of blocks that is a pixel or two wide, and
    what misses of the progressive scans that add the lowest bit of coefficients.

    Args:
        raw: The file.
        image: What it decodes to, loaded.
    """
    scans = find_scans(raw)
    if scans.approximation & 0xF:
        return True
    if scans.approximation == LAST_BITS:
        return False
    pixels = np.asarray(image)
    for filler in _FILLERS:
        if scans.restarts:  # those of a cut file wait for the next restart marker
            filler += b"".join(bytes([0xFF, 0xD0 + n]) + filler for n in range(8))
        starts = (0, *scans.ends)
        parts = [raw[a:b] for a, b in zip(starts, scans.ends, strict=False)]
        longer = filler.join([*parts, raw[starts[-1] :]])
        with Image.open(io.BytesIO(longer), formats=("JPEG",)) as other:
            if not np.array_equal(pixels, np.asarray(other)):
                return True
    return False


def find_scans(raw: bytes) -> Scans:
    """Return where the scans of a JPEG's first image end."""
    at, ends, approximation, restarts = 2, [], 0, False
    while (marker := _MARKER.search(raw, at)) and marker[1] != _END_OF_IMAGE:
        at = marker.end() + int.from_bytes(raw[marker.end() : marker.end() + 2], "big")
        if marker[1] == _RESTART_INTERVAL:
            restarts = True
        elif marker[1] == _START_OF_SCAN:
            approximation = raw[at - 1] if at <= len(raw) else 0
            after = _MARKER.search(raw, at)
            at = after.start() if after else len(raw)
            ends.append(at)
    return Scans(tuple(ends), approximation, restarts)
