import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from malcli.data.crops.student_images import StudentImages, Targets, flipped
from malcli.data.images.find import ImageFolder
from malcli.geometry.rle import encode_crop

HW = (6, 9)
MASK = np.zeros(HW, np.uint8)
MASK[1:4, 2:4] = 1


@pytest.fixture
def data(tmp_path):
    """Two images; the second has two instances."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*HW, 3), dtype=np.uint8) for _ in range(2)]
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    table = pa.table({"file_name": ["0.png", "1.png"], "height": [6, 6], "width": [9, 9]})
    rle = encode_crop(MASK, 0, 0, HW)
    targets = Targets(
        image=np.array([1, 1]),
        xyxy=np.array([[2.0, 1.0, 4.0, 4.0], [0.0, 0.0, 9.0, 6.0]]),
        label=np.array([1, 2]),
        rles=[rle, rle],
    )
    return ImageFolder(tmp_path, 2, 2), table, targets, pixels


def test_a_sample_is_the_image_and_its_instances_or_their_mirror(data):
    folder, table, targets, pixels = data
    images = StudentImages(folder, table, targets, 10**6, seed=0)
    seen = set()
    for epoch in range(12):
        sample = images[epoch, 1]
        mirrored = not np.array_equal(sample.pixels_CHW, pixels[1].transpose(2, 0, 1))
        seen.add(mirrored)
        if mirrored:
            sample = flipped(sample)
        assert np.array_equal(sample.pixels_CHW.transpose(1, 2, 0), pixels[1])
        assert sample.xyxy_N4.tolist() == targets.xyxy.tolist()
        assert sample.label_N.tolist() == [1, 2]
        assert np.array_equal(sample.mask_NHW, np.stack([MASK, MASK]))
    assert seen == {False, True}


def test_a_mirrored_box_is_the_box_of_the_mirrored_mask(data):
    folder, table, targets, _ = data
    sample = next(
        one
        for epoch in range(50)
        if (one := StudentImages(folder, table, targets, 99, 0)[epoch, 1])
    )
    mask, (x0, y0, x1, y1) = flipped(sample).mask_NHW[0], flipped(sample).xyxy_N4[0]
    rows, columns = np.nonzero(mask)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x0, y0, x1, y1]


def test_equal_seeds_give_equal_samples_and_flips_differ_by_epoch(data):
    folder, table, targets, _ = data
    one, two = (StudentImages(folder, table, targets, 10**6, seed=3) for _ in range(2))
    for epoch in range(8):
        assert np.array_equal(one[epoch, 1].pixels_CHW, two[epoch, 1].pixels_CHW)
    assert len({one[epoch, 1].pixels_CHW.tobytes() for epoch in range(8)}) == 2


def test_without_targets_nothing_is_flipped(data):
    folder, table, _, pixels = data
    images = StudentImages(folder, table, None, 10**6, seed=0)
    assert len(images) == 2
    for epoch in range(8):
        sample = images[epoch, 0]
        assert np.array_equal(sample.pixels_CHW.transpose(1, 2, 0), pixels[0])
        assert sample.mask_NHW.shape == (0, *HW)


@pytest.mark.parametrize("name", ["missing.png", "../0.png", "", "broken.png"])
def test_an_unreadable_image_is_black_and_says_so(data, name):
    folder, table, targets, _ = data
    (folder.root / "broken.png").write_bytes((folder.root / "1.png").read_bytes()[:60])
    table = table.set_column(0, "file_name", [["0.png", name]])
    sample = StudentImages(folder, table, targets, 10**6, seed=0)[0, 1]
    assert not sample.readable
    assert not sample.pixels_CHW.any()
    assert len(sample.xyxy_N4) == len(sample.label_N) == len(sample.mask_NHW) == 0


def test_an_image_that_claims_a_billion_pixels_takes_little_memory(data):
    folder, table, _, _ = data
    table = table.set_column(1, "height", [[6, 10**9]])
    sample = StudentImages(folder, table, None, 10**6, seed=0)[0, 1]
    assert not sample.readable
    assert sample.pixels_CHW.nbytes < 10**6
