import io
import struct

import numpy as np
import pytest
from PIL import Image

from malcli.data.images.decode import check_image, decode_image, read_size
from malcli.data.images.find import frame_of
from malcli.errors import BadImage

HW = (16, 24)
STORED = np.kron(np.arange(24).reshape(4, 6, 1) * 10, np.ones((4, 4, 3))).astype(np.uint8)
# By the tables of EXIF 2.3 (tag 274), with plain loops: where the shown pixel (r, c) is stored.
PLACES = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (h - 1 - c, r),
    7: lambda r, c, h, w: (h - 1 - c, w - 1 - r),
    8: lambda r, c, h, w: (c, w - 1 - r),
}


def shown(orientation):
    height, width = HW
    size = HW[::-1] if orientation > 4 else HW
    picture = np.zeros((*size, 3), np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            picture[row, column] = STORED[PLACES[orientation](row, column, height, width)]
    return picture


def save(folder, orientation, suffix="png", pixels=STORED, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"a{orientation}.{suffix}"
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    Image.fromarray(pixels).save(path, exif=exif, **lossless.get(suffix, {}), **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_stored_or_shown_as_asked(tmp_path, orientation, suffix):
    path = save(tmp_path, orientation, suffix)
    upright = shown(orientation)
    wanted = {"stored": STORED, "upright": upright}
    for frame, pixels in wanted.items():
        hw = pixels.shape[:2]
        assert read_size(path, frame) == hw
        check_image(path, hw, frame=frame)
        found = decode_image(path, hw, frame=frame)
        assert np.abs(found.astype(int) - pixels).max() <= (3 if suffix == "jpg" else 0)
        assert found.flags.c_contiguous
        assert found.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stated_size_tells_the_frame_and_where_it_does_not_it_is_said(tmp_path, orientation):
    path, told = save(tmp_path, orientation), []
    assert np.array_equal(decode_image(path, HW, told=told), STORED)
    unclear = orientation in (2, 3, 4)
    assert len(told) == unclear
    assert (check_image(path, HW) is not None) == unclear
    if unclear:
        assert f"EXIF orientation {orientation}" in told[0]
    if orientation > 4:
        assert np.array_equal(decode_image(path, HW[::-1]), shown(orientation))


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_a_square_photograph_that_is_turned_is_told_and_stored(tmp_path, orientation):
    square = STORED[:, :16]
    path, told = save(tmp_path, orientation, pixels=square), []
    assert np.array_equal(decode_image(path, (16, 16), told=told), square)
    assert len(told) == (orientation != 1)
    told.clear()
    decode_image(path, (16, 16), frame="upright", told=told)
    decode_image(path, (16, 16), frame="stored", told=told)
    assert told == []


@pytest.mark.parametrize(("frame", "hw"), [("upright", HW), ("stored", HW[::-1])])
def test_the_size_of_the_other_frame_is_refused(tmp_path, frame, hw):
    path = save(tmp_path, 6)
    with pytest.raises(BadImage, match=f"is {hw[1]} x {hw[0]} .* state {hw[0]} x {hw[1]}"):
        check_image(path, hw, frame=frame)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_count_as_none(tmp_path, value):
    told = []
    assert np.array_equal(decode_image(save(tmp_path, value), HW, told=told), STORED)
    assert told == []


def test_an_orientation_of_another_type_or_damaged_exif_loses_nothing(tmp_path):
    broken = [b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 20, b"nonsense"]
    text = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, 2, 2, b"6\0\0\0")
    for number, data in enumerate([*broken, text]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(STORED).save(path, exif=data)
        assert read_size(path, "upright") == HW
        assert np.array_equal(decode_image(path, HW), STORED)


def test_an_orientation_in_xmp_alone_does_not_count(tmp_path):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-'
        b'rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        b'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    path = tmp_path / "a.webp"
    Image.fromarray(STORED).save(path, lossless=True, xmp=xmp)
    with Image.open(path) as image:
        assert image.getexif().get(0x0112) == 6  # Pillow itself would turn it
    assert read_size(path, "upright") == HW
    assert np.array_equal(decode_image(path, HW, frame="upright"), STORED)


def test_big_endian_exif_is_read(tmp_path):
    data = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0) + b"\0" * 4
    stream = io.BytesIO()
    Image.fromarray(STORED).save(stream, "png", exif=data)
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    assert np.array_equal(decode_image(path, HW[::-1]), shown(8))


@pytest.mark.parametrize(
    ("exif", "format", "frame"),
    [
        ("auto", "yolo", "upright"), ("auto", "coco", "stated"), ("auto", "openimages", "stated"),
        ("stored", "yolo", "stored"), ("upright", "coco", "upright"), ("stored", "lvis", "stored"),
    ],
)  # fmt: skip
def test_auto_follows_the_format_and_a_choice_wins(exif, format, frame):
    assert frame_of(exif, format) == frame
