"""Outputs that appear whole or not at all."""

import errno
import os
import resource
import stat

import pytest

from malcli.errors import OutputError, RunError
from malcli.files import replacing


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    return path


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_new_content_appears_at_the_end_only(target):
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent  # a rename within one file system
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(target.parent) == ["out.json"]


def test_folders_are_made(tmp_path):
    target = tmp_path / "a" / "b" / "out.json"
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_content_is_synced_before_the_rename_and_the_folder_after(target, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def noted_replace(source, destination):
        events.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert events == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", [True, False])
def test_a_failing_body_leaves_the_target_and_no_temporary(target, kind, written):
    def fail():
        with replacing(target) as temporary:
            if written:
                temporary.write_text("half")
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert names(target.parent) == ["out.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_run_error(target, number):
    def fail():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(
        RunError, match=r"out.json: no space left to write \(\d+ MB free\)"
    ) as caught:
        fail()
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert names(target.parent) == ["out.json"]


def test_a_write_past_the_limit_of_the_system_is_a_run_error(target):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with (
            pytest.raises(RunError, match="no space left"),
            replacing(target) as temporary,
        ):
            temporary.write_bytes(bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert names(target.parent) == ["out.json"]


def test_a_full_disk_at_the_sync_is_a_run_error(target, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left"), replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert names(target.parent) == ["out.json"]


def refuse(target):
    """Return the OutputError of writing to a target."""
    with pytest.raises(OutputError) as caught, replacing(target) as temporary:
        temporary.write_text("new")
    message = str(caught.value)
    assert message.startswith(f"{target}: cannot be written (")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_a_file_in_the_place_of_a_folder_is_refused(target):
    refuse(target / "inside.json")
    refuse(target / "deep" / "inside.json")
    assert target.read_text() == "old"


def test_a_folder_in_the_place_of_the_target_is_refused(tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    assert "Is a directory" in refuse(folder)
    assert names(tmp_path) == ["taken"]


def test_a_name_too_long_is_refused(tmp_path):
    assert "File name too long" in refuse(tmp_path / ("n" * 250))
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    assert "Permission denied" in refuse(folder / "out.json")


def test_a_read_only_file_system_is_refused(target, monkeypatch):
    def read_only(source, destination):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    assert "Read-only file system" in refuse(target)
    assert target.read_text() == "old"
    assert names(target.parent) == ["out.json"]
