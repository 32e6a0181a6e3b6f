import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file

from malcli.engine.retention import student_trainer, train_students
from malcli.engine.retention.command import retention
from malcli.errors import ConfigError, Interrupted, OutputError

pytestmark = pytest.mark.slow
KINDS = "mask2former", "rf_detr"
SHORT = {"epochs": 2, "limit": 4, "batch_size": 2, "bootstrap": 0, "lr": 1e-4}


def lines_of(out, name):
    text = (out / "students" / name / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_and_its_results_are_measured(study_data, tiny_models, tmp_path, kind):
    config = study_data.config(
        tmp_path / "out", student=str(tiny_models[kind]), epochs=10, lr=2.5e-4, bootstrap=10
    )
    result = retention(config).to_json()
    human, malcli = (lines_of(tmp_path / "out", name) for name in ("human", "malcli"))
    assert human[0]["lr"] == malcli[0]["lr"]
    assert human[-1]["step"] == malcli[-1]["step"] == 10 * 3
    assert human[-1]["loss"] < 0.8 * human[0]["loss"]
    found = json.loads((tmp_path / "out/human.json").read_text("utf-8"))
    assert found
    assert all(one["category_id"] == 7 and 0 <= one["score"] <= 1 for one in found)
    assert result["human"]["ap"]["AP"] is not None
    assert (tmp_path / "out/human.json").read_bytes() != (tmp_path / "out/malcli.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_masks_give_equal_students_after_a_stop_too(
    study_data, tiny_models, tmp_path, monkeypatch, kind
):
    config = study_data.config(
        tmp_path / "out", student=str(tiny_models[kind]), masks=study_data.human, **SHORT
    )
    step = student_trainer.StudentTrainer._step
    flags = []
    enter = train_students.StopFlag.__enter__

    def stop_at(self, samples):
        if self.folder.name == "malcli" and self.loop.place.step == 2:
            flags[0].signum = 15
        return step(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(
            train_students.StopFlag, "__enter__", lambda self: flags.append(self) or enter(self)
        )
        patch.setattr(student_trainer.StudentTrainer, "_step", stop_at)
        with pytest.raises(Interrupted, match="--resume"):
            retention(config)
    retention(dataclasses.replace(config, resume=True))
    one, two = (
        load_file(tmp_path / "out/students" / name / "student.safetensors")
        for name in ("human", "malcli")
    )
    assert all(value.equal(two[key]) for key, value in one.items())
    assert (tmp_path / "out/human.json").read_bytes() == (tmp_path / "out/malcli.json").read_bytes()


def test_rf_detr_learns_boxes_alone_and_mask2former_says_that_it_cannot(
    study_data, tiny_models, tmp_path
):
    config = study_data.config(
        tmp_path / "out", student=str(tiny_models["rf_detr"]), boxes_only=True, **SHORT
    )
    result = retention(config).to_json()
    assert result["boxes"]["ap"]["AP"] is None
    assert result["boxes"]["box_ap"]["AP"] is not None
    config = study_data.config(
        tmp_path / "other", student=str(tiny_models["mask2former"]), boxes_only=True, **SHORT
    )
    with pytest.raises(ConfigError, match="--boxes-only"):
        retention(config)
    assert not (tmp_path / "other").exists()


def test_another_model_in_the_same_folder_is_another_study(study_data, tiny_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["rf_detr"], folder)
    config = study_data.config(tmp_path / "out", student=str(folder), max_steps=1, **SHORT)
    retention(config)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"num_queries": 12}), "utf-8")
    with pytest.raises(OutputError, match=r"student_config\.json_sha256"):
        retention(config)
