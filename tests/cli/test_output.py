import json
import os
import subprocess
import sys

import pytest
from rich.table import Table

from malcli.cli.output import (
    print_error,
    print_json,
    print_result,
    print_rich,
    run_engine,
    show,
    stdout_kept,
)
from malcli.report import progress
from malcli.report.shown import Shown


class Result:
    def __init__(self, values):
        self.values = values

    def to_json(self):
        return self.values


def test_stdout_is_kept_from_python_c_and_children(capfd):
    with stdout_kept():
        print("python")
        os.write(1, b"compiled\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    print("result")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert {"python", "compiled", "child"} <= set(err.split())


def test_stdout_comes_back_after_an_error(capfd):
    with pytest.raises(ValueError, match="inside"), stdout_kept():
        raise ValueError("inside")
    print("result")
    os.write(1, b"raw\n")
    assert set(capfd.readouterr().out.split()) == {"result", "raw"}


def test_stdout_kept_leaves_no_descriptor_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with stdout_kept():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_engine_runs_with_quiet_set_and_its_result_returned(capsys):
    def work():
        progress.log("log")
        print("noise")
        return Result({})

    assert run_engine(work, quiet=True).to_json() == {}
    assert capsys.readouterr() == ("", "noise\n")
    progress.set_quiet(False)


def test_json_is_one_ascii_line_whatever_the_names(capsys):
    show(Result({"name": "\ud800ü\n", "value": None}), True, lambda result: print("table"))
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {"name": "\ud800ü\n", "value": None}


def test_json_never_says_nan():
    with pytest.raises(ValueError, match="JSON"):
        print_json({"miou": float("nan")})


def test_people_get_the_table(capsys):
    show(Result({}), False, lambda result: print("table"))
    assert capsys.readouterr().out == "table\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_only_the_first_prints(capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    show(Result({}), False, lambda result: print("table"))
    show(Result({}), True, lambda result: print("table"))
    assert capsys.readouterr().out == ("table\n{}\n" if rank == "0" else "")
    run_engine(lambda: progress.log("log"), quiet=False)
    progress.set_quiet(False)
    assert ("log" in capsys.readouterr().err) == (rank == "0")


def test_error_line_goes_to_stderr(capsys):
    print_error("boxes.json: not JSON")
    assert capsys.readouterr() == ("", "malcli: error: boxes.json: not JSON\n")


def test_a_table_and_its_title_drive_no_terminal(capsys):
    table = Table(title="t\x1b[2J\nmIoU")
    table.add_column("\x1b]0;x\x07")
    table.add_row("a\r\nmalcli: error: no\u202e\x9b")
    print_rich(table)
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.split("\n"))
    assert "\\x1b[2J" in said
    assert "\\u202e" in said


def test_values_drive_no_terminal(capsys):
    class Result(Shown):
        def to_json(self):
            return {"a\x1b": {"b": "\x07\nx"}}

    print_result(Result())
    assert capsys.readouterr().out.split() == ["a\\x1b.b", "\\x07\\nx"]
