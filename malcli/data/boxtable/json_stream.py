"""JSON text of any size, value by value, in bounded memory.

A window of text slides over the file and Python's own JSON scanner decodes one value at a time in
it, or msgspec all whole values of the window, for speed. (The faster parsers refuse NaN, which must
not stop a job: it makes one bad box.) Knows JSON and its traps, but no annotation format.
"""

import codecs
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from malcli.errors import DataFormatError
from malcli.files import LFS_HEAD

WINDOW = 1 << 20  # bytes read at a time; larger windows are slower (cache)
MAX_VALUE = 1 << 28  # characters of one value: an annotation, or all the categories
MAX_BATCH = 1 << 25  # characters of one batch of values
MOST_BLANKS = 256  # characters between two elements
LONGEST_TOKEN = 16  # characters; a token cut at the window's end fails this near to it
OPEN_STRING = "Unterminated string"  # how the scanner says it

Columns = TypeVar("Columns")
_decode = json.JSONDecoder().raw_decode
# The first refuses NaN, Infinity and lone surrogates, which must not stop a job.
_DECODERS: tuple[Callable[[str], Any], ...] = (msgspec.json.Decoder().decode, json.loads)
_end_of_list = re.compile(r"\}[ \t\n\r]*\]").search
_skip_blank = re.compile(r"[ \t\n\r]*").match


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        DataFormatError: Missing, a folder, not a regular file, empty, a Git LFS pointer, or
            compressed.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataFormatError(path, "is a folder; name the annotation file")
        if not stat.S_ISREG(mode):
            raise DataFormatError(path, "is not a regular file; save the annotations to one")
        file = path.open("rb")
        head = file.read(len(LFS_HEAD))
        file.seek(0)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DataFormatError(path, f"cannot be read: {reason}") from None
    problem = _problem_of_head(head)
    if problem:
        file.close()
        raise DataFormatError(path, problem)
    return file


def _problem_of_head(head: bytes) -> str:
    if not head:
        return "is empty; copy or download it again"
    if head == LFS_HEAD:
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed; unpack it first"
    return ""


class JsonText:
    """The JSON text of a file, read from its start to its end.

    Args:
        path: For messages.
        file: Open for reading, at its start; closed by the caller.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Start with an empty window."""
        self.path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._before = 0  # characters before the window
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is not blank, or an empty string at the end."""
        while True:
            end = _skip_blank(self._text, self._at).end()  # type: ignore[union-attr]
            self._at = end
            if end < len(self._text):
                return self._text[end]
            if self._ended:
                return ""
            self._read_on(WINDOW)

    def expect(self, wanted: str) -> str:
        """Consume and return the next character, one of `wanted`.

        Raises:
            DataFormatError: It is another.
        """
        char = self.peek()
        if not char or char not in wanted:
            raise self.error(f"expected {' or '.join(wanted)}", self._at)
        self._at += 1
        return char

    def value(self) -> Any:  # noqa: ANN401
        """Consume and return the next value.

        Raises:
            DataFormatError: Not JSON, cut short, nested too deeply, or too large.
        """
        self.peek()
        size = WINDOW
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._is_cut(error):
                    open_string = error.msg.startswith(OPEN_STRING)
                    at = len(self._text) if open_string else error.pos
                    raise self.error(error.msg, at) from None
            except RecursionError:
                raise self.error("values are nested too deeply", self._at) from None
            except ValueError:  # Python's limit on the digits of an integer
                raise self.error("a number has too many digits", self._at) from None
            else:
                # A number may go on in the next window: `1.`, `1e` and `1e+` decode as 1.
                if end < len(self._text) - 2 or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE:
                raise self.error(f"a value is longer than {MAX_VALUE >> 20} MB", self._at)
            self._read_on(size)
            size *= 2  # a long value is decoded again and again, each time from its start

    def members(self) -> Iterator[str]:
        """Consume an object; yield each key, whose value the caller consumes."""
        self.expect("{")
        if self.peek() == "}":
            self.expect("}")
            return
        while True:
            if self.peek() != '"':
                raise self.error("expected a key in double quotes", self._at)
            key: str = self.value()
            self.expect(":")
            yield key
            if self.expect(",}") == "}":
                return

    def batches(
        self, rows: int, fast: Callable[[str], Columns] | None = None
    ) -> Iterator[list[Any] | Columns]:
        """Consume an array; yield its elements in lists of about `rows`.

        Args:
            rows: Elements.
            fast: Makes something else of the text of an array of whole elements, which is yielded
                in place of them; a ValueError says that it cannot.
        """
        self.expect("[")
        last = self.peek() == "]"
        if last:
            self.expect("]")
        decoders = (*((fast,) if fast else ()), *_DECODERS)
        batch: list[Any] = []
        begin, window = self._before + self._at, -1
        first = fast is not None  # alone, so that `fast` may learn from it
        while not last:
            block = None
            # Once a window: a block that fails would fail again.
            if window != self._before and not first:
                window = self._before
                block = self._block(decoders)
            if block is None:
                batch.append(self.value())
            last = self.expect(",]") == "]"
            here = self._before + self._at
            full = len(batch) >= rows or here - begin > MAX_BATCH
            if batch and (first or last or block or full):
                yield batch
                batch, begin, first = [], here, False
            if block is not None:
                yield block
                begin = here
                if not last:
                    self._read_on(WINDOW)

    def _block(self, decoders: Iterable[Callable[[str], Any]]) -> Any:  # noqa: ANN401
        """Consume most elements of the window and return them decoded; None if that is not easy.

        Elements that decode between brackets are whole: a cut inside one leaves something open.
        """
        for decode in decoders:
            for cut in self._cuts():
                try:
                    values = decode(f"[{self._text[self._at : cut]}]")
                except (ValueError, RecursionError):
                    continue
                self._at = cut
                return values
        return None

    def _cuts(self) -> Iterator[int]:
        """Yield where objects end that may be elements: the last but one, or the last, of all."""
        at = len(self._text)
        while (at := self._text.rfind("{", self._at, at)) >= 0:
            begin = max(self._at, at - MOST_BLANKS)
            before = self._text[begin:at].rstrip()
            behind = before[:-1].rstrip()
            if before.endswith(",") and behind.endswith("}"):
                yield begin + len(behind)
                break
        end = _end_of_list(self._text, self._at)
        if end:
            yield end.start() + 1

    def finish(self) -> None:
        """Check that nothing follows.

        Raises:
            DataFormatError: Something does.
        """
        if self.peek():
            raise self.error("text after the end of the JSON value", self._at)

    def error(self, problem: str, at: int) -> DataFormatError:
        """Return the error for a place in the window."""
        place = f"character {self._before + at + 1:,}"
        if self._ended and at >= len(self._text.rstrip()):
            return DataFormatError(
                self.path, f"the JSON ends too early, at {place}: cut short? Copy it again"
            )
        return DataFormatError(self.path, f"not valid JSON at {place}: {problem}")

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Return whether a value may fail only because the window ends inside it."""
        return error.msg.startswith(OPEN_STRING) or error.pos >= len(self._text) - LONGEST_TOKEN

    def _read_on(self, size: int) -> None:
        """Drop what is consumed and append up to `size` bytes of text."""
        try:
            data = self._file.read(size)
            text = self._decoder.decode(data, final=not data)
        except OSError as error:
            raise DataFormatError(self.path, f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataFormatError(
                self.path,
                f"not UTF-8 text after character {self._before + len(self._text):,}; "
                f"is it JSON? Save it as UTF-8",
            ) from None
        self._text = self._text[self._at :] + text
        self._before += self._at
        self._at = 0
        self._ended = not data
