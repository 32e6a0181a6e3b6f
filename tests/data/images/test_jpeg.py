import io

import numpy as np
import pytest
from PIL import Image

from malcli.data.images.decode import decode_image
from malcli.data.images.jpeg import find_scans, is_cut, may_be_cut
from malcli.errors import BadImage

HW = (96, 130)
KINDS = [
    {},
    {"quality": 30},
    {"quality": 95, "subsampling": 0},
    {"subsampling": 1, "restart_marker_rows": 1},
    {"restart_marker_blocks": 5},
    {"keep_rgb": True},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"progressive": True},
    {"progressive": True, "restart_marker_rows": 2},
    {"progressive": True, "mode": "L"},
]
END = b"\xff\xd9"


def scene():
    """A photograph-like image: smooth, with edges and noise."""
    y, x = np.mgrid[0 : HW[0], 0 : HW[1]]
    noise = np.random.default_rng(0).normal(0, 6, (*HW, 3))
    waves = np.stack([90 + 60 * np.sin(x / 9), 120 + y, 80 + 90 * ((x // 20 + y // 16) % 2)], -1)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def encoded(image, mode="RGB", **options):
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decoded(raw):
    image = Image.open(io.BytesIO(raw))
    image.load()
    return image


def found(raw):
    image = decoded(raw)
    return may_be_cut(image) and is_cut(raw, image)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_whole_file_is_never_called_cut(kind):
    raw = encoded(scene(), **kind)
    assert not is_cut(raw, decoded(raw))  # even where nothing asks for the closer look
    assert not found(raw + b"trailer of some camera \xff\xd8\xff\xd9")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_cut_file_with_an_end_marker_is_found_wherever_it_was_cut(kind):
    raw = encoded(scene(), **kind)
    first = raw.index(b"\xff\xda") + 14  # the first scan's data
    # Up to its last blocks; of the progressive ones up to the scans of the lowest bits.
    last = find_scans(raw).ends[0 if "progressive" in kind else -1] - 80
    for at in range(first, last, max((last - first) // 25, 1)):
        try:
            cut = decoded(raw[:at] + END)
        except OSError:
            continue  # Pillow sees it
        assert may_be_cut(cut), at
        assert is_cut(raw[:at] + END, cut), at


def test_a_progressive_file_without_its_later_scans_is_cut():
    raw = encoded(scene(), progressive=True)
    ends = find_scans(raw).ends
    assert len(ends) == 10
    assert [found(raw[:end] + END) for end in ends] == [True] * 6 + [False] * 4
    before = [np.asarray(decoded(raw[:end] + END), int) for end in ends]
    lost = [np.abs(each - before[-1]).mean() for each in before]
    assert lost[0] > 3 * lost[6]
    assert lost[6] < 5  # the lowest bits hardly show


@pytest.mark.parametrize("colour", [127, 128, (128, 128, 128)])
@pytest.mark.parametrize("kind", [{}, {"restart_marker_blocks": 5}, {"progressive": True}], ids=str)
def test_a_grey_border_is_no_missing_half(colour, kind):
    image = scene()
    image.paste(colour if isinstance(colour, tuple) else (colour,) * 3, (0, 40, 130, 96))
    raw = encoded(image, **kind)
    assert may_be_cut(decoded(raw))
    assert not found(raw)
    flat = encoded(Image.new("RGB", HW[::-1], colour if isinstance(colour, tuple) else (127,) * 3))
    assert not found(flat)


@pytest.mark.parametrize("marker", [b"\xff\xfe", b"\xff\xe1", b"\xff\x01", b"\xff\xd9"])
def test_a_stray_marker_in_the_data_is_a_cut(marker):
    raw = encoded(scene())
    assert found(raw[: len(raw) // 2] + marker + raw[len(raw) // 2 + 2 :])


def test_images_refuse_it_in_one_line(tmp_path):
    raw = encoded(scene())
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    assert decode_image(path, HW).shape == (*HW, 3)
    path.write_bytes(raw[: len(raw) // 2] + END)
    with pytest.raises(BadImage, match=r"a\.jpg: cut: it ends before its picture does") as caught:
        decode_image(path, HW)
    assert caught.value.status == "bad-image"
