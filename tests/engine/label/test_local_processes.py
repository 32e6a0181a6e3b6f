"""Several local processes give what one gives: started from a shell, as a user would."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file


def malcli(*arguments, folder):
    """Run a command in a fresh interpreter without a rank; two processes cannot start more."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    }
    return subprocess.run(
        [sys.executable, "-m", "malcli", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


FIT = [
    *("--encoder", "timm/test_vit.r160_in1k", "--weights", "none", "--device", "cpu"),
    *("--crop-size", "32", "--channels", "8", "--min-box-area", "0", "--max-steps", "2"),
    *("--log-every", "1", "--mil-ramp", "0", "--crf-ramp", "0", "--lr", "1e-4", "--workers", "0"),
    *("--mil-norm", "0.5", "--grad-checkpointing", "--save-every", "1"),
]


def first_moments(run):
    """AdamW's first moments after one step, a tenth of the gradient, by parameter."""
    tensors = load_file(run / "state/step-00000001/tensors.safetensors")
    return {key: value for key, value in tensors.items() if key.endswith(".exp_avg")}


@pytest.mark.slow
def test_two_processes_that_accumulate_train_and_label_as_one(train_scenes, tmp_path):
    data = ("--data", train_scenes.boxes, "--images", train_scenes.images)
    one = malcli("fit", *data, *FIT, "--batch-size", 4, "--out", "one", folder=tmp_path)
    two = malcli(
        "fit", *data, *FIT, "--batch-size", 1, "--grad-accum", 2, "--num-processes", 2,
        "--out", "two", "--json", folder=tmp_path,
    )  # fmt: skip
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert json.loads(two.stdout)["steps"] == 2  # printed once
    runs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for single, double in zip(*runs, strict=True):
        for key in ("loss", "loss_mil", "loss_crf", "lr"):
            assert double[key] == pytest.approx(single[key], rel=1e-5)
    single, double = (first_moments(tmp_path / name) for name in ("one", "two"))
    scale = max(value.abs().max() for value in single.values())
    assert scale > 0
    for key, value in single.items():
        assert (double[key] - value).abs().max() < 1e-5 * scale, key

    boxes = ("--boxes", train_scenes.boxes, "--images", train_scenes.images, "--checkpoint", "one")
    label = ("label", *boxes, "--device", "cpu", "--json")
    single = malcli(*label, "--out", "one.json", folder=tmp_path)
    double = malcli(*label, "--num-processes", 2, "--out", "two.json", folder=tmp_path)
    assert (single.returncode, double.returncode) == (0, 0), single.stderr + double.stderr
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    single, double = json.loads(single.stdout), json.loads(double.stdout)
    assert (double["counts"], double["merged"]) == (single["counts"], True)


@pytest.mark.slow
def test_a_users_mistake_is_one_line_and_exit_2_also_in_two_processes(train_scenes, tmp_path):
    arguments = ("fit", "--data", train_scenes.boxes, *FIT, "--encoder", "vit_deit_tny")
    failed = malcli(*arguments, "--num-processes", 2, folder=tmp_path)
    assert failed.returncode == 2
    assert [
        line for line in failed.stderr.splitlines() if "error" in line
    ] == failed.stderr.splitlines()
    assert "vit_deit_tiny" in failed.stderr
