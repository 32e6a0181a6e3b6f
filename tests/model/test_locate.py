import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from malcli.errors import CheckpointError
from malcli.model import locate as module
from malcli.model.locate import CHECKPOINT_NAME, SHIPPED, locate_checkpoint, preset_of, settings_of

MEASURED = {"data": "val.json", "miou": {"all": 0.8}}


def make_run(runs, name, finished, checkpoint=True, quality=MEASURED, epochs=(0.5, 1.0)):
    run = runs / name
    (run / "state").mkdir(parents=True)
    if checkpoint:
        write_safetensors(run / CHECKPOINT_NAME, {"settings": {}, "quality": quality})
    lines = "".join(json.dumps({"step": 1, "epoch": epoch}) + "\n" for epoch in epochs)
    (run / "metrics.jsonl").write_text(lines)
    if finished is not None:
        (run / "state" / "finished").touch()
        os.utime(run / "state" / "finished", (finished, finished))
    return run


def test_the_newest_finished_run_is_found(tmp_path):
    make_run(tmp_path, "a", 1000)
    newest = make_run(tmp_path, "b", 3000)
    make_run(tmp_path, "c", 2000)
    make_run(tmp_path, "unfinished", None)
    make_run(tmp_path, "without-checkpoint", 9000, checkpoint=False)
    assert locate_checkpoint(None, tmp_path) == newest / CHECKPOINT_NAME
    assert module.usable_runs(tmp_path)[1] == {}


def test_a_run_that_was_not_measured_or_is_a_trial_is_passed_over_by_name(tmp_path):
    good = make_run(tmp_path, "good", 1000)
    unmeasured = make_run(tmp_path, "unmeasured", 2000, quality={})
    trial = make_run(tmp_path, "trial", 3000, epochs=(0.1, 0.25))
    assert locate_checkpoint(None, tmp_path) == good / CHECKPOINT_NAME
    assert module.usable_runs(tmp_path)[1] == {
        unmeasured: "never measured on human masks, as fit --val does",
        trial: "ended after 0.25 epochs",
    }
    assert locate_checkpoint(trial) == trial / CHECKPOINT_NAME  # asked for by name


def test_the_shipped_labeler_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "good", 1000)
    assert locate_checkpoint(Path("shipped")) == SHIPPED
    assert locate_checkpoint(None) != SHIPPED
    assert (module.name_of(SHIPPED), module.name_of(tmp_path)) == ("shipped", str(tmp_path))
    assert module.quality_of(SHIPPED)["miou"]["all"] > 0.5


@pytest.mark.parametrize("exists", [True, False])
def test_without_runs_the_shipped_labeler_is_used(tmp_path, monkeypatch, exists):
    shipped = tmp_path / "labeler.safetensors"
    if exists:
        shipped.touch()
    monkeypatch.setattr(module, "SHIPPED", shipped)
    make_run(tmp_path / "runs", "unfinished", None)
    for runs in (tmp_path / "runs", tmp_path / "no runs"):
        if exists:
            assert locate_checkpoint(None, runs) == shipped
        else:
            with pytest.raises(CheckpointError, match=r"install malcli again, or give --checkp"):
                locate_checkpoint(None, runs)


def test_a_given_run_file_or_nothing(tmp_path):
    run = make_run(tmp_path, "a", None)  # unfinished, but asked for by name
    inside = run / CHECKPOINT_NAME
    assert locate_checkpoint(run) == locate_checkpoint(inside) == inside
    with pytest.raises(CheckpointError, match=rf"state: no {CHECKPOINT_NAME} in this folder"):
        locate_checkpoint(run / "state")
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        locate_checkpoint(tmp_path / "nowhere")


def write_safetensors(path, meta, tensors=0):
    """A file of malcli, with a header of any length and no tensors' bytes."""
    text = meta if isinstance(meta, str) else json.dumps(meta)
    header = {"__metadata__": {"malcli": text}}
    header |= {f"x{index}": {"dtype": "F32", "shape": [0]} for index in range(tensors)}
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    return path


def test_a_torch_file_implies_the_released_preset_whatever_its_name(tmp_path):
    for name in ("a.ckpt", "a.pth", "a.safetensors", "a"):
        for head in (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j"):
            (tmp_path / name).write_bytes(head + bytes(100))
            assert preset_of(tmp_path / name) == "released"
            assert settings_of(tmp_path / name) is None


def test_a_malcli_file_says_its_preset_at_any_header_length(tmp_path):
    path = tmp_path / "a.ckpt"
    for tensors in range(60):  # the length's first byte takes many values, that of a pickle too
        released = write_safetensors(path, {"settings": {"preset": "released"}}, tensors)
        assert preset_of(released) == "released"
        assert preset_of(write_safetensors(path, {"settings": {"preset": None}}, tensors)) is None
    data = b"{" + b" " * 125 + b"{}"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    assert path.read_bytes()[0] == 0x80
    assert preset_of(path) is None


def test_the_labeler_that_ships_implies_nothing():
    assert preset_of(SHIPPED) is None
    assert settings_of(SHIPPED)["encoder"] == "vit_deit_tiny"


@pytest.mark.parametrize(
    "meta",
    ["[" * 100_000, "null", "{}", '{"settings": []}', '{"settings": {"preset": ["released"]}}',
     '{"settings": {"preset": "paper"}}', "\ud800", "1" * 5000],
)  # fmt: skip
def test_odd_settings_imply_nothing(tmp_path, meta):
    assert preset_of(write_safetensors(tmp_path / "a.safetensors", meta)) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"{", bytes(7), bytes(64), b"\xff" * 9 + b"{", b"\xff" * 7 + b"\x00{}",
     b"\x00\x00\x00\x01\x00\x00\x00\x00{}", b"version https://git-lfs"],
)  # fmt: skip
def test_what_is_no_checkpoint_implies_nothing(tmp_path, content):
    path = tmp_path / "odd"
    path.write_bytes(content)
    assert preset_of(path) is None
    assert settings_of(path) is None


def test_what_is_not_there_implies_nothing(tmp_path):
    assert preset_of(tmp_path) is None
    assert preset_of(tmp_path / "nowhere") is None


def test_none_of_this_loads_torch(tmp_path):
    path = write_safetensors(tmp_path / "a", {"settings": {"preset": "released"}})
    code = (
        "import sys; from pathlib import Path; from malcli.model.locate import preset_of\n"
        "print(preset_of(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == ["released", "False"]
