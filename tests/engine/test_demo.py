import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from malcli.config.demo import DemoConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.engine import demo as engine
from malcli.engine.demo import DEMO_FIT, MARKER, OWN, demo, prepare_folder
from malcli.errors import OutputError
from malcli.settings import resolve


def test_folder_of_an_earlier_demo_is_emptied_of_its_own_files_only(tmp_path):
    out = prepare_folder(tmp_path / "demo")
    for name in OWN:
        (out / name).mkdir() if "." not in name else (out / name).write_text("old")
    (out / "data" / "image.png").write_text("old")
    (out / "notes.txt").write_text("mine")
    prepare_folder(out)
    assert sorted(path.name for path in out.iterdir()) == [MARKER, "notes.txt"]


def test_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(OutputError, match="not made by malcli demo") as error:
        prepare_folder(tmp_path)
    assert error.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "demo"
    path.write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        prepare_folder(path)
    assert path.read_text() == "mine"


def test_link_in_the_demo_folder_is_removed_without_touching_its_target(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "keep").write_text("mine")
    out = prepare_folder(tmp_path / "demo")
    (out / "data").symlink_to(target)
    prepare_folder(out)
    assert not (out / "data").is_symlink()
    assert (target / "keep").read_text() == "mine"


def test_demo_settings_are_valid_settings_of_fit():
    config = resolve(FitConfig, {"data": "boxes.json", **DEMO_FIT}, None, "fit").config
    assert config.weights == "none"  # no network


@dataclass
class FakeEval:
    def to_json(self):
        return {"miou": {"all": 0.8}}


def test_demo_fits_on_boxes_alone_and_scores_other_scenes(tmp_path, monkeypatch):
    """The pipeline between the steps, with the steps themselves replaced."""
    seen: dict[str, object] = {}

    def stand_in(module, name, function):
        module = types.ModuleType(f"malcli.engine.{module}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    stand_in("fit.command", "fit", lambda config: seen.update(fit=config))
    stand_in("label.command", "label", lambda config: seen.update(label=config))
    stand_in("eval.masks", "evaluate", lambda config: (seen.update(evaluate=config), FakeEval())[1])
    monkeypatch.setattr(engine, "TRAIN_SCENES", 3)
    monkeypatch.setattr(engine, "VAL_SCENES", 2)
    result = demo(DemoConfig(out=tmp_path / "demo", seed=7))

    fit, label, evaluate = seen["fit"], seen["label"], seen["evaluate"]
    assert isinstance(fit, FitConfig)
    assert isinstance(label, LabelConfig)
    assert isinstance(evaluate, EvalConfig)
    assert "segmentation" not in Path(fit.data).read_text()
    assert len(json.loads(Path(fit.data).read_text())["images"]) == 3
    assert fit.val is None
    assert label.checkpoint == fit.out == tmp_path / "demo" / "run"
    assert label.out == evaluate.pred == tmp_path / "demo" / "masks.json"
    assert len(json.loads(Path(evaluate.gt).read_text())["images"]) == 2
    assert "segmentation" in Path(evaluate.gt).read_text()
    assert {fit.seed, label.seed, evaluate.seed} == {7}
    assert result.to_json() == {"miou": {"all": 0.8}, "report": str(evaluate.report)}


def test_train_and_validation_scenes_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "TRAIN_SCENES", 1)
    monkeypatch.setattr(engine, "VAL_SCENES", 1)
    train, val = engine.draw_data(tmp_path, 0)
    first = (train.images / "train_0000.png").read_bytes()
    assert first != (val.images / "val_0000.png").read_bytes()


def test_torch_gets_its_threads_back_after_the_demo():
    import torch

    before = torch.get_num_threads()
    with engine.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
