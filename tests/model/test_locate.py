import os

import pytest

from malcli.errors import CheckpointError
from malcli.model import locate as module
from malcli.model.locate import CHECKPOINT_NAME, locate_checkpoint


def make_run(runs, name, finished, checkpoint=True):
    run = runs / name
    (run / "state").mkdir(parents=True)
    if checkpoint:
        (run / CHECKPOINT_NAME).touch()
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
