"""What a message may hold: one line, no character that drives a terminal, values cut short.

Everything that reaches a terminal goes through here: `cli.output` and `report.progress` print it.
"""

from collections.abc import Iterable, Iterator

LONGEST_LINE = 2000  # characters of a message
LONGEST_VALUE = 60  # characters of a value inside a message
MAX_DIGITS = 60  # of a whole number that is written out; Python itself refuses more than 4,300


def printable(text: str) -> str:
    r"""Return a text with every control, bidi and other invisible character as its escape.

    A line break becomes `\n`: a file name with one cannot begin a line of its own.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(message: object) -> str:
    """Return a message on one line of bounded length, without what could drive a terminal."""
    return log_line(" ".join(str(message).split()))


def log_line(message: str) -> str:
    """Return a line of the log: as `one_line`, but blanks stay as they are."""
    text = printable(message)
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + "..."


def short(value: object) -> str:
    """Return a value for a message, ASCII, on one line of at most 60 characters.

    It looks at no more of the value than it shows: a list that names itself nine times over is as
    cheap as a number.
    """
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > LONGEST_VALUE:
            return text[: LONGEST_VALUE - 3] + "..."
    return text


def _pieces(value: object) -> Iterator[str]:
    """Yield the parts of `ascii(value)` one after the other; the reader stops when it has enough.

    Each level of nesting yields a bracket first, so that few of them are ever open.
    """
    if isinstance(value, str | bytes):
        yield ascii(value[: LONGEST_VALUE + 1])
    elif isinstance(value, int) and not isinstance(value, bool):
        yield _whole(value)
    elif isinstance(value, dict):
        yield "{"
        for number, (key, inner) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, list):
        yield from _listed("[", value, "]")
    elif isinstance(value, tuple):
        yield from _listed("(", value, ",)" if len(value) == 1 else ")")
    elif isinstance(value, set | frozenset):
        yield from _listed("{", value, "}")
    else:
        yield ascii(value)


def _listed(begin: str, values: Iterable[object], end: str) -> Iterator[str]:
    yield begin
    for number, inner in enumerate(values):
        yield ", " if number else ""
        yield from _pieces(inner)
    yield end


def _whole(value: int) -> str:
    """Return a whole number, or how long it is: writing it out takes the square of its digits."""
    digits = int(value.bit_length() * 0.30103)
    return str(value) if digits <= MAX_DIGITS else f"a number of about {digits} digits"
