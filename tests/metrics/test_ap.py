"""AP against pycocotools run as its users run it, and the bootstrap against accumulating again."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from malcli.geometry.rle import area, encode_crop, rle_box
from malcli.metrics import matching
from malcli.metrics.ap import STATS, box_ap, frequency_ap, mask_ap, resample
from malcli.metrics.pairing import Instances

IMAGES, HW = 7, (120, 160)


def rectangle(rng, side):
    h, w = (int(n) for n in rng.integers(*side, 2))
    y, x = int(rng.integers(0, HW[0] - h + 1)), int(rng.integers(0, HW[1] - w + 1))
    return encode_crop(np.ones((h, w), dtype=bool), x, y, HW)


def shifted(rng, rle):
    x, y, w, h = rle_box(rle)
    x = int(np.clip(x + rng.integers(-4, 5), 0, HW[1] - w))
    y = int(np.clip(y + rng.integers(-4, 5), 0, HW[0] - h))
    return encode_crop(np.ones((h, w), dtype=bool), x, y, HW)


def scene(seed=0):
    """Human instances of every size, some crowd; shifted and false detections, no equal scores."""
    rng = np.random.default_rng(seed)
    human, found = [], []
    for image in range(IMAGES):
        for _ in range(rng.integers(0, 9)):
            rle = rectangle(rng, (5, 25) if rng.random() < 0.5 else (25, 118))
            category = int(rng.choice([2, 5, 9]))
            human.append((image, category, rle, bool(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                found.append((image, category, shifted(rng, rle), float(rng.random())))
        found.append((image, 5, rectangle(rng, (5, 60)), float(rng.random())))
        found.append((image, 77, rectangle(rng, (5, 60)), float(rng.random())))
    return human, found


def columns(rows, human):
    return Instances(
        ids=list(range(len(rows))),
        image=np.array([row[0] for row in rows], dtype=np.int64),
        category=np.array([row[1] for row in rows], dtype=np.int64),
        xywh=np.array([rle_box(row[2]) for row in rows], dtype=float).reshape(-1, 4),
        rles=[row[2] for row in rows],
        crowd=np.array([human and row[3] for row in rows], dtype=bool),
        score=np.array([1.0 if human else row[3] for row in rows]),
        area=np.array([float(area(row[2])) for row in rows]),
    )


def reference(human, found, kind, folder):
    """COCOeval on files, with ids from 1 and areas as given."""
    annotations = [
        {
            "id": n + 1,
            "image_id": image,
            "category_id": category,
            "segmentation": rle,
            "bbox": list(rle_box(rle)),
            "area": area(rle),
            "iscrowd": int(crowd),
        }
        for n, (image, category, rle, crowd) in enumerate(human)
    ]
    path = folder / "gt.json"
    images = [{"id": n, "height": HW[0], "width": HW[1]} for n in range(IMAGES)]
    categories = [{"id": number} for number in (2, 5, 9)]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        results = truth.loadRes(
            [
                {"image_id": image, "category_id": category, "segmentation": rle, "score": score}
                for image, category, rle, score in found
            ]
        )
        evaluation = COCOeval(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(params=["pycocotools", "hotcoco"])
def library(request, monkeypatch):
    """Each test runs with the reference and, where it is installed, with the fast extra."""
    if request.param == "pycocotools":
        monkeypatch.setattr(matching, "hotcoco", None)
    elif matching.hotcoco is None:
        pytest.skip("needs malcli[fast-eval]")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "measure"), [("segm", mask_ap), ("bbox", box_ap)])
def test_the_twelve_numbers_equal_pycocotools(seed, kind, measure, library, tmp_path, capsys):
    human, found = scene(seed)
    expected = reference(human, found, kind, tmp_path).stats
    stats = measure(columns(human, True), columns(found, False), IMAGES).stats
    assert list(stats) == list(STATS)
    assert [-1 if value is None else value for value in stats.values()] == pytest.approx(
        expected.tolist(), abs=1e-12
    )
    assert capsys.readouterr().out == ""


def test_perfect_masks_have_ap_one_also_when_ids_start_at_zero(library):
    human, _ = scene(3)
    side = columns([row for row in human if not row[3]], True)
    stats = mask_ap(side, side, IMAGES).stats
    assert stats["AP"] == pytest.approx(1.0)
    assert stats["AR100"] == pytest.approx(1.0)


def test_no_detections_give_zero_and_no_instances_give_null(library):
    human, found = scene(4)
    none = columns([], False)
    assert mask_ap(columns(human, True), none, IMAGES).stats["AP"] == 0
    for predicted in (none, columns(found, False)):
        result = mask_ap(columns([], True), predicted, IMAGES)
        assert set(result.stats.values()) == {None}
        assert np.isnan(resample(result, np.ones((3, IMAGES), dtype=np.uint8))["AP"]).all()


def test_a_size_without_instances_is_null(library):
    big = encode_crop(np.ones((110, 110), dtype=bool), 0, 0, HW)
    side = columns([(0, 2, big, False)], True)
    stats = mask_ap(side, side, IMAGES).stats
    assert (stats["APs"], stats["APm"], stats["APl"]) == (None, None, pytest.approx(1.0))


def test_a_missing_area_is_the_masks(library):
    human, found = scene(5)
    given, missing = columns(human, True), columns(human, True)
    missing.area[:] = np.nan
    predicted = columns(found, False)
    assert mask_ap(missing, predicted, IMAGES).stats == mask_ap(given, predicted, IMAGES).stats


def test_drawing_every_image_once_gives_the_twelve_numbers(library):
    human, found = scene(6)
    result = mask_ap(columns(human, True), columns(found, False), IMAGES)
    drawn = resample(result, np.ones((2, IMAGES), dtype=np.uint8))
    for name, value in result.stats.items():
        assert drawn[name] == pytest.approx([value] * 2, abs=1e-12)


def test_resampling_equals_accumulating_the_drawn_images(library, tmp_path):
    human, found = scene(7)
    result = mask_ap(columns(human, True), columns(found, False), IMAGES)
    draws = np.array(
        [[2, 0, 1, 1, 3, 0, 0], [0, 1, 1, 0, 1, 3, 1], [7, 0, 0, 0, 0, 0, 0]], np.uint8
    )
    drawn = resample(result, draws)
    for row, draw in enumerate(draws):
        again = reference(human, found, "segm", tmp_path)
        picked = np.repeat(np.arange(IMAGES), draw)
        whole = copy.copy(again.evalImgs)
        again.evalImgs = [
            whole[begin + image] for begin in range(0, len(whole), IMAGES) for image in picked
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            again.accumulate()
            again.summarize()
        for name, value in zip(STATS, again.stats, strict=True):
            if value < 0:
                assert np.isnan(drawn[name][row])
            else:
                assert drawn[name][row] == pytest.approx(value, abs=1e-12)


def test_frequency_groups_are_means_over_their_categories(library, tmp_path):
    human, found = scene(8)
    result = mask_ap(columns(human, True), columns(found, False), IMAGES)
    precision = reference(human, found, "segm", tmp_path).eval["precision"][:, :, :, 0, 2]
    each = dict(zip((2, 5, 9), precision.mean(axis=(0, 1)), strict=True))
    frequency = {2: "r", 5: "f", 9: "r", 77: "c"}
    groups = frequency_ap(result, frequency)
    assert groups["APr"] == pytest.approx((each[2] + each[9]) / 2)
    assert groups["APf"] == pytest.approx(each[5])
    assert groups["APc"] is None  # no instance of it
    assert frequency_ap(result, {}) == {}
    drawn = resample(result, np.ones((2, IMAGES), dtype=np.uint8), frequency)
    assert drawn["APr"] == pytest.approx([groups["APr"]] * 2)
    assert np.isnan(drawn["APc"]).all()
    assert list(resample(result, np.ones((1, IMAGES), dtype=np.uint8))) == list(STATS)


def test_without_cells_the_numbers_are_the_same():
    human, found = scene(9)
    sides = columns(human, True), columns(found, False)
    assert mask_ap(*sides, IMAGES, keep_cells=False).stats == mask_ap(*sides, IMAGES).stats
    assert mask_ap(*sides, IMAGES, keep_cells=False).cells == []
