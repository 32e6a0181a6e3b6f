"""`malcli convert` of weights, as a shell sees it."""

import json
import os

import pytest
import torch

from malcli.cli import main as cli
from malcli.model.locate import preset_of


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """A released checkpoint of one block, of zeros; read only."""
    width, channels, state = 64, 4, {}
    sizes = {
        "norm1": (width,),
        "norm2": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    shapes = {f"backbone.blocks.0.{name}": shape for name, shape in sizes.items()} | {
        "backbone.norm": (width,),
        "backbone.patch_embed.proj": (width, 3, 16, 16),
        "backbone.head": (1000, width),
        "roi_head.mlp1": (channels, width),
        "roi_head.mlp2": (channels, channels),
    }
    for index in range(4):
        before = channels if index else width
        shapes[f"mask_head.convs.{index}.conv"] = (channels, before, 3, 3)
    for network in ("student", "teacher"):
        state[f"{network}.backbone.cls_token"] = torch.zeros(1, 1, width)
        state[f"{network}.backbone.pos_embed"] = torch.zeros(1, 197, width)
        for name, shape in shapes.items():
            state[f"{network}.{name}.weight"] = torch.zeros(shape)
            state[f"{network}.{name}.bias"] = torch.zeros(shape[:1])
    path = tmp_path_factory.mktemp("src") / "mal.pth"
    torch.save({"state_dict": state, "tao_model": "mal"}, path)
    return path


def call(arguments, capsys):
    """Run malcli in this process; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.app([str(one) for one in arguments], prog_name="malcli")
    return stop.value.code, *capsys.readouterr()


def test_weights_are_converted_and_what_was_found_is_printed(src, tmp_path, capsys):
    dst = tmp_path / "out.safetensors"
    code, out, err = call(["convert", src, dst], capsys)
    assert code == 0
    assert preset_of(dst) == "released"
    printed = dict(line.split(None, 1) for line in out.splitlines())
    assert printed["source"] == "TAO 6.25.7 or later"
    assert printed["architecture.encoder"] == "vit/64x1"
    assert printed["architecture.stem"] == "patch"
    assert printed["architecture.position"] == "antialiased"
    assert printed["self_test.passed"] == "False"
    assert int(printed["parameters"]) > 100_000
    assert "self-test: does not behave like a trained labeler" in err


def test_json_is_one_object_and_quiet_is_quiet(src, tmp_path, capsys):
    arguments = ["convert", src, tmp_path / "out.safetensors", "--json", "--quiet"]
    code, out, err = call(arguments, capsys)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["architecture"]["crop_size"] == 512
    assert call(arguments, capsys)[0] == 0
    assert json.loads(call(arguments, capsys)[1])["unchanged"] is True


def test_users_mistakes_are_one_line_and_exit_2(src, tmp_path, capsys):
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "callback": os.getpid, "more": os.system}, evil)
    for arguments, words in (
        ([src, taken], "--overwrite"),
        ([src, tmp_path / "out.json"], "weights are written as .safetensors"),
        ([src, tmp_path / "out.safetensors", "--rle", "polygon"], "--rle"),
        ([tmp_path / "no.ckpt", tmp_path / "out.safetensors"], "no such file"),
        ([tmp_path, tmp_path / "out.safetensors"], "is a folder"),
        ([evil, tmp_path / "out.safetensors"], "posix.getpid, posix.system"),
    ):
        code, out, err = call(["convert", *arguments], capsys)
        assert (code, out) == (2, "")
        assert err.startswith("malcli: error: ")
        assert err.count("\n") == 1
        assert words in err
    assert taken.read_text() == "mine"
    assert not (tmp_path / "out.safetensors").exists()
