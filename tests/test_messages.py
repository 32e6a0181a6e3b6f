"""Messages: bounded, on one line, and nothing in them drives a terminal."""

import datetime
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.messages import log_line, one_line, printable, short


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a\n  b\tc", "a b c"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\ud800", "\\ud800"),
        ("Füße 図", "Füße 図"),
        ("x" * 5000, "x" * 2000 + "..."),
    ],
)
def test_messages_are_one_line_that_drives_no_terminal(message, line):
    assert one_line(message) == line


NAMES = [
    "\x1b]0;title\x07.jpg",
    "\x1b[2J\x1b[1;1H.jpg",
    "\x9b2J\x85.jpg",
    "a\r\nmalcli: error: disk full.jpg",
    "\u202egpj.exe\u2066\u200f.jpg",
    "\x00\x08\x7f\u2028\ufeff.jpg",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clean", [printable, one_line, log_line, short])
def test_no_control_or_bidi_character_passes(clean, name):
    assert clean(f"  {name}: not there").isprintable()


def test_a_line_of_the_log_keeps_its_indent_and_is_bounded():
    assert log_line("  x: y") == "  x: y"
    assert len(log_line("x" * 10**6)) == 2003


SIMPLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(SIMPLE)
def test_a_value_is_shown_as_python_writes_it_cut_at_60(value):
    whole = ascii(value)
    assert short(value) == (whole if len(whole) <= 60 else whole[:57] + "...")


def nested():
    value = []
    for _ in range(9):
        value = [value] * 10
    return value


def cyclic():
    value = {}
    value["x"] = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [
        nested,
        cyclic,
        lambda: {"a": nested()},
        lambda: ({1: nested()},) * 2,
        lambda: "x" * 10**8,
        lambda: b"x" * 10**8,
        lambda: {"k" * 10**7: 1},
        lambda: list(range(10**6)),
        lambda: set(range(10**6)),
        lambda: 1 << 10**7,
        lambda: [16**5000, -(10**4999)],
        lambda: datetime.date(2024, 1, 1),
    ],
)
def test_a_value_costs_no_more_than_what_is_shown_of_it(make):
    value = make()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        text = short(value)
    finally:
        sys.setprofile(None)
    assert calls < 5000
    assert len(text) <= 60
    assert text.isascii()
