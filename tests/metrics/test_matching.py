"""hotcoco against pycocotools, the reference: the same numbers on everything that is rare."""

import numpy as np
import pytest

from malcli.geometry.rle import area, empty_rle, encode_crop, rle_box
from malcli.metrics import matching
from malcli.metrics.ap import box_ap, mask_ap, resample
from malcli.metrics.matching import mask_iou, side_of
from malcli.metrics.miou import resample_images
from malcli.metrics.pairing import Instances

HW = (100, 140)
needs_hotcoco = pytest.mark.skipif(matching.hotcoco is None, reason="needs malcli[fast-eval]")


def rectangle(rng):
    h, w = (int(n) for n in rng.integers(2, 95, 2))
    y, x = int(rng.integers(0, HW[0] - h + 1)), int(rng.integers(0, HW[1] - w + 1))
    mask = rng.random((h, w)) < 0.8
    return encode_crop(mask, x, y, HW)


def side(rng, count, images, categories, human):
    """Instances with crowd and missing areas; detections with equal scores, some without a mask."""
    rles = [rectangle(rng) for _ in range(count)]
    sizes = np.array([area(rle) for rle in rles], dtype=float)
    boxes = np.array([rle_box(rle) for rle in rles], dtype=float).reshape(-1, 4)
    boxes[rng.random(count) < 0.1] = np.nan
    gone = (rng.random(count) < 0.1) & (not human)
    sizes[rng.random(count) < 0.3] = np.nan
    return Instances(
        ids=list(range(count)),
        image=rng.integers(0, images, count),
        category=rng.choice(categories, count),
        xywh=boxes,
        rles=[None if lost else rle for rle, lost in zip(rles, gone, strict=True)],
        crowd=(rng.random(count) < 0.15) & human,
        score=np.round(rng.random(count), 1),
        area=sizes,
    )


def copies(human, rng):
    """Detections that hit: each mask again, with scores of which many are equal."""
    found = side(rng, len(human), 1, [0], human=False)
    return Instances(
        human.ids,
        human.image,
        human.category,
        human.xywh,
        human.rles,
        np.zeros(len(human), dtype=bool),
        found.score,
        found.area,
    )


CASES = {
    "mixed": (60, 60, 9, [3, 7]),
    "more than 100 detections of an image": (20, 260, 1, [4]),
    "empty images": (12, 12, 40, [1, 2, 3]),
    "categories beyond 2^53 and below 0": (20, 30, 3, [2**62 + 1, 2**62 + 2, -1]),
    "no detections": (10, 0, 3, [1]),
}


@needs_hotcoco
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("measure", [mask_ap, box_ap])
def test_hotcoco_gives_pycocotools_numbers_and_matches(case, measure, monkeypatch):
    instances, detections, images, categories = CASES[case]
    draws = resample_images(images, 5, 0)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        human = side(rng, instances, images, categories, human=True)
        others = side(rng, detections, images, [*categories, 99], human=False)
        for found in (others, copies(human, rng)):
            results = []
            for library in (matching.hotcoco, None):
                with monkeypatch.context() as patch:
                    patch.setattr(matching, "hotcoco", library)
                    results.append(measure(human, found, images))
            fast, reference = results
            assert fast.stats == pytest.approx(reference.stats, abs=1e-9)
            assert fast.by_category == pytest.approx(reference.by_category, abs=1e-9)
            again, expected = resample(fast, draws), resample(reference, draws)
            for name, values in expected.items():
                assert again[name] == pytest.approx(values, abs=1e-9, nan_ok=True), name


@needs_hotcoco
def test_paired_iou_is_the_same_with_both_libraries(monkeypatch):
    rng = np.random.default_rng(0)
    a = [rectangle(rng) for _ in range(30)] + [empty_rle(HW)] * 2
    b = [rectangle(rng) for _ in range(31)] + [empty_rle(HW)]
    fast = mask_iou(a, b)
    assert fast[-2:].tolist() == [0, 0]
    monkeypatch.setattr(matching, "hotcoco", None)
    assert np.array_equal(fast, mask_iou(a, b))
    assert mask_iou([], []).shape == (0,)


def test_a_side_has_cocos_areas_and_leaves_out_what_has_no_mask():
    rle = encode_crop(np.ones((4, 5), dtype=bool), 2, 3, HW)
    given = Instances(
        ids=[1, 2, 3],
        image=np.zeros(3, dtype=np.int64),
        category=np.ones(3, dtype=np.int64),
        xywh=np.array([[2.0, 3, 6, 7], [np.nan] * 4, [1.0, 1, 2, 2]]),
        rles=[rle, rle, None],
        crowd=np.array([False, True, False]),
        score=np.ones(3),
        area=np.array([33.0, np.nan, 5.0]),
    )
    human = side_of(given, "segm", human=True)
    assert (human.area.tolist(), human.crowd.tolist()) == ([33, 20], [False, True])
    assert human.xywh[1].tolist() == [2, 3, 5, 4]
    assert side_of(given, "segm", human=False).area.tolist() == [20, 20]
    boxes = side_of(given, "bbox", human=False)
    assert boxes.area.tolist() == [42, 20, 4]
    assert not boxes.crowd.any()
