import threading

import numpy as np
import pytest

from malcli.data.crops.label_crops import Roi, crop_batch, cropped, without_image
from malcli.engine.label.pixel_budget import PixelBudget
from malcli.geometry import areas, crops


def test_threads_hold_no_more_than_the_budget_and_a_giant_goes_alone():
    budget, lock = PixelBudget(100), threading.Lock()
    taken, most, alone = [], [], []

    def work(pixels):
        for _ in range(20):
            with budget.hold(pixels):
                with lock:
                    taken.append(pixels)
                    most.append(sum(taken))
                    if pixels > 100:
                        alone.append(len(taken) == 1)
                with lock:
                    taken.remove(pixels)

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (30, 60, 70, 500, 900)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert all(alone)
    assert len(alone) == 40
    assert all(total <= 100 or total in (500, 900) for total in most)


def test_a_failure_gives_its_pixels_back():
    budget = PixelBudget(10)
    with pytest.raises(ValueError, match="x"), budget.hold(10):
        raise ValueError("x")
    with budget.hold(10):
        pass


def roi(image, box):
    place = np.array(box)
    return Roi(3, image, place, np.clip(place, 0, [image.shape[1], image.shape[0]] * 2), 1)


def test_a_crop_made_ahead_is_the_one_of_the_batch_and_lets_the_image_go():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    rois = [roi(image, box) for box in ([-5, 3, 40, 60], [2, 2, 18, 18], [0, 0, 70, 90])]
    early = [cropped(one, 16) for one in rois]
    assert np.array_equal(crop_batch(rois, 16), crop_batch(early, 16))
    for one in [*early, without_image(rois[0])]:
        assert one.image_hw == (90, 70)
        assert one.image.base.nbytes == 1


def test_large_rois_are_thinned_to_what_a_crop_needs_and_look_the_same(monkeypatch):
    rows, columns = np.mgrid[0:400, 0:600]
    image = np.stack([rows / 2, columns / 3, (rows + columns) / 5], axis=-1).astype(np.uint8)
    box = np.array([-60, -20, 640, 380])
    whole = crops.crop_roi(image, box, 20).astype(int)
    monkeypatch.setattr(crops, "LARGE", 1000)
    cut = monkeypatch.setattr(crops, "cut_roi", None)
    thin = crops.crop_roi(image, box, 20).astype(int)
    assert cut is None
    assert np.abs(thin - whole).max() <= 8  # of 255: half a step of the slope
    assert np.abs(thin - whole).mean() < 1.5


def test_large_windows_are_pasted_in_bands_to_the_same_mask(monkeypatch):
    prob = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    box, window = np.array([-9, 4, 121, 104]), np.array([0, 10, 100, 99])
    whole = areas.paste_above(prob, box, window, 0.4)
    assert np.array_equal(whole, crops.paste_mask(prob, box, window) > 0.4)
    monkeypatch.setattr(areas, "LARGE", 1000)
    monkeypatch.setattr(areas, "BAND", 730)
    bands = areas.paste_above(prob, box, window, 0.4)
    assert bands.shape == whole.shape == (89, 100)
    assert np.count_nonzero(bands != whole) <= 3  # of 8,900: rounding
