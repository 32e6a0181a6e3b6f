import io
import json
import os
import pickle
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from malcli.data.formats.coco import read_coco
from malcli.data.images.decode import check_image, decode_image, read_size
from malcli.data.images.find import find_images, image_path
from malcli.errors import BadImage, MalcliError, MissingImageError

HW = (6, 9)
RGB = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(image, name="a.png", **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


def table_of(folder, names, name="instances_val2017.json"):
    records = [
        {"id": n, "file_name": each, "height": 6, "width": 9} for n, each in enumerate(names)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"images": records, "annotations": []}))
    return folder / name, read_coco(folder / name)


@pytest.mark.parametrize("place", [".", "images", "../images", "../val2017"])
def test_images_are_found_beside_the_annotations(tmp_path, place):
    path, table = table_of(tmp_path / "annotations", ["x.png", "sub/y.png"])
    folder = tmp_path / "annotations" / place
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/y.png").touch()
    found = find_images(path, table, None)
    assert found.root.resolve() == folder.resolve()
    assert (found.found, found.tried) == (1, 2)


def test_the_place_with_most_images_wins(tmp_path):
    path, table = table_of(tmp_path, ["x.png", "y.png"])
    (tmp_path / "images").mkdir()
    for file in ("x.png", "images/x.png", "images/y.png"):
        (tmp_path / file).touch()
    assert find_images(path, table, None).root == tmp_path / "images"


def test_an_image_far_down_the_list_is_found_too(tmp_path):
    path, table = table_of(tmp_path, [f"{n}.png" for n in range(100)])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/99.png").touch()
    assert find_images(path, table, None).root == tmp_path / "images"


def test_missing_images_name_the_places(tmp_path):
    path, table = table_of(tmp_path / "annotations", ["x.png"])
    with pytest.raises(
        MissingImageError, match=r"annotations, .*images, .*val2017, .*; .*--images"
    ):
        find_images(path, table, None)
    with pytest.raises(MissingImageError, match="nowhere"):
        find_images(path, table, tmp_path / "nowhere")


def test_a_table_without_images_needs_no_folder(tmp_path):
    path, table = table_of(tmp_path, [])
    assert find_images(path, table, None).tried == 0


def test_names_stay_inside_the_folder(tmp_path):
    assert image_path(tmp_path, "a/b.jpg") == tmp_path / "a/b.jpg"
    assert image_path(tmp_path, "a\\b.jpg") == tmp_path / "a/b.jpg"
    assert image_path(tmp_path, "12:30 a..b.jpg") == tmp_path / "12:30 a..b.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "x/../../a.png",
        "x/..",
        "..\\a.png",
        "/etc/passwd",
        "\\\\host\\a.png",
        "C:\\a.png",
        "c:a.png",
        "http://host/a.png",
        "file:///a.png",
        "a\0.png",
        "",
        ".",
    ],
)
def test_names_that_leave_the_folder_are_refused_and_not_opened(tmp_path, name, save):
    save(Image.fromarray(RGB))
    inside = tmp_path / "in"
    with pytest.raises(BadImage) as caught:
        image_path(inside, name)
    assert caught.value.status == "no-image"
    path, table = table_of(inside, [name])
    with pytest.raises(MissingImageError):
        find_images(path, table, None)


def test_a_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("bad-image", "a.png: broken")))
    assert (error.status, str(error)) == ("bad-image", "a.png: broken")
    assert isinstance(error, MalcliError)


def test_an_rgb_image_comes_as_it_is_and_writable(save):
    path = save(Image.fromarray(RGB))
    pixels = decode_image(path, HW)
    assert np.array_equal(pixels, RGB)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert read_size(path) == HW
    check_image(path, HW)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(save, mode):
    image = Image.fromarray(RGB).convert(mode)
    name = "a.tif" if mode in ("CMYK", "YCbCr") else "a.png"
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(save(image, name), HW), expected)


def test_alpha_is_dropped_not_blended(save):
    image = Image.fromarray(RGB)
    image.putalpha(0)
    assert np.array_equal(decode_image(save(image), HW), RGB)


def test_a_transparent_palette_keeps_its_colours(save):
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(save(image, transparency=3), HW), expected)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_grey_keeps_its_upper_bits(save, name):
    deep = np.arange(54, dtype=np.uint16).reshape(HW) * 1213
    pixels = decode_image(save(Image.fromarray(deep), name), HW)
    assert np.array_equal(pixels, np.repeat((deep // 256).astype(np.uint8)[..., None], 3, 2))


def test_the_first_frame_of_an_animation_is_taken(save):
    frames = [Image.new("RGB", HW[::-1], colour) for colour in ("red", "blue")]
    path = save(frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (decode_image(path, HW) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stated_size_decides_about_exif(save, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(RGB), exif=exif)
    assert np.array_equal(decode_image(path, HW), RGB)
    if orientation < 5:
        with pytest.raises(BadImage, match="annotations state 9 x 6"):
            decode_image(path, HW[::-1])
    else:
        turned = {
            5: RGB.transpose(1, 0, 2),
            6: np.rot90(RGB, -1),
            7: RGB.transpose(1, 0, 2)[::-1, ::-1],
            8: np.rot90(RGB, 1),
        }[orientation]
        assert np.array_equal(decode_image(path, HW[::-1]), turned)
        check_image(path, HW[::-1])


def refused(path, hw=HW, **options):
    with pytest.raises(BadImage) as caught:
        decode_image(path, hw, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_another_size_than_stated_is_refused(save):
    path = save(Image.fromarray(RGB))
    assert "is 6 x 9 (height x width), the annotations state 6 x 8" in refused(path, (6, 8)).reason
    with pytest.raises(BadImage):
        check_image(path, (6, 8))


def test_too_many_pixels_are_refused_before_decoding(save, monkeypatch):
    path = save(Image.new("L", (3000, 3000)))
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would fail with another message
    assert "--max-pixels 8999999" in refused(path, (3000, 3000), max_pixels=8_999_999).reason


def test_a_lying_header_is_refused(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )
    assert refused(path, (60000, 60000)).status == "bad-image"


def test_our_limit_may_be_above_pillow_s(save, monkeypatch):
    path = save(Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert np.array_equal(decode_image(path, HW), RGB)
    assert Image.MAX_IMAGE_PIXELS is None  # for good: another thread may be decoding


def test_threads_neither_refuse_a_huge_image_nor_let_a_bomb_through(save, monkeypatch):
    huge = save(Image.new("1", (14_000, 13_500)), "huge.png")  # Pillow's own limit is 179 million
    bomb = save(Image.new("1", (14_000, 14_000)), "bomb.png")
    small = save(Image.fromarray(RGB), "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    limit = 190_000_000

    def work(number):
        if number % 3 == 0:
            return check_image(huge, (13_500, 14_000), limit)
        if number % 3 == 1:
            return np.array_equal(decode_image(small, HW, limit), RGB)
        with pytest.raises(BadImage, match="--max-pixels 190000000"):
            decode_image(bomb, (14_000, 14_000), limit)
        return False

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(240)))
    assert results == [None, True, False] * 80


def test_damaged_metadata_warn_in_no_thread(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0"
    path = tmp_path / "a.jpg"
    Image.new("RGB", HW[::-1]).save(path, exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF|Tag data"), Image.open(path) as image:
        image.getexif()

    def reason(_):
        with pytest.raises(BadImage) as caught:
            check_image(path, HW[::-1])
        return caught.value.reason

    with ThreadPoolExecutor(8) as pool:
        assert all("annotations state 9 x 6" in text for text in pool.map(reason, range(100)))


def test_a_tile_larger_than_the_limit_is_refused(tmp_path):
    """A TIFF's tiles are decoded whole, whatever the size of the image."""
    entries = [(256, 9), (257, 6), (258, 8), (259, 8), (262, 1), (277, 1), (322, 40_000)]
    entries += [(323, 40_000), (324, 8), (325, 9)]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4))
    assert "40000 x 40000 pixels are more than --max-pixels" in refused(path).reason
    assert read_size(path) == HW


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"])
def test_a_truncated_file_is_refused(save, name):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), name)
    raw = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(raw[: int(len(raw) * share)])
        assert refused(path, (64, 64)).status == "bad-image"


def test_a_text_bomb_is_refused(save):
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "0" * (5 << 20), zip=True)
    assert "cannot be decoded" in refused(save(Image.fromarray(RGB), pnginfo=info)).reason


def test_float_and_32_bit_pixels_are_refused(save):
    values = np.arange(54).reshape(HW)
    assert "floats" in refused(save(Image.fromarray(values.astype(np.float32)), "a.tif")).reason
    deep = Image.fromarray((values * 70000).astype(np.int32))
    assert "more than 16 bits" in refused(save(deep, "a.tif")).reason


def test_a_format_that_runs_other_programs_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\nshowpage\n")
    assert refused(path).status == "bad-image"


def test_what_is_no_file_is_no_image(tmp_path):
    assert refused(tmp_path / "a.png").status == "no-image"
    assert refused(tmp_path).status == "no-image"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").status == "no-image"
    assert refused(tmp_path / ("a" * 5000)).status == "no-image"
    (tmp_path / "empty.png").touch()
    assert refused(tmp_path / "empty.png").status == "bad-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_images_give_pixels_or_bad_image(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    raw = buffer.getvalue()
    rng = random.Random(kind)
    path, lines = tmp_path / "a", set()
    for _ in range(60):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert decode_image(path, HW).shape == (*HW, 3)
        except BadImage as error:
            lines.update(str(error).splitlines()[1:])
    assert lines == set()


def test_truncated_images_are_never_filled_up():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
