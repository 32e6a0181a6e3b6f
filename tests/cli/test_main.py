import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import typer

from malcli import __version__
from malcli.cli import main as cli
from malcli.cli.main import exit_code_of
from malcli.errors import ConfigError, Interrupted, RunError

COMMANDS = ("fit", "label", "eval", "retention", "convert", "demo", "doctor")
# What makes a start slow; counting seconds would measure the machine and its neighbours too.
HEAVY = ("torch", "torchvision", "timm", "accelerate", "transformers", "scipy", "pyarrow", "cv2")
HEAVY += ("pycocotools", "safetensors", "PIL", "numpy")


def run(*arguments, **kwargs):
    """Run malcli as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "malcli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


def call(arguments, capsys):
    """Run malcli in this process; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.app(list(arguments), prog_name="malcli")
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids="malcli {}".format)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from malcli.cli.main import app\n"
        "try:\n    app(sys.argv[1:], prog_name='malcli')\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Usage: malcli" in done.stdout


def test_help_of_every_command_has_panels_units_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(["fit", "--help"], capsys)
    assert code == 0
    for words in ("Training", "Losses", "Machine", "[default: 512]", "pixels", "[required]"):
        assert words in out


def test_version(capsys):
    assert call(["--version"], capsys) == (0, f"malcli {__version__}\n", "")


def test_no_command_prints_help_and_is_wrong_usage(capsys):
    code, out, _ = call([], capsys)
    assert code == 2
    assert "convert" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--epohcs", "3"], ["--epohcs", "did you mean '--epochs'?", "malcli fit --help"]),
        (["fti"], ["fti", "fit"]),
        (["fit", "--epochs"], ["--epochs", "argument"]),
        (["fit", "--epochs", "many"], ["--epochs", "integer"]),
        (["fit", "--data", "x", "--decoder", "atention"], ["did you mean 'attention'?"]),
        (["fit", "--data", "x", "--theta", "99"], ["--theta", "above 10"]),
        (["fit"], ["--data is required"]),
        (["label"], ["--boxes is required"]),
        (["eval"], ["--gt is required"]),
        (["convert", "a.json"], ["SRC and DST"]),
        (["convert", "a", "b", "c"], ["c"]),
        (["convert", "a", "b", "--from", "cooc"], ["--from", "did you mean 'coco'?"]),
        (["fit", "--explain", "--recipe", "papr"], ["did you mean 'paper'?"]),
        (["doctor", "--recipe", "paper"], ["--recipe"]),
    ],
    ids=lambda value: " ".join(value) if "malcli" not in str(value) else "",
)
def test_wrong_usage_is_one_line_and_exit_2(arguments, words, capsys):
    code, out, err = call(arguments, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("malcli: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_bad_recipe_key_names_the_nearest_key(tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text('command = "fit"\ncrop-szie = 256\n')
    code, _, err = call(["fit", "--explain", "--recipe", str(recipe)], capsys)
    assert code == 2
    assert "crop-szie" in err
    assert "did you mean 'crop_size'?" in err


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a is wrong"), 2, "malcli: error: a is wrong\n"),
        (RunError("device lost"), 1, "device lost"),
        (Interrupted("resume with: malcli fit --resume", 15), 143, "resume with"),
        (ConfigError("two\nlines \x1b[31mred"), 2, "error: two lines \\x1b[31mred\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "masks.json"),
            1,
            "masks.json: disk full",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.json"),
            2,
            "a.json: Permission denied",
        ),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
        (SystemExit(143), 143, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_error_becomes_one_line_and_an_exit_code(error, code, words, capsys):
    assert exit_code_of(raising(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert err.count("\n") <= 1


def test_unexpected_error_points_to_debug_and_debug_shows_the_trace(capsys):
    exit_code_of(raising(ZeroDivisionError("x")), [])
    assert "--debug" in capsys.readouterr().err
    assert exit_code_of(raising(ConfigError("x")), ["fit", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "malcli: error: x"


def test_reader_that_closes_the_pipe_early_gets_no_trace():
    script = f'"{sys.executable}" -m malcli fit --explain | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] in ("0", "1")


def test_closed_pipe_is_quiet(capsys, monkeypatch):
    monkeypatch.setattr(cli.os, "dup2", lambda *args: None)
    assert exit_code_of(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), []) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_command_with_the_shells_code(signum, code):
    """A command that waits for ever, with the real handlers."""
    script = (
        # A test run in the background is born with SIGINT ignored.
        "import signal, time, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import malcli.cli.fit\n"
        "from malcli.cli import main\n"
        "def wait(*args):\n    print('ready', flush=True)\n    time.sleep(30)\n"
        "malcli.cli.fit.explain = wait\n"
        "sys.argv = ['malcli', 'fit', '--explain']\n"
        "main.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signum)
        _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert "Traceback" not in err


def test_python_dash_m_and_json_are_pure(tmp_path):
    done = run("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["versions"]["malcli"] == __version__
    assert done.stdout.count("\n") == 1


def test_completion_answers(tmp_path):
    environment = {
        **os.environ,
        "_MALCLI_COMPLETE": "complete_bash",
        "COMP_WORDS": "malcli fit --dec",
        "COMP_CWORD": "2",
    }
    done = run(env=environment)
    assert done.returncode == 0
    assert "--decoder" in done.stdout.split()
