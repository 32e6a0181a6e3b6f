import errno
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from malcli.data.images import decode, health
from malcli.data.images.find import ImageFolder, find_folder
from malcli.data.images.health import Health
from malcli.data.images.read import check_header, read_image
from malcli.errors import BadImage, RunError

HW = (4, 5)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "cam").mkdir(parents=True)
    for name in ("a.png", "b.png", "cam/c.png"):
        Image.new("RGB", HW[::-1], (9, 8, 7)).save(root / name)
    return ImageFolder(root, 2, 2, health=Health.of(root, 0.5))


def read(folder, name):
    return read_image(folder, name, HW)


@pytest.mark.parametrize("reader", [read, lambda folder, name: check_header(folder, name, HW)])
def test_a_root_that_is_gone_is_no_missing_image(folder, reader):
    reader(folder, "a.png")
    with pytest.raises(BadImage):
        reader(folder, "nowhere.png")
    folder.root.rename(folder.root.with_name("elsewhere"))
    with pytest.raises(RunError, match=r"images: the image folder is gone.*after 1 images"):
        reader(folder, "b.png")


def test_a_folder_that_took_the_roots_place_is_noticed(folder):
    read(folder, "a.png")
    folder.root.rename(folder.root.with_name("elsewhere"))
    folder.root.mkdir()  # as an empty mount point is
    with pytest.raises(RunError, match="another one has taken its place"):
        read(folder, "b.png")


def test_a_sub_folder_that_images_were_read_from_is_watched_too(folder):
    read(folder, "cam/c.png")
    (folder.root / "cam").rename(folder.root / "cam2")
    with pytest.raises(RunError, match="cam"):
        read(folder, "cam/d.png")
    with pytest.raises(BadImage):
        read(folder, "never/d.png")


@pytest.mark.parametrize("number", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE"])
@pytest.mark.parametrize("call", ["stat", "open"])
def test_errors_of_the_machine_stop_where_those_of_a_file_do_not(folder, monkeypatch, number, call):
    code = getattr(errno, number)

    def failing(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(type(folder.root), call, failing)
    with pytest.raises(RunError, match=r"a\.png: cannot be read: "):
        decode.decode_image(folder.root / "a.png", HW)


@pytest.mark.parametrize("number", ["ENOENT", "EACCES", "ELOOP", "ENAMETOOLONG"])
def test_errors_of_a_file_are_missing_images(folder, monkeypatch, number):
    code = getattr(errno, number)

    def failing(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(type(folder.root), "open", failing)
    with pytest.raises(BadImage) as caught:
        decode.decode_image(folder.root / "a.png", HW)
    assert caught.value.status == "no-image"


def test_a_read_that_fails_within_the_file_is_the_machines(folder, monkeypatch):
    class Dying:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def read(self, *args):
            raise OSError(errno.EIO, "Input/output error")

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened = type(folder.root).open
    monkeypatch.setattr(
        type(folder.root), "open", lambda self, *args, **kwargs: Dying(opened(self, *args))
    )
    with pytest.raises(RunError, match="Input/output error"):
        decode.decode_image(folder.root / "a.png", HW)


def test_images_that_are_not_there_in_a_row_stop_a_job_unless_told_otherwise(folder, monkeypatch):
    monkeypatch.setattr(health, "IN_A_ROW", 5)
    names = [f"{number}.png" for number in range(5)]

    def miss(where, some):
        for name in some:
            with pytest.raises(BadImage):
                read(where, name)

    miss(folder, names)  # none was there yet: such a folder is only poor
    read(folder, "a.png")
    miss(folder, names[:4])
    read(folder, "b.png")  # which ends the row
    miss(folder, names[:4])
    with pytest.raises(RunError, match=r"5 images in a row .* after 2 .*--max-failures 1"):
        read(folder, names[4])
    patient = replace(folder, health=Health.of(folder.root, 1.0))
    read(patient, "a.png")
    miss(patient, names * 3)


def test_a_share_of_failures_above_the_limit_stops_after_enough_images(folder, monkeypatch):
    monkeypatch.setattr(health, "ENOUGH", 8)
    (folder.root / "broken.png").write_bytes(b"no image")
    strict = replace(folder, health=Health.of(folder.root, 0.25))

    def read_all(where):
        for _ in range(6):
            read(where, "a.png")
        for _ in range(2):
            with pytest.raises(BadImage):
                read(where, "broken.png")

    read_all(strict)
    with pytest.raises(RunError, match=r"3 of 9 images .*broken\.png.*--max-failures 0\.25"):
        read(strict, "broken.png")
    read_all(folder)
    with pytest.raises(BadImage):
        read(folder, "broken.png")


def test_names_that_leave_the_folder_are_no_failed_reads(folder):
    with pytest.raises(BadImage):
        read(folder, "../a.png")
    assert (folder.health.failed, folder.health.read) == (0, 0)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x24ftypmif1\0\0\0\0", "HEIC"),
        (b"\xff\x0a\x00\x01", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\x93NUMPY\x01\0v\0{'descr': '|u1'", "a NumPy array"),
        (b"hello", "no image of a kind that is read"),
    ],
)
def test_files_that_are_not_read_are_named_without_pythons_words(folder, head, name):
    path = folder.root / "x.jpg"
    path.write_bytes(head + bytes(64))
    with pytest.raises(BadImage) as caught:
        read(folder, "x.jpg")
    assert name in str(caught.value)
    assert "<" not in str(caught.value)
    assert "Error" not in str(caught.value)


def test_a_name_that_two_records_have_is_not_looked_for_elsewhere(tmp_path):
    root = tmp_path / "cam2"
    root.mkdir()
    name = "000000000001.png"
    Image.new("RGB", HW[::-1]).save(root / name)
    alone = ImageFolder(root, 1, 1)
    assert read_image(alone, f"cam1/{name}", HW).shape == (*HW, 3)
    shared = ImageFolder(root, 1, 1, shared=frozenset([name]))
    for place in ("cam1", "cam2"):
        with pytest.raises(BadImage, match="may be another record's image") as caught:
            read_image(shared, f"{place}/{name}", HW)
        assert caught.value.status == "no-image"
    assert read_image(shared, name, HW).shape == (*HW, 3)  # its own place


def test_links_inside_the_folder_are_followed(tmp_path):
    (tmp_path / "disk2").mkdir()
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((*HW, 3), 7, np.uint8)).save(tmp_path / "disk2/a.png")
    (tmp_path / "images/cam").symlink_to(tmp_path / "disk2")
    (tmp_path / "images/b.png").symlink_to(tmp_path / "disk2/a.png")
    found = find_folder(tmp_path / "x.json", pa.chunked_array([["cam/a.png", "b.png"]]))
    assert (found.root, found.found) == (tmp_path / "images", 2)
    for name in ("cam/a.png", "b.png"):
        assert (read_image(found, name, HW) == 7).all()
