import dataclasses
import json

import pytest
from safetensors.torch import load_file

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.masks import evaluate
from malcli.engine.retention import command as engine
from malcli.engine.retention import student_trainer, train_students
from malcli.engine.retention.command import retention
from malcli.errors import CheckpointError, DataFormatError, Interrupted, OutputError, RunError

pytestmark = pytest.mark.usefixtures("small_student")
SHORT = {"epochs": 2, "bootstrap": 0, "limit": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def on_filled_boxes(study_data, small_student, tmp_path_factory):
    """A study of 99 steps a student whose masks are the boxes."""
    config = study_data.config(tmp_path_factory.mktemp("filled") / "out", epochs=33)
    return config, retention(config).to_json()


def test_filled_boxes_as_masks_keep_clearly_less_than_all(on_filled_boxes):
    _, result = on_filled_boxes
    assert result["human"]["ap"]["AP"] > 0.15
    kept = result["retention"]["AP"]
    assert 1 < kept["value"] < 60
    assert kept["low"] <= kept["value"] <= kept["high"]
    low, high = result["intervals"]["human"]["ap"]["AP"]
    assert low <= result["human"]["ap"]["AP"] <= high


def test_masks_equal_to_the_human_ones_keep_exactly_all(study_data, tmp_path):
    config = study_data.config(tmp_path / "out", masks=study_data.human, epochs=22)
    result = retention(config).to_json()
    assert result["human"]["ap"]["AP50"] > 0.05
    assert result["retention"]["AP"]["value"] == 100
    kept = result["retention"]["AP50"]
    assert [kept["value"], kept["low"], kept["high"]] == [100, 100, 100]
    human, malcli = (tmp_path / "out" / name for name in ("human.json", "malcli.json"))
    assert human.read_bytes() == malcli.read_bytes()


def test_eval_with_oracle_says_the_same_of_the_two_result_files(on_filled_boxes):
    config, result = on_filled_boxes
    scored = evaluate(
        EvalConfig(gt=config.val, pred=config.out / "malcli.json", oracle=config.out / "human.json")
    ).to_json()
    assert scored["ap"] == result["malcli"]["ap"]
    assert scored["retention"] == result["retention"]


def test_both_students_take_equal_steps_and_the_folder_holds_what_is_promised(on_filled_boxes):
    config, result = on_filled_boxes
    for name in ("config.toml", "result.json", "human.json", "malcli.json"):
        assert (config.out / name).is_file(), name
    assert json.loads((config.out / "result.json").read_text("utf-8")) == result
    lines = [
        (config.out / "students" / name / "metrics.jsonl").read_text("utf-8").splitlines()
        for name in ("human", "malcli")
    ]
    human, malcli = ([json.loads(line) for line in one] for one in lines)
    assert [line["step"] for line in human] == [line["step"] for line in malcli]
    assert human[-1]["step"] == 33 * 3
    assert [line["lr"] for line in human] == [line["lr"] for line in malcli]
    assert result["counts"]["used"] == result["counts"]["instances"]


def test_a_finished_study_is_not_touched(on_filled_boxes, monkeypatch):
    config, result = on_filled_boxes
    monkeypatch.setattr(train_students, "run_students", None)
    assert retention(config).to_json() == result


def test_another_study_is_refused_by_the_setting_that_differs(on_filled_boxes, study_data):
    config, _ = on_filled_boxes
    with pytest.raises(OutputError, match=r"lr was 0\.0125, now 0\.5.*--overwrite"):
        retention(dataclasses.replace(config, lr=0.5))
    with pytest.raises(OutputError, match="study: masks changed; give"):
        retention(dataclasses.replace(config, masks=study_data.human))


def test_the_first_step_is_the_same_whoever_made_the_masks(study_data, tmp_path):
    config = study_data.config(tmp_path / "out", **SHORT, boxes_only=True)
    retention(config)
    first = {}
    for name in ("human", "malcli", "boxes"):
        path = tmp_path / "out/students" / name / "metrics.jsonl"
        first[name] = json.loads(path.read_text("utf-8").splitlines()[0])
    assert "loss_mask" not in first["boxes"]
    assert first["human"]["loss_mask"] != first["malcli"]["loss_mask"]
    for key in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "lr"):
        assert first["human"][key] == first["malcli"][key] == first["boxes"][key]


def test_a_student_of_boxes_alone_has_box_ap_only_and_can_be_added_later(study_data, tmp_path):
    config = study_data.config(tmp_path / "out", **SHORT)
    retention(config)
    before = (tmp_path / "out/human.json").stat().st_mtime_ns
    result = retention(dataclasses.replace(config, boxes_only=True)).to_json()
    assert (tmp_path / "out/human.json").stat().st_mtime_ns == before
    assert result["boxes"]["ap"]["AP"] is None
    assert result["boxes"]["box_ap"]["AP"] is not None
    found = json.loads((tmp_path / "out/boxes.json").read_text("utf-8"))
    assert found
    assert not any("segmentation" in one for one in found)


def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(study_data, tmp_path, monkeypatch):
    whole = study_data.config(tmp_path / "whole", **SHORT)
    retention(whole)
    step = student_trainer.StudentTrainer._step

    def stop_at(self, samples):
        if self.folder.name == "malcli" and self.loop.place.step == 2:
            flags[0].signum = 15
        return step(self, samples)

    flags = []
    enter = train_students.StopFlag.__enter__
    monkeypatch.setattr(
        train_students.StopFlag, "__enter__", lambda self: flags.append(self) or enter(self)
    )
    monkeypatch.setattr(student_trainer.StudentTrainer, "_step", stop_at)
    config = dataclasses.replace(whole, out=tmp_path / "cut")
    with pytest.raises(Interrupted, match=r"step 3.*malcli retention .*--resume") as caught:
        retention(config)
    assert caught.value.exit_code == 143
    monkeypatch.setattr(student_trainer.StudentTrainer, "_step", step)
    trained = tmp_path / "cut/students/human/student.safetensors"
    before = trained.stat().st_mtime_ns
    retention(dataclasses.replace(config, resume=True))
    assert trained.stat().st_mtime_ns == before
    for name in ("human", "malcli"):
        one, two = (
            load_file(tmp_path / run / "students" / name / "student.safetensors")
            for run in ("whole", "cut")
        )
        assert all(value.equal(two[key]) for key, value in one.items())
        assert (tmp_path / "whole" / f"{name}.json").read_bytes() == (
            tmp_path / "cut" / f"{name}.json"
        ).read_bytes()
    assert not (tmp_path / "cut/students/malcli/state").exists()


def test_a_damaged_student_is_named_with_the_remedy(study_data, tmp_path):
    config = study_data.config(tmp_path / "out", **SHORT)
    retention(config)
    path = tmp_path / "out/students/human/student.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "out/human.json").unlink()
    (tmp_path / "out/result.json").unlink()
    with pytest.raises(CheckpointError, match=r"student\.safetensors: damaged; remove it"):
        retention(config)


def test_a_nan_loss_ends_the_study_in_one_line(study_data, tmp_path, monkeypatch):
    class Poisoned(student_trainer.StudentTrainer):
        def train(self, stop, label):
            with_nan = next(self.student.parameters())
            with_nan.data.fill_(float("nan"))
            super().train(stop, label)

    monkeypatch.setattr(train_students, "StudentTrainer", Poisoned)
    with pytest.raises(RunError, match="not a number at step 1"):
        retention(study_data.config(tmp_path / "out", **SHORT))


def test_weights_that_do_not_fit_leave_no_folder(study_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "mask_ap", None)
    config = study_data.config(tmp_path / "out", weights=str(tmp_path / "missing.pth"))
    with pytest.raises(CheckpointError, match=r"missing\.pth: no such file"):
        retention(config)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_of_val_has_no_detections_and_the_study_goes_on(study_data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in study_data.images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    victim = min(folder.iterdir())
    victim.write_bytes(victim.read_bytes()[:200])
    config = study_data.config(tmp_path / "out", **SHORT, images=folder, val_images=folder)
    result = retention(config)
    found = json.loads((tmp_path / "out/human.json").read_text("utf-8"))
    assert result.measured["counts"]["used"] > 0
    assert not [one for one in found if one["image_id"] == 1]


def test_no_mask_at_all_is_refused_with_the_reasons(study_data, tmp_path):
    data = json.loads(study_data.human.read_text("utf-8"))
    for one in data["annotations"]:
        del one["segmentation"]
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(data), "utf-8")
    with pytest.raises(DataFormatError, match=r"bare\.json.*without_mask.*malcli label"):
        retention(study_data.config(tmp_path / "out", masks=bare))
