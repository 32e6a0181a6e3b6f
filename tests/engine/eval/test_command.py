"""The three forms of `eval`, and options that do not go together."""

import subprocess
import sys
from pathlib import Path

import pytest

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.command import check_options, measure
from malcli.errors import ConfigError

SOME = Path("some.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clustering": True, "attention": True}, "--clustering and --attention"),
        ({"clustering": True, "pred": SOME}, "--clustering with --pred"),
        ({"attention": True, "oracle": SOME}, "--attention with --oracle"),
        ({"clustering": True, "masks": SOME}, "--clustering with --masks"),
        ({"clustering": True, "report": SOME}, "--clustering with --report"),
        ({"clustering": True, "ids": "1"}, "--clustering with --ids"),
        ({"encoder": "vit_mae_base"}, "--encoder: goes with --clustering or --attention"),
        ({"ids": "1", "pred": SOME}, "--ids: goes with"),
        ({"attention": True, "weights": "none"}, "--weights without --encoder"),
        ({"attention": True, "encoder": "x", "checkpoint": SOME}, "--encoder with --checkpoint"),
        ({"clustering": True, "encoder": "x", "network": "teacher"}, "--encoder with --network"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_go_together_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        check_options(EvalConfig(gt=SOME, **options))


def test_options_that_go_together_pass():
    check_options(EvalConfig(gt=SOME, pred=SOME, oracle=SOME, report=SOME))
    check_options(EvalConfig(gt=SOME, clustering=True, encoder="x", weights="none"))
    check_options(EvalConfig(gt=SOME, attention=True, checkpoint=SOME, network="teacher", ids="1"))


def test_scores_on_files_come_without_torch(scenes):
    code = (
        "import sys; from pathlib import Path; from malcli.config.evaluate import EvalConfig\n"
        "from malcli.engine.eval.command import measure\n"
        "path = Path(sys.argv[1])\n"
        "assert measure(EvalConfig(gt=path, pred=path)).metrics.miou['all'] == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scenes.instances], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_each_form_does_its_own_work_alone(scenes, tmp_path):
    plain = {"gt": scenes.instances, "images": scenes.images, "device": "cpu", "bootstrap": 0}
    plain |= {"encoder": "timm/test_vit.r160_in1k", "weights": "none", "crop_size": "64"}
    found = measure(EvalConfig(**plain, clustering=True, limit=1)).to_json()
    assert "clustering" in found
    assert "miou" not in found
    page = tmp_path / "page.html"
    drawn = measure(EvalConfig(**plain, attention=True, layers="1", report=page)).to_json()
    assert list(drawn) == ["attention"]
    assert page.is_file()
