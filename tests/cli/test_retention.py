import json
import subprocess
import sys

import pytest

import malcli
from malcli.cli.main import app
from malcli.errors import DataFormatError


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        app(["retention", *arguments], prog_name="malcli")
    return stop.value.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--train is required"),
        (["--train", "a.json", "--masks", "b.json"], "--val is required"),
        (["--train", "a.json", "--masks", "b.json", "--val", "c.json"], "a.json: "),
        (["--epochs", "0", "--train", "a", "--masks", "b", "--val", "c"], "--epochs"),
        (["--recipe", "papr"], "papr: no such recipe"),
        (["--studnet", "x"], "did you mean '--student'?"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_finished_study_is_printed_again_without_torch(scenes, tmp_path, capsys):
    from malcli.config.retention import RetentionConfig
    from malcli.engine.retention.study import job_of, prepare_study, write_json

    config = RetentionConfig(
        train=scenes.instances, masks=scenes.instances, val=scenes.instances, out=tmp_path / "out"
    )
    prepare_study(config, job_of(config), {"precision": "fp32", "processes": 1}, main=True)
    result = {"human": {}, "retention": {}, "bootstrap": 200, "boxes_only": False}
    write_json(result | {"out": "elsewhere"}, config.out / "result.json")
    files = [str(scenes.instances)] * 3
    flags = [word for pair in zip(("--train", "--masks", "--val"), files, strict=True)
             for word in pair]  # fmt: skip
    code = (
        "import sys\nfrom malcli.cli.main import app\n"
        "try:\n    app(sys.argv[1:], prog_name='malcli')\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "retention", *flags, "--out", str(config.out), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result | {"out": str(config.out)}
    assert "finished" in done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_the_library_does_it_too(tmp_path):
    with pytest.raises(DataFormatError, match=r"missing\.json"):
        malcli.retention(train=tmp_path / "missing.json", masks="b.json", val="c.json")
