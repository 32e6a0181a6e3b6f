"""Seconds of work by stage, of all threads of a process together."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator


class Clock:
    """Adds to seconds of work by stage.

    Args:
        seconds: {stage: seconds}, changed in place; None: a new one.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        """Start from what is there."""
        self.seconds = defaultdict(float) if seconds is None else seconds
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def cpu(self, stage: str) -> Iterator[None]:
        """Count this thread's processor time."""
        yield from self._time(stage, time.thread_time)

    @contextlib.contextmanager
    def wall(self, stage: str) -> Iterator[None]:
        """Count time that passes, for waiting and for work on other threads or a device.

        Work on a GPU counts where the host waits for it.
        """
        yield from self._time(stage, time.perf_counter)

    def _time(self, stage: str, clock: Callable[[], float]) -> Iterator[None]:
        start = clock()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += clock() - start
