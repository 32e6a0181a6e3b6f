"""Torch files of training frameworks, of nobody, and of people who mean harm."""

import argparse
import collections
import datetime
import functools
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from malcli.errors import CheckpointError
from malcli.model.checkpoint import load_checkpoint, read_tensors
from malcli.model.torchfile import read_torch

WEIGHTS = {"a": torch.arange(6.0), "b": torch.eye(3)}


def fake_module(monkeypatch, name):
    """A module that exists while a file is written, and not when it is read."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    return sys.modules[name]


def define(module, name, *bases):
    kind = type(name, bases, {"__module__": module.__name__})
    setattr(module, name, kind)
    return kind


def test_what_frameworks_write_beside_weights_does_not_stop_them(tmp_path, monkeypatch):
    lightning = fake_module(monkeypatch, "pytorch_lightning.utilities.parsing")
    omega = fake_module(monkeypatch, "omegaconf.dictconfig")
    state = define(lightning, "ModelState", object)()
    state.values = [1, {"x": 2}]
    attributes = define(lightning, "AttributeDict", dict)(lr=1e-6, more=[1, 2])
    config = define(omega, "DictConfig", object)()
    config.__dict__["_content"] = {"model": {"arch": "vit"}}
    counts = collections.defaultdict(list, {"a": [1]})
    more = {
        "namespace": argparse.Namespace(lr=0.1, path=Path("x") / "y"),
        "ordered": collections.OrderedDict(a=1),
        "counts": counts,
        "recent": collections.deque([1, 2], maxlen=5),
        "numbers": [np.float32(0.5), np.int64(3), np.arange(4), np.dtype("f8")],
        "when": datetime.datetime(2023, 1, 3),
        "took": datetime.timedelta(hours=23),
        "callbacks": {"ModelCheckpoint": {"dirpath": Path("c"), "best_model_score": WEIGHTS["a"]}},
        "state": state,
        "hyper_parameters": attributes,
        "config": config,
        "kinds": (int, dict, str),
    }
    path = tmp_path / "full.ckpt"
    torch.save({"state_dict": WEIGHTS, **more}, path)
    for name in ("pytorch_lightning", "omegaconf"):
        for known in [one for one in sys.modules if one.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
    allowed = set(torch.serialization.get_safe_globals())
    tensors = read_tensors(path)
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[key], WEIGHTS[key]) for key in WEIGHTS)
    content = read_torch(path)
    assert content["hyper_parameters"] == {"lr": 1e-6, "more": [1, 2]}
    assert content["recent"] == [1, 2]
    assert not vars(content["namespace"])
    assert not {"pytorch_lightning", "omegaconf"} & sys.modules.keys()
    assert set(torch.serialization.get_safe_globals()) == allowed


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def traps(flag):
    """Calls that would make a file, in many guises."""
    touch = f"import pathlib; pathlib.Path({str(flag)!r}).touch()"
    return {
        "posix.system": Call(os.system, f"touch {flag}"),
        "builtins.exec": Call(exec, touch),
        "builtins.eval": Call(eval, f"__import__('pathlib').Path({str(flag)!r}).touch()"),
        "subprocess": Call(subprocess.check_call, ["touch", str(flag)]),
        "pathlib.Path.touch": Call(Path.touch, flag),  # a method goes through getattr
        "builtins.getattr": Call(getattr, Path(flag), "touch"),
        "torch.hub": Call(torch.hub.load, str(flag.parent), "x"),
        "numpy.load": Call(np.load, str(flag)),
        "functools.partial": Call(functools.partial, os.system, f"touch {flag}"),
    }


# As pickle writes them, under the module names of Python 2.
NAMED = {"subprocess": "commands.check_call", "pathlib.Path.touch": "builtins.getattr"}


@pytest.mark.parametrize("reader", [read_tensors, load_checkpoint])
@pytest.mark.parametrize("name", traps(Path("x")))
def test_a_file_that_refers_to_code_is_refused_by_name_and_never_run(tmp_path, reader, name):
    flag, path = tmp_path / "it ran", tmp_path / "evil.ckpt"
    torch.save({"state_dict": WEIGHTS, "callbacks": traps(flag)[name]}, path)
    with pytest.raises(CheckpointError, match=r"evil.ckpt: cannot be read.*refused") as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    assert f"it refers to {NAMED.get(name, name)}" in str(caught.value)
    assert not flag.exists()


def test_the_trap_works(tmp_path):
    flag, path = tmp_path / "it-ran", tmp_path / "evil.ckpt"
    torch.save({"callbacks": traps(flag)["posix.system"]}, path)
    torch.load(path, weights_only=False)
    assert flag.exists()


def test_code_in_the_form_before_torch_1_6_is_refused_by_name(tmp_path):
    flag, path = tmp_path / "it ran", tmp_path / "old.pth"
    content = {"state_dict": WEIGHTS, "args": traps(flag)["posix.system"]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old.pth: .*it refers to posix.system"):
        read_tensors(path)
    assert not flag.exists()


def test_plain_tensors_in_the_form_before_torch_1_6_are_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(path)["b"], WEIGHTS["b"])


def test_no_message_advises_to_allow_code(tmp_path):
    path = tmp_path / "odd.pth"
    for content in (Call(os.getpid), collections.UserDict(a=1)):
        for new in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new)
            with pytest.raises(CheckpointError) as caught:
                read_tensors(path)
            assert "weights_only" not in str(caught.value)
            assert "add_safe_globals" not in str(caught.value)


def content_of(kind, folder):
    """A file that holds no weights that malcli reads."""
    buffer = io.BytesIO()
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script")
        return (folder / "script").read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "pickle":
        pickle.dump({"a": 1}, buffer)
    elif kind == "list":
        torch.save([torch.zeros(2)], buffer)
    elif kind == "encrypted":
        sealed = {"state_dict": io.BytesIO(b"\x00\x01"), "state_dict_encrypted": True}
        torch.save(sealed, buffer)
    elif kind == "noise":
        return np.random.default_rng(0).bytes(4096)
    elif kind == "html":
        return b"<!DOCTYPE html><html>Sign in to download</html>"
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torchscript", "cannot be read as weights"),
        ("zip", "cannot be read as weights"),
        ("pickle", "cannot be read as weights"),
        ("list", "holds a list"),
        ("encrypted", "its weights are encrypted; save it again without a key"),
        ("noise", "cannot be read as weights"),
        ("html", "cannot be read as weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_file_of_another_kind_is_one_line(tmp_path, kind, message):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(content_of(kind, tmp_path))
    for reader in (read_tensors, load_checkpoint):
        with pytest.raises(CheckpointError, match=rf"odd.ckpt: {message}") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_cut_anywhere_is_one_line(tmp_path, new):
    whole, path = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    torch.save({"state_dict": WEIGHTS}, whole, _use_new_zipfile_serialization=new)
    data = whole.read_bytes()
    for length in range(1, len(data) - 1, max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"^[^\n]*cut.ckpt: [^\n]*$"):
            read_tensors(path)


def test_changed_bytes_are_one_line_or_harmless(tmp_path):
    whole, path = tmp_path / "whole.ckpt", tmp_path / "bad.ckpt"
    torch.save({"state_dict": WEIGHTS}, whole)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for offset in rng.integers(0, len(data), 150):
        bad = bytearray(data)
        bad[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        try:
            read_tensors(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not [line for line in refused if "\n" in line]


def test_a_zip_that_unpacks_to_more_than_it_takes_is_refused(tmp_path):
    stored, bomb = tmp_path / "stored.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(1_000_000)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
        for item in source.infolist():
            to.writestr(item.filename, source.read(item))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"bomb.pth: .*compressed"):
        read_tensors(bomb)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save({"a": torch.zeros(1).expand(40_000, 40_000)}, path)
    with pytest.raises(CheckpointError, match=r"wide.pth: damaged: its tensors claim 6.4 GB"):
        read_tensors(path)
    shared = torch.zeros(10_000)
    torch.save({"student": shared, "teacher": shared}, path)  # this is no trick
    assert read_tensors(path).keys() == {"student", "teacher"}


def test_odd_kinds_of_tensors_count_as_none(tmp_path):
    path = tmp_path / "odd.pth"
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "meta": torch.zeros(2, device="meta"),
        "text": "x",
    }
    torch.save({**odd, "fine": torch.ones(2)}, path)
    assert read_tensors(path).keys() == {"fine"}
