"""Bounds the memory of all threads of a job together, by the pixels that they work on.

The number of threads says little about memory: an image may have a thousand times the pixels of
another. Knows nothing of images and boxes.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# At up to 8 bytes a pixel while an image is decoded this is 0.5 GB; the largest image that
# --max-pixels admits goes alone, with 1.4 GB.
PIXELS = 60_000_000


class PixelBudget:
    """Lets threads work on so many pixels at once; what is larger than all goes alone.

    Args:
        pixels: How many.
    """

    def __init__(self, pixels: int = PIXELS) -> None:
        """Nothing is taken yet."""
        self._free = threading.Condition()
        self._pixels = pixels
        self._taken = 0

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Take pixels for the block, as soon as there is room for them.

        The block waits for no other thread, so it ends, and with it every wait here.
        """
        with self._free:
            self._free.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            if pixels > self._pixels // 2:
                _give_back()
            with self._free:
                self._taken -= pixels
                self._free.notify_all()


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps what each thread used for that thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return
