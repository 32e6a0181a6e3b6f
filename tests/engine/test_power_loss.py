"""Loss of power: what was not synced when its name was given is dropped."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from malcli.config.convert import ConvertConfig
from malcli.data.boxtable import cache
from malcli.data.formats.open import open_boxes
from malcli.engine.convert.command import convert
from malcli.engine.fit.run_folder import finish
from malcli.engine.fit.states import LoopState, save_state
from malcli.engine.label.command import label


class Disk:
    """Knows what of a disk would outlive a loss of power.

    Attributes:
        lost: What was given its name before its content was synced.
        unsynced: Folders with names that were given after they were last synced.
    """

    def __init__(self, patch, root):
        """Nothing is synced yet."""
        self.root = root
        self.synced = {}
        self.lost = []
        self.unsynced = set()
        self.renamed = 0
        fsync = os.fsync
        for name in ("replace", "rename", "link"):
            patch.setattr(os, name, self.naming(getattr(os, name)))

        def noted(descriptor):
            fsync(descriptor)
            self.note(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        patch.setattr(os, "fsync", noted)

    def content(self, path):
        return sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()

    def key(self, path):
        return path.stat().st_dev, path.stat().st_ino

    def note(self, path):
        self.synced[self.key(path)] = self.content(path)
        self.unsynced.discard(path)

    def naming(self, call):
        def named(source, destination):
            source, destination = Path(source), Path(destination)
            call(source, destination)
            if self.root in destination.parents:
                self.renamed += 1
                self.unsynced.add(destination.parent)
                self.look(destination)

        return named

    def look(self, path):
        inside = list(path.rglob("*")) if path.is_dir() else []
        for one in [path, *inside]:
            if not one.is_symlink() and self.synced.get(self.key(one)) != self.content(one):
                self.lost.append(one)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path)
    yield disk
    assert disk.renamed
    assert disk.lost == []
    assert disk.unsynced == set()


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_label_loses_nothing(disk, job, tmp_path, suffix):
    for share in ("0/2", "1/2"):
        label(job(out=tmp_path / f"masks{suffix}", shard=share, review=tmp_path / "review.csv"))
    # The manifest, five parts, the output and what is made from it.
    assert disk.renamed == (9 if suffix == ".parquet" else 8)


def test_the_states_of_a_fit_lose_nothing(disk, tmp_path):
    networks = {"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)}
    optimizer = torch.optim.AdamW(networks["student"].parameters())
    for step in (1, 2, 2):
        save_state(tmp_path, LoopState(step=step), networks, optimizer, None)
    finish(tmp_path, {"steps": 2}, measured=False)
    assert (tmp_path / "state/finished").read_bytes()


@pytest.mark.parametrize("name", ["o.json", "o.parquet", "yolo/data.yaml", "o.csv"])
def test_convert_loses_nothing(disk, scenes, tmp_path, name):
    to = {"o.csv": "openimages", "yolo/data.yaml": "yolo"}.get(name)
    for overwrite in (False, True):
        paths = {"src": scenes.instances, "dst": tmp_path / name}
        convert(ConvertConfig(**paths, to=to, overwrite=overwrite))


def test_the_cache_loses_nothing(disk, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("MALCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH", 1)
    open_boxes(scenes.boxes)
    assert open_boxes(scenes.boxes).mapped


def test_the_simulation_sees_what_is_not_synced(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        (tmp_path / "a").write_text("x")
        os.replace(tmp_path / "a", tmp_path / "b")
        assert disk.lost == [tmp_path / "b"]
        assert disk.unsynced == {tmp_path}
