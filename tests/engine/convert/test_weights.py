"""Released checkpoints become malcli's: whole, once, and with the same masks."""

import json
import os
import resource
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch

from malcli.config.convert import ConvertConfig
from malcli.engine.convert.command import convert
from malcli.engine.label.command import label
from malcli.engine.label.settings import resolve_label
from malcli.errors import CheckpointError, ConfigError, OutputError, RunError
from malcli.files import hash_file
from malcli.model.checkpoint import load_checkpoint, save_checkpoint
from malcli.model.labeler import Architecture, build_labeler
from malcli.model.locate import SHIPPED, preset_of

THEIRS = (("encoder.body.", "backbone."), ("decoder.key.0.", "roi_head.mlp1."),
          ("decoder.key.2.", "roi_head.mlp2."), ("decoder.value.", "mask_head.convs."))  # fmt: skip


def released_name(name):
    """Ours back into theirs."""
    for ours, other in THEIRS:
        if name.startswith(ours):
            name = name.replace(ours, other)
            place, _, last = name.rpartition(".")
            return f"{place}.conv.{last}" if other == "mask_head.convs." else name
    raise AssertionError(name)


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """A small released checkpoint of random values; read only."""
    torch.manual_seed(0)
    architecture = Architecture(
        encoder="vit/64x1", decoder="attention", crop_size=224, channels=8, key_pool="mean",
        key_layers=2, upsample_before=4, size_scaling=True, stem="convolutional",
        position="released", size_classes="strict",
    )  # fmt: skip
    state = OrderedDict(
        (f"{network}.{released_name(name)}", torch.randn_like(value) * 0.2)
        for network in ("student", "teacher")
        for name, value in build_labeler(architecture).state_dict().items()
    )
    path = tmp_path_factory.mktemp("src") / "mal.ckpt"
    torch.save({"state_dict": state, "epoch": 9}, path)
    return path


def run(src, dst, **options):
    return convert(ConvertConfig(src=src, dst=dst, **options))


def states(checkpoint):
    return {
        f"{name}.{key}": value
        for name in ("student", "teacher")
        for key, value in getattr(checkpoint, name).state_dict().items()
    }


def test_the_result_says_what_was_found(src, tmp_path):
    result = run(src, tmp_path / "out.safetensors").to_json()
    assert json.loads(json.dumps(result)) == result
    assert (result["source"], result["unchanged"]) == ("NVlabs", False)
    wanted = {"encoder": "vit/64x1", "stem": "convolutional", "position": "released", "channels": 8}
    assert result["architecture"].items() >= wanted.items()
    content = torch.load(src, weights_only=True)["state_dict"]
    student = sum(value.numel() for key, value in content.items() if key.startswith("student."))
    grown = (32 * 32 - 14 * 14) * 64  # the position grid, for crops of 512
    assert result["parameters"] == student + grown
    assert result["self_test"]["passed"] is False
    assert "does not behave like a trained labeler" in result["self_test"]["sentence"]


def test_the_converted_file_holds_the_same_networks(src, tmp_path):
    dst = tmp_path / "new" / "out.safetensors"
    run(src, dst)
    before, after = load_checkpoint(src), load_checkpoint(dst)
    assert states(before).keys() == states(after).keys()
    for key, value in states(before).items():
        assert torch.equal(value, states(after)[key]), key
        assert value.dtype == torch.float32
    assert before.architecture == after.architecture
    assert before.threshold == after.threshold
    assert after.settings == before.settings | {"source_sha256": hash_file(src)}
    assert preset_of(dst) == preset_of(src) == "released"


def test_the_converted_file_labels_like_the_original(src, scenes, tmp_path):
    run(src, tmp_path / "out.safetensors")
    written = []
    for name, checkpoint in (("a", src), ("b", tmp_path / "out.safetensors")):
        out = tmp_path / f"{name}.json"
        options = {"boxes": scenes.boxes, "limit": 1, "device": "cpu"}
        label(resolve_label({**options, "checkpoint": checkpoint, "out": out}))
        written.append(json.loads(out.read_text())["annotations"])
    assert written[0] == written[1]
    assert {one["malcli_status"] for one in written[0]} <= {"ok", "empty"}


def test_half_precision_weights_are_written_as_float32(src, tmp_path):
    content = torch.load(src, weights_only=True)
    content["state_dict"] = {key: value.half() for key, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "half.pth")
    result = run(tmp_path / "half.pth", tmp_path / "out.safetensors")
    assert result.source == "TAO 5.0-6.0"
    value = states(load_checkpoint(tmp_path / "out.safetensors"))["student.decoder.key.0.bias"]
    wanted = content["state_dict"]["student.roi_head.mlp1.bias"]
    assert torch.equal(value, wanted.float())


def test_equal_conversions_are_equal_bytes(src, tmp_path):
    run(src, tmp_path / "a.safetensors")
    run(src, tmp_path / "b.safetensors")
    assert hash_file(tmp_path / "a.safetensors") == hash_file(tmp_path / "b.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_the_same_conversion_again_touches_nothing(src, tmp_path):
    dst = tmp_path / "out.safetensors"
    first = run(src, dst)
    before = dst.stat().st_mtime_ns
    again = run(src, dst)
    assert again.unchanged
    assert again.self_test == first.self_test
    assert dst.stat().st_mtime_ns == before


@pytest.mark.parametrize("there", ["text", "checkpoint"])
def test_another_output_is_kept_unless_overwritten(src, tmp_path, there):
    dst = tmp_path / "out.safetensors"
    dst.write_bytes(b"mine" if there == "text" else SHIPPED.read_bytes())
    before = dst.read_bytes()
    with pytest.raises(OutputError, match=r"exists with other content.*--overwrite"):
        run(src, dst)
    assert dst.read_bytes() == before
    assert not run(src, dst, overwrite=True).unchanged
    assert preset_of(dst) == "released"


def test_an_output_that_is_the_input_is_refused(src, tmp_path):
    own = tmp_path / "own.safetensors"  # the content counts, not the name
    own.write_bytes(src.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(own)
    os.link(own, tmp_path / "hard.safetensors")
    for dst in ("own", "link", "hard"):
        with pytest.raises(OutputError, match="is also the input"):
            run(own, tmp_path / f"{dst}.safetensors", overwrite=True)
    assert own.read_bytes() == src.read_bytes()


@pytest.mark.parametrize(
    ("dst", "options", "error", "message"),
    [
        ("a.json", {}, ConfigError, "weights are written as .safetensors"),
        ("a.pth", {}, ConfigError, "weights are written as .safetensors"),
        ("a", {}, ConfigError, "weights are written as .safetensors"),
        ("folder.safetensors", {}, OutputError, "is a folder"),
        ("a.safetensors", {"to": "coco"}, ConfigError, "--to: .*mal.ckpt holds weights"),
        ("a.safetensors", {"from_": "coco"}, ConfigError, "--from: "),
        ("a.safetensors", {"boxes_only": True}, ConfigError, "--boxes-only: "),
        ("file/a.safetensors", {}, OutputError, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_one_line(src, tmp_path, dst, options, error, message):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message) as caught:
        run(src, tmp_path / dst, **options)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b'{"images": [], "annotations": []}', "cannot be read as weights"),
        (b"PK\x03\x04" + bytes(60), "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        run(tmp_path / name, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_folder_and_malcli_s_own_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder; give a checkpoint"):
        run(tmp_path, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="is malcli's own checkpoint already"):
        run(SHIPPED, tmp_path / "out.safetensors")


def test_an_encoder_alone_is_pointed_to_weights(tmp_path):
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 4)}}, tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match=r"holds no labeler .*give it as --weights"):
        run(tmp_path / "mae.pth", tmp_path / "out.safetensors")


def test_a_full_disk_leaves_nothing(src, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match="no space left to write"):
            run(src, tmp_path / "out.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_a_fit_s_checkpoint_is_no_released_one(src, tmp_path):
    checkpoint = load_checkpoint(SHIPPED)
    save_checkpoint(checkpoint, tmp_path / "own.safetensors")
    assert preset_of(tmp_path / "own.safetensors") is None


def test_annotations_convert_without_torch(scenes, tmp_path):
    code = (
        "import sys; from pathlib import Path; from malcli.config.convert import ConvertConfig\n"
        "from malcli.engine.convert.command import convert\n"
        "convert(ConvertConfig(src=Path(sys.argv[1]), dst=Path(sys.argv[2])))\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, scenes.boxes, tmp_path / "a.parquet"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
