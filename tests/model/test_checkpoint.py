"""Checkpoints: the way there and back, and every kind of file that is none."""

import dataclasses
import json
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from malcli import __version__
from malcli.errors import CheckpointError, RunError
from malcli.files import hash_file
from malcli.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_labeler_weights,
    read_tensors,
    save_checkpoint,
    with_quality,
)
from malcli.model.labeler import Architecture, build_labeler
from malcli.model.locate import CHECKPOINT_NAME

TINY = Architecture(
    encoder="timm/test_vit.r160_in1k",
    decoder="attention",
    crop_size=32,
    channels=4,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)


@pytest.fixture(scope="module")
def tiny():
    """A checkpoint of two different networks; read only."""
    torch.manual_seed(0)
    return Checkpoint(
        student=build_labeler(TINY),
        teacher=build_labeler(TINY),
        architecture=TINY,
        threshold=(0.1, 0.25, 0.4),
        settings={"seed": 3, "data": "train.json", "lr": 1.5e-6, "val": None},
        quality={"miou": {"all": 0.61}, "data": "val.json"},
    )


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Its file; read only."""
    path = tmp_path_factory.mktemp("saved") / CHECKPOINT_NAME
    save_checkpoint(tiny, path)
    return path


def states(checkpoint):
    return {
        f"{name}.{key}": value
        for name in ("student", "teacher")
        for key, value in getattr(checkpoint, name).state_dict().items()
    }


def test_a_float32_round_trip_is_bit_equal(tiny, saved):
    loaded = load_checkpoint(saved)
    wanted, got = states(tiny), states(loaded)
    assert wanted.keys() == got.keys()
    for key, value in wanted.items():
        assert torch.equal(value, got[key]), key
    assert not torch.equal(got["student.decoder.key.0.weight"], got["teacher.decoder.key.0.weight"])
    same = ("architecture", "threshold", "settings", "quality")
    assert all(getattr(loaded, name) == getattr(tiny, name) for name in same)
    assert loaded.sha256 == hash_file(saved)


def test_a_loaded_network_computes_the_same_and_is_frozen(tiny, saved):
    loaded = load_checkpoint(saved)
    image, size = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded.student(image, size), tiny.student.eval()(image, size))
    for network in (loaded.student, loaded.teacher):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_float16_round_trip_rounds_once_and_halves_the_file(tiny, saved, tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(tiny, path, torch.float16)
    got = states(load_checkpoint(path))
    for key, value in states(tiny).items():
        assert got[key].dtype == torch.float32
        assert torch.equal(got[key], value.half().float()), key
    assert path.stat().st_size < 0.6 * saved.stat().st_size


def test_equal_checkpoints_are_equal_bytes(tiny, saved, tmp_path):
    again = tmp_path / "again.safetensors"
    save_checkpoint(tiny, again)
    assert hash_file(again) == hash_file(saved)
    assert [file.name for file in tmp_path.iterdir()] == ["again.safetensors"]


def test_a_checkpoint_is_as_readable_as_any_new_file(tiny, tmp_path):
    path, other = tmp_path / CHECKPOINT_NAME, tmp_path / "other"
    save_checkpoint(tiny, path)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_quality_is_written_into_the_file(tiny, saved, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(saved.read_bytes())
    with_quality(path, {"miou": {"all": 0.7}, "data": "v.json"})
    loaded = load_checkpoint(path)
    assert loaded.quality == {"miou": {"all": 0.7}, "data": "v.json"}
    assert loaded.settings == tiny.settings
    for key, value in states(tiny).items():
        assert torch.equal(value, states(loaded)[key])


def test_a_full_disk_keeps_the_old_checkpoint(tiny, tmp_path):
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=rf"{CHECKPOINT_NAME}: no space left to write"):
            save_checkpoint(tiny, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_NAME]


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(saved, tmp_path, share):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.read_bytes()[: int(saved.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: damaged, or not a malcli"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"cut.safetensors: cannot be read as weights"):
        read_tensors(path)


def test_damage_anywhere_in_the_header_is_named_or_harmless(saved, tmp_path):
    original = saved.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    path = tmp_path / "bad.safetensors"
    refused = {}
    for offset in (0, 3, 7, 8, 9, *range(10, end, end // 40)):
        data = bytearray(original)
        data[offset] ^= 0x15
        path.write_bytes(data)
        try:
            load_checkpoint(path)  # a changed digit in `settings` is still a checkpoint
        except CheckpointError as error:
            refused[offset] = str(error)
    assert {0, 3, 7, 8, 9} <= refused.keys()
    assert len(refused) >= 35
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused.values())


def test_flipped_bits_are_noticed_or_harmless(tiny, saved, tmp_path):
    path, content, rng = tmp_path / "flipped.safetensors", saved.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [rng.randrange(header) for _ in range(40)]
    places += [rng.randrange(header, len(content)) for _ in range(20)]
    noticed = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            noticed += 1
            continue
        assert place < header
        assert loaded.threshold == tiny.threshold
        assert all(torch.equal(v, states(tiny)[k]) for k, v in states(loaded).items())
    assert noticed >= 50


def rewrite(saved, path, change):
    """Write a copy whose configuration was changed by somebody, who left the checksums out."""
    with safe_open(saved, framework="pt") as file:
        meta = json.loads(file.metadata()["malcli"])
    del meta["sha256"], meta["tensors_sha256"]
    with safe_open(saved, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(meta, tensors)
    save_file(tensors, path, {"malcli": json.dumps(meta)})


CHANGES = {
    "no architecture": lambda meta, _: meta.pop("architecture"),
    "architecture is a list": lambda meta, _: meta.update(architecture=[1]),
    "unknown field": lambda meta, _: meta["architecture"].update(colour="red"),
    "missing field": lambda meta, _: meta["architecture"].pop("channels"),
    "two thresholds": lambda meta, _: meta.update(threshold=[0.1, 0.2]),
    "threshold text": lambda meta, _: meta.update(threshold=["a", "b", "c"]),
    "settings a list": lambda meta, _: meta.update(settings=[1]),
    "threshold NaN": lambda meta, _: meta.update(threshold=[float("nan")] * 3),
    "threshold below 0": lambda meta, _: meta.update(threshold=[-5, 0.5, 0.5]),
    "threshold huge": lambda meta, _: meta.update(threshold=[0.5, 0.5, 1e300]),
    "threshold 1": lambda meta, _: meta.update(threshold=[0.5, 0.5, 1]),
    "threshold true": lambda meta, _: meta.update(threshold=[True, 0.5, 0.5]),
    "threshold no list": lambda meta, _: meta.update(threshold={"small": 0.5}),
    "threshold of digits": lambda meta, _: meta.update(threshold=[10**4000] * 3),
    "zeta text": lambda meta, _: meta["settings"].update(crf_zeta="abc"),
    "zeta 0": lambda meta, _: meta["settings"].update(crf_zeta=0),
    "iterations huge": lambda meta, _: meta["settings"].update(crf_iterations=10**12),
    "bandwidth infinite": lambda meta, _: meta["settings"].update(colour_bandwidth=float("inf")),
    "quality text": lambda meta, _: meta.update(quality="good"),
    "miou a list": lambda meta, _: meta["quality"].update(miou=[0.5]),
    "miou text": lambda meta, _: meta["quality"].update(miou={"all": "good"}),
    "miou above 1": lambda meta, _: meta["quality"].update(miou={"small": 7}),
    "data a list": lambda meta, _: meta["quality"].update(data=["x"]),
    "no data": lambda meta, _: meta["quality"].pop("data"),
    "key layers huge": lambda meta, _: meta["architecture"].update(key_layers=10**8),
    "upsampling huge": lambda meta, _: meta["architecture"].update(upsample_before=10**9),
    "crop size huge": lambda meta, _: meta["architecture"].update(crop_size=16_384),
    "channels huge": lambda meta, _: meta["architecture"].update(channels=10**6),
    "scale infinite": lambda meta, _: meta["architecture"].update(feature_scale=float("inf")),
    "scaling text": lambda meta, _: meta["architecture"].update(size_scaling="yes"),
    "a giant": lambda meta, _: meta["architecture"].update(encoder="timm/vit_giant_patch14_dinov2"),
    "a tower": lambda meta, _: meta["architecture"].update(encoder="vit/64x999"),
    "a plain": lambda meta, _: meta["architecture"].update(encoder="vit/9984x30"),
    "a long name": lambda meta, _: meta["architecture"].update(encoder="timm/" + "x" * 10**6),
    "unknown encoder": lambda meta, _: meta["architecture"].update(encoder="vit_mae_bas"),
    "encoder a number": lambda meta, _: meta["architecture"].update(encoder=5),
    "unknown decoder": lambda meta, _: meta["architecture"].update(decoder="nose"),
    "negative channels": lambda meta, _: meta["architecture"].update(channels=-4),
    "crop size text": lambda meta, _: meta["architecture"].update(crop_size="x"),
    "crop size odd": lambda meta, _: meta["architecture"].update(crop_size=33),
    "other channels": lambda meta, _: meta["architecture"].update(channels=6),
    "tensor missing": lambda _, tensors: tensors.pop("teacher.decoder.key.0.bias"),
    "tensor shape": lambda _, t: t.update({"student.decoder.key.0.bias": torch.zeros(3)}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_configuration_that_does_not_fit_is_one_line(saved, tmp_path, change):
    path = tmp_path / "odd.safetensors"
    rewrite(saved, path, change)
    with pytest.raises(CheckpointError, match=r"^[^\n]*odd.safetensors: [^\n]*$"):
        load_checkpoint(path)


def test_a_message_names_versions_and_tensors(saved, tmp_path):
    path = tmp_path / "odd.safetensors"
    rewrite(saved, path, lambda meta, _: (meta.pop("threshold"), meta.update(version="9.9")))
    with pytest.raises(CheckpointError, match=rf"written by malcli 9.9, this is {__version__}"):
        load_checkpoint(path)
    rewrite(saved, path, CHANGES["tensor missing"])
    with pytest.raises(CheckpointError, match=r"1 tensors .* first teacher.decoder.key.0.bias"):
        load_checkpoint(path)


@pytest.mark.parametrize("reader", [load_checkpoint, read_tensors])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty; copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
        (b"\x00" * 64, "odd.file: "),
        (b"{}", "odd.file: "),
        ((2).to_bytes(8, "little") + b"{}", "odd.file: "),
    ],
)
def test_files_of_another_kind_are_one_line(tmp_path, reader, content, message):
    path = tmp_path / "odd.file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        reader(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class Trap:
    """Pickles as a call that makes a file."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


@pytest.mark.parametrize("reader", [load_checkpoint, read_tensors])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, reader, form):
    flag, path = tmp_path / "it ran", tmp_path / "evil.pth"
    content = {"model": {"a": torch.zeros(2)}, "args": Trap(flag)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"evil.pth"):
        reader(path)
    assert not flag.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert flag.exists()  # the trap works


def test_safetensors_of_others_are_pointed_to_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not of malcli .*give it as --weights"):
        load_checkpoint(path)
    save_file({"a": torch.ones(2)}, path, {"malcli": "[" * 100_000})
    with pytest.raises(CheckpointError, match="not of malcli"):
        load_checkpoint(path)
    assert read_tensors(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_state_dict"])
def test_torch_files_of_plain_tensors_are_read(tmp_path, wrap):
    state = {"a": torch.arange(3.0), "b": torch.eye(2)}
    path = tmp_path / "plain.pth"
    torch.save({wrap: state, "epoch": 7} if wrap else state, path)
    read = read_tensors(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.zeros(1)], "holds a list"), ({"epoch": 3}, "holds no tensors")],
)
def test_torch_files_without_named_tensors_are_named(tmp_path, content, message):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"odd.pth: {message}"):
        read_tensors(path)


def test_a_labeler_starts_from_another_s_student_at_another_crop_size(tiny, saved):
    network = build_labeler(dataclasses.replace(TINY, crop_size=64))
    load_labeler_weights(network, read_tensors(saved), saved)
    wanted = tiny.student.state_dict()
    for key, value in network.state_dict().items():
        if key != "encoder.body.pos_embed":
            assert torch.equal(value, wanted[key]), key
    assert network.crop_size == 64
    assert network(torch.zeros(1, 3, 64, 64), torch.tensor([1])).shape == (1, 16, 16)


def test_a_labeler_of_another_shape_is_named(saved):
    network = build_labeler(dataclasses.replace(TINY, channels=6))
    with pytest.raises(CheckpointError, match=r"of another shape, first student.decoder"):
        load_labeler_weights(network, read_tensors(saved), saved)


@pytest.mark.parametrize("change", ["a giant", "a tower", "a plain", "crop size huge"])
def test_a_network_that_does_not_fit_is_refused_before_it_is_built(
    saved, tmp_path, monkeypatch, change
):
    path = tmp_path / "odd.safetensors"
    rewrite(saved, path, CHANGES[change])
    devices = []

    def build(architecture):
        devices.append(torch.empty(0).device.type)
        return build_labeler(architecture)

    monkeypatch.setattr("malcli.model.claims.build_labeler", build)
    monkeypatch.setattr("malcli.model.checkpoint.build_labeler", build)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert "cpu" not in devices
