import dataclasses
from pathlib import Path

import pytest
import torch

from malcli.config.fit import FitConfig
from malcli.engine.fit.networks import build_networks, with_architecture_of_weights
from malcli.errors import CheckpointError
from malcli.model.checkpoint import Checkpoint, read_tensors, save_checkpoint
from malcli.model.labeler import build_labeler


def config(**changes):
    settings = {
        "data": Path("x"), "encoder": "vit/64x2", "weights": "none", "crop_size": 32,
        "channels": 8,
    }  # fmt: skip
    return FitConfig(**settings | changes)


def build(settings, continued=False):
    torch.manual_seed(0)
    return build_networks(settings, continued)


def same(one, other, part=""):
    values = other.state_dict()
    return {
        torch.equal(value, values[key])
        for key, value in one.state_dict().items()
        if key.startswith(part) and value.std() > 0  # zeros and ones are no random values
    }


def released_name(key):
    """malcli's name of a tensor as the released code has it (mal.md 10.1)."""
    for ours, theirs in (
        ("encoder.body.", "backbone."), ("decoder.key.0.", "roi_head.mlp1."),
        ("decoder.key.2.", "roi_head.mlp2."),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    if key.startswith("decoder.value."):
        _, _, number, kind = key.split(".")
        key = f"mask_head.convs.{number}.conv.{kind}"
    return key


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as the released code writes it: convolutional stem, a 14 x 14 position grid."""
    torch.manual_seed(5)
    networks = {
        name: build_labeler(
            build(config(stem="convolutional", position="released", crop_size=224))[2]
        )
        for name in ("student", "teacher")
    }
    state = {
        f"{name}.{released_name(key)}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("released") / "old.ckpt"
    torch.save({"state_dict": state, "epoch": 9}, path)
    return path, networks


def test_the_teacher_starts_as_the_student_s_copy():
    student, teacher, _ = build(config())
    assert same(student, teacher) == {True}
    assert student.training
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_an_independent_teacher_has_random_values_of_its_own_where_no_file_has_any():
    student, teacher, _ = build(config(teacher_start="independent"))
    assert same(student, teacher) == {False}


def test_an_independent_teacher_shares_what_the_file_holds(tmp_path):
    source, _, _ = build(config())
    path = tmp_path / "encoder.pth"
    torch.save({"model": source.encoder.body.state_dict()}, path)
    student, teacher, _ = build(config(teacher_start="independent", weights=str(path)))
    assert same(student, teacher, "encoder") == {True}
    assert same(student, teacher, "decoder") == {False}
    assert same(student.encoder, source.encoder) == {True}


def test_a_convolutional_stem_is_random_whatever_the_file_and_the_teacher_s_its_own(tmp_path):
    source, _, _ = build(config())
    path = tmp_path / "encoder.pth"
    torch.save({"model": source.encoder.body.state_dict()}, path)
    settings = config(stem="convolutional", position="released", weights=str(path))
    student, teacher, _ = build(dataclasses.replace(settings, teacher_start="independent"))
    assert same(student, teacher, "encoder.body.blocks") == {True}
    assert same(student, teacher, "encoder.body.patch_embed") == {False}
    assert same(student.encoder.body.blocks, source.encoder.body.blocks) == {True}


@pytest.mark.parametrize("start", ["copy", "independent"])
def test_a_labeler_s_student_starts_both_networks(tmp_path, start):
    first, second, architecture = build(config(teacher_start="independent"))
    path = tmp_path / "labeler.safetensors"
    save_checkpoint(Checkpoint(first, second, architecture, (0.5, 0.5, 0.5)), path)
    student, teacher, _ = build_networks(config(weights=str(path), teacher_start=start), False)
    assert same(student, first) == {True}
    assert same(teacher, first) == {True}


@pytest.mark.parametrize("start", ["copy", "independent"])
def test_a_released_labeler_brings_its_architecture_and_its_student(released, start):
    path, networks = released
    given = FitConfig(data=Path("x"), weights=str(path), crop_size=64, teacher_start=start)
    adopted = with_architecture_of_weights(given)
    assert adopted.encoder == "vit/64x2"
    assert (adopted.stem, adopted.position) == ("convolutional", "released")
    assert (adopted.channels, adopted.size_classes) == (8, "strict")
    assert adopted.crop_size == 64  # the user's, not the file's
    student, teacher, architecture = build_networks(adopted, False)
    assert architecture.crop_size == 64
    for network in (student, teacher):
        assert same(network.decoder, networks["student"].decoder) == {True}
        assert same(network.encoder.body.blocks, networks["student"].encoder.body.blocks) == {True}
    # Taking it again, as a resumed run does, changes nothing.
    assert with_architecture_of_weights(adopted) == adopted


def test_other_weights_leave_the_settings_alone(tmp_path):
    first, second, architecture = build(config())
    path = tmp_path / "labeler.safetensors"
    save_checkpoint(Checkpoint(first, second, architecture, (0.5, 0.5, 0.5)), path)
    for weights in (None, "none", str(path)):
        settings = config(weights=weights, encoder="vit/128x1")
        assert with_architecture_of_weights(settings) == settings


def test_a_resumed_run_needs_no_weight_file():
    settings = config(weights="gone.ckpt", resume=True)
    assert with_architecture_of_weights(settings) == settings
    with pytest.raises(CheckpointError, match=r"gone\.ckpt"):
        with_architecture_of_weights(dataclasses.replace(settings, resume=False))
    build(settings, continued=True)


def test_a_labeler_of_another_architecture_is_refused_by_name(tmp_path):
    first, second, architecture = build(config())
    path = tmp_path / "labeler.safetensors"
    save_checkpoint(Checkpoint(first, second, architecture, (0.5, 0.5, 0.5)), path)
    assert read_tensors(path)
    with pytest.raises(CheckpointError, match=r"labeler\.safetensors.*student\."):
        build(config(weights=str(path), encoder="vit/128x1"))


def test_only_the_student_has_drop_path_and_checkpointed_activations():
    student, teacher, _ = build(config(drop_path=0.2, grad_checkpointing=True))
    kinds = [[type(part).__name__ for part in network.modules()] for network in (student, teacher)]
    assert "DropPath" in kinds[0]
    assert "DropPath" not in kinds[1]
    assert student.encoder.body.grad_checkpointing
    assert not teacher.encoder.body.grad_checkpointing
