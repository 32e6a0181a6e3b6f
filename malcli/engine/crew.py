"""What other processes of the same labelling command finish meanwhile, for the progress line."""

import time
from collections.abc import Collection

from malcli.engine.parts import PartFolder

LOOK_SECONDS = 5.0  # between looks at the folder, which may be on another machine


class Crew:
    """Counts boxes of parts that others finish.

    Args:
        parts: The parts of the job.
        theirs: Those that other processes of the command do.
    """

    def __init__(self, parts: PartFolder, theirs: Collection[int]) -> None:
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
