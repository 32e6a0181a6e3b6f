"""What a step does to the networks, by hand or against a step done otherwise."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from malcli.config.fit import FitConfig
from malcli.engine.fit import trainer as trainer_module
from malcli.engine.fit.command import fit
from malcli.engine.fit.loop import TrainingLoop
from malcli.engine.fit.trainer import MAX_SKIPPED, Trainer
from malcli.engine.machine.signals import StopFlag
from malcli.errors import Interrupted, RunError


def config(train_scenes, out, **changes):
    settings = {
        "data": train_scenes.boxes, "images": train_scenes.images, "out": out,
        "encoder": "vit/64x3", "weights": "none", "crop_size": 32, "channels": 8,
        "batch_size": 2, "epochs": 1, "max_steps": 3, "lr": 1e-4, "min_box_area": 0.0,
        "warmup_epochs": 0.0, "mil_ramp": 0, "crf_ramp": 0, "crf_iterations": 3, "log_every": 1,
        "pictures_every": 0, "workers": 0, "device": "cpu",
    }  # fmt: skip
    return FitConfig(**settings | changes)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal_tensors(one, other):
    expected, found = load_file(one.checkpoint), load_file(other.checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.fixture
def gradients():
    """The gradients of every optimiser step, one vector each."""
    kept = []

    def keep(optimizer, args, kwargs):
        held = [p.grad for group in optimizer.param_groups for p in group["params"]]
        kept.append(torch.cat([gradient.flatten() for gradient in held]))

    hook = register_optimizer_step_pre_hook(keep)
    yield kept
    hook.remove()


def test_accumulated_batches_give_the_losses_and_gradients_of_one_large_batch(
    train_scenes, tmp_path, gradients
):
    common = {"max_steps": 2, "mil_norm": 1e-4}
    large = fit(config(train_scenes, tmp_path / "a", batch_size=4, **common))
    parts = fit(config(train_scenes, tmp_path / "b", batch_size=1, grad_accum=4, **common))
    for one, other in zip(lines(large.run), lines(parts.run), strict=True):
        for key in ("loss", "loss_mil", "loss_crf", "lr"):
            assert other[key] == pytest.approx(one[key], rel=1e-5)
    scale = gradients[0].abs().max()
    assert (gradients[0] - gradients[2]).abs().max() < 1e-5 * scale


def test_mil_norm_is_added_to_the_global_batch(train_scenes, tmp_path):
    plain = fit(config(train_scenes, tmp_path / "a", batch_size=2, grad_accum=2, max_steps=1))
    normed = fit(
        config(train_scenes, tmp_path / "b", batch_size=2, grad_accum=2, max_steps=1, mil_norm=1.0)
    )
    # A sum over 4 samples divided by 4 + 1.
    assert normed.last["loss_mil"] == pytest.approx(plain.last["loss_mil"] * 4 / 5, rel=1e-6)
    assert normed.last["loss_crf"] == plain.last["loss_crf"]


def test_the_total_loss_is_eq_1_all_four_terms_weighted_and_ramped(
    train_scenes, tmp_path, monkeypatch
):
    losses = trainer_module.batch_losses
    terms = []

    def keep(*args):
        found = losses(*args)
        terms.append([value.item() for value in found])
        return found

    monkeypatch.setattr(trainer_module, "batch_losses", keep)
    run = fit(
        config(
            train_scenes, tmp_path / "run", limit=2, max_steps=6, epochs=2, mil_norm=1.0,
            mil_weight=4.0, crf_weight=0.5, outside_weight=3.0, paste_weight=0.7, mil_ramp=5,
            crf_ramp=2, paste=train_scenes.instances, paste_share=1.0,
        )
    )  # fmt: skip
    found = lines(run.run)
    assert [line["epoch"] for line in found] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    mil_ramps, crf_ramps = (0, 1 / 5, 2 / 5, 3 / 5, 1, 1), (0, 1 / 2, 1, 1, 1, 1)
    for line, (mil, crf, outside, paste), up, rise in zip(
        found, terms, mil_ramps, crf_ramps, strict=True
    ):
        mil = mil * 2 / (2 + 1.0)  # 2 crops a step, --mil-norm 1
        wanted = 4.0 * up * mil + 0.5 * rise * crf + 3.0 * outside + 0.7 * paste
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)
    # Every term tells, also where no ramp hides it.
    assert all(min(term[:3]) > 0.01 for term in terms)
    assert max(term[3] for term in terms[1:]) > 0.01


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(train_scenes, tmp_path, gradients):
    for number, clip in enumerate((None, 0.01)):
        fit(config(train_scenes, tmp_path / str(number), max_steps=1, grad_clip=clip))
    free, clipped = gradients
    assert free.norm() > 0.02
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-6)


def test_checkpointed_activations_change_no_loss_and_no_gradient(train_scenes, tmp_path, gradients):
    plain = fit(config(train_scenes, tmp_path / "a", max_steps=2))
    saved = fit(config(train_scenes, tmp_path / "b", max_steps=2, grad_checkpointing=True))
    for one, other in zip(lines(plain.run), lines(saved.run), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    scale = gradients[0].abs().max()
    assert (gradients[0] - gradients[2]).abs().max() <= 1e-6 * scale


def test_a_run_may_be_resumed_with_checkpointed_activations(train_scenes, tmp_path):
    small = config(train_scenes, tmp_path / "run", max_steps=1)
    fit(small)
    result = fit(dataclasses.replace(small, max_steps=2, resume=True, grad_checkpointing=True))
    assert result.steps == 2


@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("cut", [1, 4])
def test_a_resumed_run_drops_the_paths_of_an_uninterrupted_one(
    train_scenes, tmp_path, grad_accum, cut
):
    small = config(
        train_scenes, tmp_path / "whole", max_steps=5, drop_path=0.5, grad_accum=grad_accum,
        layer_decay=0.7,
    )  # fmt: skip
    whole = fit(small)
    parts = dataclasses.replace(small, out=tmp_path / "parts", max_steps=cut)
    fit(parts)
    torch.manual_seed(123)  # whatever happened in between
    assert_equal_tensors(whole, fit(dataclasses.replace(parts, max_steps=5, resume=True)))


def test_paths_are_dropped_in_the_student_alone_and_differ_from_step_to_step(
    train_scenes, tmp_path
):
    plain = fit(config(train_scenes, tmp_path / "a", max_steps=2, lr=0.0, limit=1))
    dropped = fit(config(train_scenes, tmp_path / "b", max_steps=2, lr=0.0, limit=1, drop_path=0.5))
    assert_equal_tensors(plain, dropped)  # at a rate of 0 the start is still there
    assert lines(plain.run)[0]["loss_mil"] != lines(dropped.run)[0]["loss_mil"]


def test_the_teacher_runs_in_evaluation_mode_and_has_no_drop_path(
    train_scenes, tmp_path, monkeypatch
):
    seen = []
    losses = trainer_module.batch_losses

    def look(settings, batch, student, teacher, *rest):
        kinds = [type(part).__name__ for part in teacher.modules()]
        seen.append((student.training, teacher.training, kinds.count("DropPath")))
        return losses(settings, batch, student, teacher, *rest)

    monkeypatch.setattr(trainer_module, "batch_losses", look)
    fit(config(train_scenes, tmp_path / "run", max_steps=2, drop_path=0.3, pictures_every=1))
    assert seen == [(True, False, 0)] * 2


def test_the_released_order_of_rates_survives_a_resume(train_scenes, tmp_path):
    small = config(
        train_scenes, tmp_path / "whole", max_steps=4, lr_timing="after", warmup_epochs=1.0
    )
    whole = fit(small)
    rates = [line["lr"] for line in lines(whole.run)]
    peak = 1e-4 * 2
    assert rates[:2] == [peak, 0.0]  # mal.md 7: full at first, then the warm-up's 0
    assert 0 < rates[2] < rates[3] < peak
    parts = dataclasses.replace(small, out=tmp_path / "parts", max_steps=1)
    fit(parts)
    assert_equal_tensors(whole, fit(dataclasses.replace(parts, max_steps=4, resume=True)))


def test_layer_decay_slows_the_lower_layers_down(train_scenes, tmp_path):
    common = {"max_steps": 1, "weight_decay": 0.0}
    start = load_file(fit(config(train_scenes, tmp_path / "0", lr=0.0, **common)).checkpoint)
    moved = {}
    for decay in (1.0, 0.5):
        run = fit(config(train_scenes, tmp_path / str(decay), layer_decay=decay, **common))
        after = load_file(run.checkpoint)
        moved[decay] = {
            key: (after[key] - start[key]).abs().median().item()
            for key in start
            if key.startswith("student.") and "qkv.weight" in key
        }
    for depth, block in enumerate((2, 1, 0)):
        key = f"student.encoder.body.blocks.{block}.attn.qkv.weight"
        assert moved[0.5][key] == pytest.approx(moved[1.0][key] * 0.5**depth, rel=0.05)


def scaled_by(monkeypatch, scale, **options):
    """Give every trainer the loss scaler that fp16 has on a GPU."""
    init = Trainer.__init__
    made = []

    def with_scaler(self, config, run, accelerator, *args):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, **options)
        init(self, config, run, accelerator, *args)
        made.append(self)

    monkeypatch.setattr(Trainer, "__init__", with_scaler)
    return made


def test_steps_that_overflow_move_neither_network_and_are_counted(
    train_scenes, tmp_path, monkeypatch
):
    start = load_file(fit(config(train_scenes, tmp_path / "0", lr=0.0, max_steps=1)).checkpoint)
    # A loss scaled by 2^126 overflows; each skipped step takes the scale to a 2^-60th.
    scaled_by(monkeypatch, 2.0**126, backoff_factor=2.0**-60)
    result = fit(config(train_scenes, tmp_path / "run", max_steps=1))
    assert result.last["skipped"] == 1
    after = load_file(result.checkpoint)
    assert all(torch.equal(value, after[key]) for key, value in start.items())
    resumed = fit(config(train_scenes, tmp_path / "run", max_steps=3, resume=True))
    assert resumed.last["skipped"] == 1  # the state holds the scale that fits
    after = load_file(resumed.checkpoint)
    for network in ("student", "teacher"):
        key = f"{network}.decoder.value.0.weight"
        assert not torch.equal(after[key], start[key])


def test_scaled_steps_equal_plain_ones(train_scenes, tmp_path, monkeypatch):
    plain = fit(config(train_scenes, tmp_path / "a"))
    scaled_by(monkeypatch, 2.0**8)
    scaled = fit(config(train_scenes, tmp_path / "b"))
    for one, other in zip(lines(plain.run), lines(scaled.run), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_overflows_without_end_stop_the_run(train_scenes, tmp_path, monkeypatch):
    made = scaled_by(monkeypatch, 3e38, backoff_factor=0.999)
    endless = config(train_scenes, tmp_path / "run", max_steps=80, epochs=20, limit=2)
    with pytest.raises(RunError, match=f"overflowed {MAX_SKIPPED} steps"):
        fit(endless)
    assert made[0].loop.place.skipped == MAX_SKIPPED


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 137438953472 bytes. Error code 12"
        ),
        MemoryError(),
    ],
)
def test_want_of_memory_is_one_line_that_says_what_to_lower(
    train_scenes, tmp_path, monkeypatch, error
):
    step = Trainer._step

    def fail_at_four(self, batches):
        if self.loop.place.step == 3:
            raise error
        return step(self, batches)

    monkeypatch.setattr(Trainer, "_step", fail_at_four)
    with pytest.raises(RunError) as caught:
        fit(config(train_scenes, tmp_path / "run", save_every=1, max_steps=4))
    text = str(caught.value)
    assert "\n" not in text
    for flag in ("--batch-size", "--grad-accum", "--grad-checkpointing", "--crop-size"):
        assert flag in text
    states = sorted(path.name for path in (tmp_path / "run/state").glob("step-*"))
    assert states == ["step-00000002", "step-00000003"]  # the newest two are kept


def test_other_errors_keep_their_trace(train_scenes, tmp_path, monkeypatch):
    def fail(self, batches):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        fit(config(train_scenes, tmp_path / "run"))


def test_the_paper_s_and_the_released_settings_train(train_scenes, tmp_path):
    paper = fit(
        config(
            train_scenes, tmp_path / "paper", key_pool="max", key_layers=1, upsample_before=3,
            mil_form="joint", crf_zeta=0.5, crf_omega=2.0, crf_self=False, loss_size="crop",
            pictures_every=3,
        )
    )  # fmt: skip
    released = fit(
        config(
            train_scenes, tmp_path / "released", expansion="released", border="wrap",
            keep_crowd=True, lr_timing="after", teacher_start="independent", crf_image="jittered",
            stem="convolutional", position="released", size_classes="strict",
            box_mask="inclusive", mil_norm=1e-4, pictures_every=3,
        )
    )  # fmt: skip
    for result in (paper, released):
        assert all(line["loss"] > 0 for line in lines(result.run))
        assert list((result.run / "pictures").glob("*.png"))


def test_the_printed_command_of_an_interrupted_run_keeps_its_settings(
    train_scenes, tmp_path, monkeypatch
):
    count = TrainingLoop._count
    flags = []
    enter = StopFlag.__enter__
    monkeypatch.setattr(StopFlag, "__enter__", lambda self: flags.append(self) or enter(self))

    def stop_at_once(self):
        count(self)
        flags[0].signum = 2

    monkeypatch.setattr(TrainingLoop, "_count", stop_at_once)
    with pytest.raises(Interrupted) as caught:
        fit(config(train_scenes, tmp_path / "run", layer_decay=0.75, drop_path=0.1))
    for words in ("malcli fit", "--layer-decay 0.75", "--drop-path 0.1", "--resume"):
        assert words in str(caught.value)
