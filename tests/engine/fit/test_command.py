import dataclasses
import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.data.scenes import draw_scenes
from malcli.engine.eval.masks import evaluate
from malcli.engine.fit import command as fit_command
from malcli.engine.fit import trainer as trainer_module
from malcli.engine.fit.command import fit
from malcli.engine.fit.loop import TrainingLoop
from malcli.engine.label.command import label
from malcli.engine.label.parts import PartFolder
from malcli.engine.machine.signals import StopFlag
from malcli.errors import (
    CheckpointError,
    ConfigError,
    DataFormatError,
    Interrupted,
    OutputError,
    RunError,
)
from malcli.files import beside
from malcli.model.checkpoint import load_checkpoint


def config(train_scenes, out, **changes):
    settings = {
        "data": train_scenes.boxes,
        "images": train_scenes.images,
        "out": out,
        "encoder": "timm/test_vit.r160_in1k",
        "weights": "none",
        "crop_size": 32,
        "channels": 8,
        "batch_size": 2,
        "epochs": 1,
        "max_steps": 4,
        "lr": 1e-4,
        "min_box_area": 0.0,
        "mil_ramp": 2,
        "crf_ramp": 2,
        "crf_iterations": 3,
        "log_every": 1,
        "workers": 0,
        "device": "cpu",
    }
    return FitConfig(**settings | changes)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(entries):
    return [
        {key: value for key, value in entry.items() if key not in ("crops_per_s", "memory_mb")}
        for entry in entries
    ]


@pytest.fixture(scope="module")
def whole(train_scenes, tmp_path_factory):
    """An uninterrupted run of six steps over three epochs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    small = config(train_scenes, run, limit=2, batch_size=3, epochs=3, max_steps=6)
    result = fit(small)
    return small, result


def test_a_run_holds_what_the_contract_lists(whole):
    _, result = whole
    run = result.run
    for name in ("config.toml", "metrics.jsonl", "checkpoint.safetensors", "state/finished"):
        assert (run / name).is_file(), name
    assert list((run / "pictures").glob("*.png"))
    assert [line["step"] for line in lines(run)] == list(range(1, result.steps + 1))
    keys = {"step", "epoch", "loss", "loss_mil", "loss_crf", "lr", "crops_per_s", "memory_mb"}
    assert all(keys <= set(line) for line in lines(run))


def test_the_teacher_is_neither_the_student_nor_untrained(whole):
    _, result = whole
    tensors = load_file(result.checkpoint)
    key = "decoder.value.0.weight"
    assert not torch.equal(tensors[f"student.{key}"], tensors[f"teacher.{key}"])
    drift = (tensors[f"student.{key}"] - tensors[f"teacher.{key}"]).abs().max()
    assert 0 < drift < 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(whole, tmp_path, steps):
    small, result = whole
    cut = dataclasses.replace(small, out=tmp_path / "run", max_steps=steps)
    fit(cut)
    resumed = fit(dataclasses.replace(cut, max_steps=6, resume=True))
    expected, found = load_file(result.checkpoint), load_file(resumed.checkpoint)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert timeless(lines(result.run)) == timeless(lines(resumed.run))


def test_a_signal_keeps_the_state_and_resuming_equals_never_stopped(whole, tmp_path, monkeypatch):
    small, result = whole
    run = tmp_path / "run"
    moved = dataclasses.replace(small, out=run, save_every=1000)
    count = TrainingLoop._count
    flags = []
    enter = StopFlag.__enter__
    monkeypatch.setattr(StopFlag, "__enter__", lambda self: flags.append(self) or enter(self))

    def stop_at_three(self):
        count(self)
        if self.place.step == 3:
            flags[0].signum = 15

    monkeypatch.setattr(TrainingLoop, "_count", stop_at_three)
    with pytest.raises(Interrupted, match="--resume") as caught:
        fit(moved)
    assert caught.value.exit_code == 143
    assert not (run / "state/finished").exists()
    monkeypatch.setattr(TrainingLoop, "_count", count)
    resumed = fit(dataclasses.replace(moved, resume=True))
    expected, found = load_file(result.checkpoint), load_file(resumed.checkpoint)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_a_damaged_newest_state_falls_back_to_the_one_before(whole, tmp_path):
    small, result = whole
    cut = dataclasses.replace(small, out=tmp_path / "run", max_steps=4, save_every=2)
    fit(cut)
    newest = sorted((tmp_path / "run/state").glob("step-*"))[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = fit(dataclasses.replace(cut, max_steps=6, resume=True))
    expected, found = load_file(result.checkpoint), load_file(resumed.checkpoint)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_moments_of_other_parameters_are_refused_in_one_line(whole, tmp_path):
    small, _ = whole
    cut = dataclasses.replace(small, out=tmp_path / "run", max_steps=2)
    fit(cut)
    (path,) = (tmp_path / "run/state").glob("step-*/tensors.safetensors")
    tensors = load_file(path)
    tensors["optimizer.0.exp_avg"] = torch.zeros(3, 5)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="none of its saved states"):
        fit(dataclasses.replace(cut, max_steps=6, resume=True))


def test_masks_and_areas_in_the_data_change_nothing(train_scenes, tmp_path):
    boxes = fit(config(train_scenes, tmp_path / "boxes", max_steps=2))
    masks = fit(config(train_scenes, tmp_path / "masks", max_steps=2, data=train_scenes.instances))
    expected, found = load_file(boxes.checkpoint), load_file(masks.checkpoint)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_gradient_accumulation_equals_one_large_batch(train_scenes, tmp_path):
    common = {"max_steps": 3, "flip": 0.0, "mil_ramp": 0, "crf_ramp": 0}
    large = fit(config(train_scenes, tmp_path / "a", batch_size=4, **common))
    parts = fit(config(train_scenes, tmp_path / "b", batch_size=2, grad_accum=2, **common))
    for one, two in zip(lines(large.run), lines(parts.run), strict=True):
        assert one["loss_mil"] == pytest.approx(two["loss_mil"], rel=1e-3)
        assert one["lr"] == two["lr"]


def test_an_existing_run_is_refused_and_kept(whole):
    small, result = whole
    before = result.checkpoint.read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        fit(small)
    assert result.checkpoint.read_bytes() == before


def test_resuming_with_another_setting_names_it(whole):
    small, _ = whole
    with pytest.raises(OutputError, match="crf_weight"):
        fit(dataclasses.replace(small, crf_weight=0.7, resume=True))


def test_a_run_of_an_earlier_malcli_resumes_under_the_defaults_of_later_settings(whole, tmp_path):
    small, result = whole
    cut = dataclasses.replace(small, out=tmp_path / "run", max_steps=3)
    fit(cut)
    path = tmp_path / "run/state/settings.json"
    before = json.loads(path.read_text())
    for name in ("stem", "layer_decay", "drop_path", "mil_norm", "crf_self", "loss_size"):
        del before[name]
    path.write_text(json.dumps(before))
    with pytest.raises(OutputError, match=r"mil_norm was 0\.0"):
        fit(dataclasses.replace(cut, max_steps=6, resume=True, mil_norm=1e-4))
    resumed = fit(dataclasses.replace(cut, max_steps=6, resume=True))
    expected, found = load_file(result.checkpoint), load_file(resumed.checkpoint)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_the_start_says_in_five_lines_what_is_trained_and_how(train_scenes, tmp_path, capsys):
    fit(config(train_scenes, tmp_path / "run", max_steps=1, grad_accum=3, lr=1e-6))
    told = capsys.readouterr().err
    said = [line for line in told.splitlines() if line.startswith("fit: ") and "left" not in line]
    assert len(said) <= 5
    encoder, decoder, batches = said[-3:]
    assert "timm/test_vit.r160_in1k" in encoder
    assert "apache-2.0" in encoder
    assert "64 x 2 x 2 features at stride 16" in encoder
    assert "attention, 8 x 8 masks" in decoder
    assert "0.3 million parameters; cpu, fp32" in decoder
    assert "batches of 6 (2 x 3 accumulated x 1 process)" in batches
    assert "peak learning rate 6e-06, 4 steps an epoch, 1 in all" in batches


def test_overwriting_leaves_the_old_run_when_the_data_is_bad(whole, tmp_path):
    small, result = whole
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(DataFormatError):
        fit(dataclasses.replace(small, data=bad, overwrite=True))
    assert result.checkpoint.is_file()


def test_a_folder_that_is_no_run_is_never_overwritten(train_scenes, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep")
    with pytest.raises(OutputError, match="not a run"):
        fit(config(train_scenes, tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine/thesis.txt").read_text() == "keep"


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_state(
    train_scenes, tmp_path, monkeypatch
):
    losses = trainer_module.batch_losses

    def poisoned(config, *args):
        mil, *others = losses(config, *args)
        poisoned.calls += 1
        return mil * (float("nan") if poisoned.calls == 3 else 1.0), *others

    poisoned.calls = 0
    monkeypatch.setattr(trainer_module, "batch_losses", poisoned)
    with pytest.raises(RunError, match="not a number at step 3"):
        fit(config(train_scenes, tmp_path / "run", save_every=1))
    kept = load_checkpoint(tmp_path / "run/checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.student.state_dict().values())
    assert sorted((tmp_path / "run/state").glob("step-*"))[-1].name == "step-00000002"


def test_boxes_that_are_all_too_small_name_the_remedy(train_scenes, tmp_path):
    with pytest.raises(DataFormatError, match="--min-box-area"):
        fit(config(train_scenes, tmp_path / "run", min_box_area=1e9))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_encoder_are_refused_before_anything_is_written(train_scenes, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"blocks.0.weight": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match=r"other\.pth.*missing"):
        fit(config(train_scenes, tmp_path / "run", weights=str(path)))
    assert not (tmp_path / "run").exists()


def test_weights_of_a_labeler_start_student_and_teacher(whole, train_scenes, tmp_path):
    _, result = whole
    other = config(
        train_scenes, tmp_path / "run", weights=str(result.checkpoint), max_steps=1, mil_ramp=5
    )
    started = load_file(fit(other).checkpoint)
    expected = load_file(result.checkpoint)
    # The first step has a learning rate of 0 (warm-up), so the start is still there to see.
    assert all(
        torch.equal(value, expected[key.replace("teacher.", "student.")])
        for key, value in started.items()
    )


def test_pasting_masks_trains_and_resumes_bit_for_bit(whole, train_scenes, tmp_path):
    masks = tmp_path / "masks.json"
    boxes = LabelConfig(boxes=train_scenes.boxes, images=train_scenes.images, out=masks)
    label(dataclasses.replace(boxes, checkpoint=whole[1].checkpoint, device="cpu", workers=0))
    small = config(
        train_scenes,
        tmp_path / "run",
        paste=masks,
        paste_share=1.0,
        weights=str(whole[1].checkpoint),
    )
    fit(small)
    assert any(line["loss_paste"] > 0 for line in lines(tmp_path / "run"))
    halves = dataclasses.replace(small, out=tmp_path / "halves")
    fit(dataclasses.replace(halves, max_steps=2))
    fit(dataclasses.replace(halves, resume=True, workers=1))
    whole_run, halved = (load_file(tmp_path / name / "checkpoint.safetensors") for name in
                         ("run", "halves"))  # fmt: skip
    assert all(torch.equal(halved[key], value) for key, value in whole_run.items())
    settings = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").settings
    assert settings["paste"] == "masks.json"  # no machine's folders
    masks.write_text(masks.read_text() + "\n")
    with pytest.raises(OutputError, match="belongs to another run: paste changed"):
        fit(dataclasses.replace(halves, resume=True, max_steps=6))


def test_without_masks_to_paste_fit_says_so_before_anything_is_written(train_scenes, tmp_path):
    with pytest.raises(DataFormatError, match=r"boxes.*has no mask to paste"):
        fit(config(train_scenes, tmp_path / "run", paste=train_scenes.boxes))
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_counted_and_training_goes_on(train_scenes, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in train_scenes.images.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[:200] if path.name.endswith("0.png") else data)
    victim = next(iter(sorted(folder.iterdir())))
    victim.write_bytes(victim.read_bytes()[:100])
    result = fit(config(train_scenes, tmp_path / "run", images=folder, max_steps=8, epochs=4))
    assert result.last["unreadable"] > 0
    assert result.steps == 8


def test_unknown_encoder_names_the_nearest(train_scenes, tmp_path):
    with pytest.raises(ConfigError, match="vit_deit_tiny"):
        fit(config(train_scenes, tmp_path / "run", encoder="vit_deit_tny"))


def test_validation_scores_the_run_s_own_masks_on_the_way_and_at_the_end(
    whole, train_scenes, scenes, tmp_path
):
    result = fit(
        config(
            train_scenes, tmp_path / "run", val=scenes.instances, val_images=scenes.images,
            val_every=2, max_steps=3, weights=str(whole[1].checkpoint), lr=1e-3, warmup_epochs=0.0,
            teacher_momentum=0.5,
        )
    )  # fmt: skip
    entries = [line for line in lines(result.run) if "val" in line]
    assert [entry["step"] for entry in entries] == [2, 3]
    assert [line["step"] for line in lines(result.run)] == [1, 2, 2, 3, 3]
    assert [entry["epoch"] for entry in entries] == [
        line["epoch"] for line in lines(result.run)[1::2]
    ]
    middle, end = (entry["val"] for entry in entries)
    assert result.val == end
    assert middle["miou"] != end["miou"]  # of the labeler as it was then
    again = evaluate(
        EvalConfig(
            gt=scenes.instances, images=scenes.images, checkpoint=result.checkpoint, device="cpu",
            bootstrap=0,
        )
    ).to_json()  # fmt: skip
    for key in ("miou", "boundary_iou", "ap", "counts", "problems"):
        assert end[key] == again[key]
    assert end["counts"]["paired"] == end["counts"]["instances"] > 0
    assert load_checkpoint(result.checkpoint).quality == {
        "data": scenes.instances.name,
        "instances": end["counts"]["instances"],
        "miou": end["miou"],
        "boundary_iou": end["boundary_iou"],
        "AP": end["ap"]["AP"],
    }


def test_validation_skips_images_above_max_pixels_as_training_does(train_scenes, tmp_path):
    large = draw_scenes(tmp_path / "large", 1, seed=5, size_hw=(100, 100), objects=(2, 2))
    limits = {"val": large.instances, "val_images": large.images, "max_steps": 1}
    with pytest.raises(DataFormatError, match=r"none of its boxes can be labelled .*--max-pixels"):
        fit(config(train_scenes, tmp_path / "a", max_pixels=96 * 96, **limits))
    free = fit(config(train_scenes, tmp_path / "b", max_pixels=100 * 100, **limits))
    assert free.val["miou"]["all"] > 0.1


def test_no_folder_of_the_machine_gets_into_the_labeler(whole, train_scenes, scenes, tmp_path):
    result = fit(
        config(
            train_scenes, tmp_path / "run", max_steps=1, val=scenes.instances,
            val_images=scenes.images, weights=str(whole[1].checkpoint),
            paste=train_scenes.instances, threshold="auto",
        )
    )  # fmt: skip
    said = result.checkpoint.read_bytes()
    for name in ("data", "val", "weights", "paste"):
        assert load_checkpoint(result.checkpoint).settings[name] in (
            train_scenes.boxes.name, scenes.instances.name, whole[1].checkpoint.name,
            train_scenes.instances.name,
        )  # fmt: skip
    folders = (tmp_path, train_scenes.images, train_scenes.boxes.parent, scenes.images)
    for folder in (*folders, whole[1].run):
        assert str(folder).encode() not in said


def test_a_run_that_was_killed_before_its_mark_is_finished_by_resuming(train_scenes, tmp_path):
    small = config(train_scenes, tmp_path / "run", max_steps=2, pictures_every=0)
    before = fit(small).checkpoint.read_bytes()
    (tmp_path / "run/state/finished").unlink()
    again = fit(dataclasses.replace(small, resume=True))
    assert again.steps == 2
    assert again.checkpoint.read_bytes() == before
    assert (tmp_path / "run/state/finished").is_file()


def test_a_finished_run_says_how_far_it_went_and_whether_masks_measured_it(
    train_scenes, scenes, tmp_path
):
    small = config(train_scenes, tmp_path / "run", limit=2, max_steps=1, epochs=4, pictures_every=0)
    val = {"val": scenes.instances, "val_images": scenes.images}
    for changes, steps, measured in (({}, 1, False), ({"max_steps": 3, **val}, 3, True),
                                     ({"max_steps": 4}, 4, False)):  # fmt: skip
        result = fit(dataclasses.replace(small, resume=steps > 1, **changes))
        loaded = load_checkpoint(result.checkpoint)
        assert loaded.trained == {"steps": steps, "epochs": steps / 4}
        assert bool(loaded.quality) == measured
        finished = json.loads((result.run / "state/finished").read_text())
        assert finished == {**loaded.trained, "measured": measured}


def stop_in_label(monkeypatch, signum):
    """Let a signal come while masks are made."""
    flags = []
    enter = StopFlag.__enter__
    monkeypatch.setattr(StopFlag, "__enter__", lambda self: flags.append(self) or enter(self))
    write = PartFolder.write

    def stopping(self, index, outcomes):
        write(self, index, outcomes)
        flags[-1].signum = signum

    monkeypatch.setattr(PartFolder, "write", stopping)


@pytest.mark.parametrize(("val_every", "at"), [(1, 1), (1000, 2)])
def test_a_signal_in_the_validation_names_the_command_that_resumes_the_run(
    train_scenes, scenes, tmp_path, monkeypatch, val_every, at
):
    small = config(
        train_scenes, tmp_path / "run", max_steps=2, pictures_every=0, val=scenes.instances,
        val_images=scenes.images, val_every=val_every,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        stop_in_label(patch, 15)
        with pytest.raises(Interrupted) as caught:
            fit(small)
    assert caught.value.exit_code == 143
    said = str(caught.value)
    assert f"in the validation at step {at}, state kept; resume with: malcli fit " in said
    assert "--resume" in said
    assert "malcli label" not in said
    result = fit(dataclasses.replace(small, resume=True))
    entries = [line["step"] for line in lines(result.run) if "val" in line]
    assert entries == ([1, 2] if val_every == 1 else [2])


def test_a_signal_while_thresholds_are_chosen_names_the_command_that_resumes_the_run(
    train_scenes, tmp_path, monkeypatch
):
    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(fit_command, "save_thresholds", interrupt)
    with pytest.raises(Interrupted, match=r"thresholds, state kept; .*fit .*--resume") as caught:
        fit(config(train_scenes, tmp_path / "run", max_steps=1, threshold="auto"))
    assert caught.value.exit_code == 130


def test_a_start_that_was_killed_at_once_can_be_started_and_resumed(train_scenes, tmp_path):
    small = config(train_scenes, tmp_path / "run", max_steps=1, pictures_every=0)
    (tmp_path / "run/state").mkdir(parents=True)
    left = beside(tmp_path / "run/state/settings.json")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{2**30}-"))  # no such process
    left.write_text("{")
    fit(dataclasses.replace(small, resume=True))
    assert not left.exists()


def test_a_run_without_a_state_yet_is_resumed_from_its_weights(whole, train_scenes, tmp_path):
    small = config(
        train_scenes, tmp_path / "run", max_steps=1, pictures_every=0,
        weights=str(whole[1].checkpoint),
    )  # fmt: skip
    before = fit(small).checkpoint.read_bytes()
    shutil.rmtree(next((tmp_path / "run/state").glob("step-*")))
    assert fit(dataclasses.replace(small, resume=True)).checkpoint.read_bytes() == before


def test_a_replacement_that_was_killed_is_never_resumed_but_replaced(train_scenes, tmp_path):
    small = config(train_scenes, tmp_path / "run", max_steps=1, pictures_every=0)
    fit(small)
    (tmp_path / "run/state/settings.json").unlink()  # the first that goes
    with pytest.raises(OutputError, match="--overwrite"):
        fit(dataclasses.replace(small, resume=True))
    fit(dataclasses.replace(small, overwrite=True))
