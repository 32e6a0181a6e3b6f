"""SIGINT and SIGTERM as a flag, so that work ends between two steps and keeps what it has.

Also says how an interrupted command is resumed. Knows nothing of what is interrupted.
"""

import contextlib
import dataclasses
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from malcli.settings import flag_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by the first signal while the context is open; the second one ends the process at once.

    Outside the main thread, where Python takes no signals, the flag stays unset.

    Attributes:
        signum: The signal's number, 0 as long as none came.
    """

    def __init__(self) -> None:
        """Start unset."""
        self.signum = 0
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            # None: set by C code, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt where a signal arrives: for long work that is dropped anyway."""
        self._raises = True
        try:
            if self.signum:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            sys.exit(128 + signum)
        self.signum = signum
        if self._raises:
            raise KeyboardInterrupt


def command_of(config: Any, name: str) -> str:  # noqa: ANN401
    """Return the command line of a config: `malcli label --boxes x.json --out y.json`.

    Args:
        config: A config dataclass; only what differs from the defaults is written.
        name: The command.
    """
    words = ["malcli", name]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None or value == item.default:
            continue
        flag = flag_of(item.name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join(words)
