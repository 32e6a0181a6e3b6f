import io
import sys

import pytest

from malcli.report import progress
from malcli.report.progress import Progress, clock, log, set_quiet


class Clock:
    """Time that moves when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture(autouse=True)
def speaking():
    set_quiet(False)
    yield
    set_quiet(False)


def test_line_says_done_total_rate_and_time_left(monkeypatch):
    time = Clock(monkeypatch)
    with Progress(400, "boxes", "label") as bar:
        time.now += 4
        bar.advance(120)
        assert bar.describe() == "label: 120/400 boxes, 30.0 boxes/s, 0:00:09 left"


def test_without_a_terminal_lines_come_every_few_seconds(monkeypatch, capsys):
    time = Clock(monkeypatch)
    with Progress(100, "images", "read") as bar:
        for _ in range(100):
            time.now += 0.2
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 6
    assert lines[-1] == "read: 100/100 images, 5.0 images/s, 0:00:00 left"
    assert capsys.readouterr().out == ""


def test_work_of_an_earlier_run_counts_as_done_but_not_in_the_rate(monkeypatch):
    time = Clock(monkeypatch)
    bar = Progress(100, "boxes", "label", done=50)
    time.now += 10
    bar.advance(10)
    assert bar.describe() == "label: 60/100 boxes, 1.0 boxes/s, 0:00:40 left"


def test_unknown_total_has_no_time_left(monkeypatch):
    time = Clock(monkeypatch)
    bar = Progress(None, "rows", "convert")
    time.now += 1
    bar.advance(5000)
    assert bar.describe() == "convert: 5000 rows, 5000 rows/s"


def test_nothing_advanced_prints_nothing(capsys):
    with Progress(0, "boxes", "label"):
        pass
    assert capsys.readouterr() == ("", "")


def test_quiet_silences_lines_and_log(monkeypatch, capsys):
    time = Clock(monkeypatch)
    set_quiet(True)
    log("reading")
    with Progress(10, "boxes", "label") as bar:
        time.now += 60
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_log_goes_to_stderr(capsys):
    log("images: from data/images")
    assert capsys.readouterr() == ("", "images: from data/images\n")


def test_terminal_shows_a_bar_on_stderr_and_leaves_stdout_alone(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(4, "boxes", "label [x]") as bar:
        bar.advance(4)
        print("result")
    assert capsys.readouterr().out == "result\n"
    assert "4/4 boxes" in terminal.getvalue()
    assert "boxes/s" in terminal.getvalue()
    assert "label [x]" in terminal.getvalue()  # a name is no markup


def test_error_inside_passes_on_and_the_last_state_is_said(capsys):
    def fail():
        with Progress(4, "boxes", "label") as bar:
            bar.advance()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert "label: 1/4 boxes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360000, "100:00:00")],
)
def test_clock_reads_as_hours_minutes_seconds(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("name", ["\x1b]0;x\x07", "a\r\nmalcli: error: no", "\x9b2J\u202e"])
def test_what_is_logged_drives_no_terminal_and_begins_no_line(name, capsys):
    log(f"  image {name}: no such file")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()
    assert said.startswith("  image ")
