"""Outputs that appear whole or not at all."""

import errno
import os
import pathlib
import resource
import socket
import stat

import pytest

from malcli import files
from malcli.errors import OutputError, RunError
from malcli.files import commit_folder, folder_beside, replacing, replacing_folder


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


@pytest.fixture(params=["pipe", "socket", "device", "link to a pipe"])
def special(request, tmp_path):
    path = tmp_path / "special"
    if request.param == "device":
        return pathlib.Path(os.devnull)
    if request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        os.mkfifo(path)
    if request.param == "link to a pipe":
        (tmp_path / "link").symlink_to(path)
        return tmp_path / "link"
    return path


def test_only_regular_files_are_replaced(special):
    before = special.lstat()
    with pytest.raises(OutputError, match="is no regular file but a device"), replacing(special):
        raise AssertionError("the body ran")
    assert special.lstat() == before


def test_a_link_is_followed(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, missing = tmp_path / "elsewhere/link", tmp_path / "elsewhere/missing"
    link.symlink_to("../out.json")
    missing.symlink_to(tmp_path / "new" / "made.json")
    for path in (link, missing):
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert path.is_symlink()
        assert path.read_text() == "new"
    assert target.read_text() == "new"
    assert names(tmp_path / "elsewhere") == ["link", "missing"]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refuse(tmp_path / "a")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_mode_of_a_replaced_file_is_kept_from_the_first_byte_on(target, mode):
    target.chmod(mode)
    with replacing(target) as temporary:
        assert not stat.S_IMODE(temporary.stat().st_mode) & ~mode
        temporary.unlink()  # as libraries do that write their own files
        temporary.write_text("new")
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with replacing(tmp_path / "new") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_first_one_wins_if_that_is_asked_for(target, monkeypatch):
    with replacing(target, first_wins=True) as temporary:
        temporary.write_text("late")
    assert target.read_text() == "old"

    def no_links(source, destination):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with replacing(target.with_name("new"), first_wins=True) as temporary:
        temporary.write_text("first")
    assert target.with_name("new").read_text() == "first"
    assert names(target.parent) == ["new", "out.json"]


def left_by(target, pid, host=None):
    """Return a temporary file that another process left beside a target."""
    own = files.beside(target).name
    stem, who = own.removesuffix(".tmp").rsplit(".", 1)
    path = target.with_name(f"{stem}.{host or who.split('-')[0]}-{pid}-0123abcd.tmp")
    path.write_text("half")
    return path


GONE = 2**22 + 1  # above Linux's largest process id


def test_what_killed_processes_left_goes_with_the_next_good_run_of_the_target(target):
    gone = left_by(target, GONE)
    folder = left_by(target, GONE + 1)
    folder.unlink()
    (folder / "inside").mkdir(parents=True)
    kept = [
        left_by(target, os.getppid()),
        left_by(target, os.getpid()),
        left_by(target, GONE, host="abcdef"),
        left_by(target.with_name("other.json"), GONE),
        left_by(target.with_name("x.out.json"), GONE),
        target.with_name(".out.json.mine.tmp"),
    ]
    kept[-1].write_text("of the user")
    old = left_by(target, GONE + 2, host="abcdef")
    os.utime(old, (0, 0))
    with pytest.raises(KeyError), replacing(target) as temporary:
        raise KeyError
    assert gone.exists()
    with replacing(target, sweep=False) as temporary:
        temporary.write_text("new")
    assert gone.exists()
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert names(target.parent) == sorted(path.name for path in [target, *kept])


def test_a_folder_takes_the_place_of_another_with_all_it_holds_synced(tmp_path, monkeypatch):
    target, events = tmp_path / "out", []
    (target / "old").mkdir(parents=True)
    left = left_by(target, GONE)
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        fsync(descriptor)

    def noted_replace(source, destination):
        events.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with replacing_folder(target) as made:
        (made / "deep/er").mkdir(parents=True)
        (made / "deep/er/file").write_text("new")
        (made / "link").symlink_to("/dev/null")
        made_name = made.name
    assert events == ["file", "er", "deep", made_name, "rename", "rename", tmp_path.name]
    assert (target / "deep/er/file").read_text() == "new"
    assert not left.exists()
    assert names(tmp_path) == ["out"]


def test_many_files_are_synced_by_one_call(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "MANY_FILES", 3)
    monkeypatch.setattr(os, "sync", lambda: calls.append(1))
    for count in (1, 4):
        with replacing_folder(tmp_path / "out") as made:
            for number in range(count):
                (made / str(number)).touch()
    assert calls == [1]


def test_a_folder_that_fails_leaves_the_target_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "out"
    (target / "old").mkdir(parents=True)

    def fail():
        with replacing_folder(target) as made:
            (made / "new").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    replace, calls = os.replace, []

    def second_fails(source, destination):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(RunError, match="Input/output error"), replacing_folder(target):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_folder_beside_is_gone_unless_it_was_committed(tmp_path):
    with folder_beside(tmp_path / "out") as made:
        (made / "x").touch()
    assert names(tmp_path) == []
    with folder_beside(tmp_path / "out") as made:
        (made / "x").touch()
        commit_folder(made, tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_foreign_files_are_refused_and_own_ones_are_not(target):
    files.refuse_foreign_file(target.with_name("none"), "old", "list")
    files.refuse_foreign_file(target, "old", "list")
    with pytest.raises(OutputError, match="exists and is no list of malcli"):
        files.refuse_foreign_file(target, "new", "list")
    with pytest.raises(OutputError, match="Is a directory"):
        files.refuse_foreign_file(target.parent, "new", "list")
