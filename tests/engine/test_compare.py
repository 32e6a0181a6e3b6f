"""`eval --compare`: two files of masks on the same instances."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from malcli.config import EvalConfig
from malcli.engine.evaluate import evaluate
from malcli.errors import ConfigError, DataFormatError, OutputError


def shifted(annotations, pixels, missing=()):
    """Return predictions: each mask moved to the right, some left out."""
    out = []
    for number, record in enumerate(annotations):
        if number in missing:
            continue
        moved = np.roll(coco_mask.decode(record["segmentation"]), pixels[number], axis=1)
        rle = coco_mask.encode(np.asfortranarray(moved))
        mask = {"size": rle["size"], "counts": rle["counts"].decode()}
        out.append({**record, "segmentation": mask, "malcli_score": 0.5})
    return out


@pytest.fixture
def compare(scenes, tmp_path):
    """Score two lists of annotations against the scenes."""
    source = json.loads(scenes.instances.read_text())
    for record in source["annotations"]:
        if isinstance(record["segmentation"], list):
            rle = coco_mask.merge(coco_mask.frPyObjects(record["segmentation"], 72, 96))
            counts = rle["counts"].decode()
            record["segmentation"] = {"size": [72, 96], "counts": counts}

    def run(first, second, **options):
        given = {"gt": source}
        for name, pred in (("first", first), ("second", second)):
            whole = isinstance(pred, list) and all("id" in one for one in pred)
            given[name] = {**source, "annotations": pred} if whole else pred
        paths = {name: tmp_path / f"{name}.json" for name in given}
        for name, content in given.items():
            paths[name].write_text(json.dumps(content))
        options = {"bootstrap": 50, "images": scenes.images} | options
        files = {"gt": paths["gt"], "pred": paths["first"], "compare": paths["second"]}
        return evaluate(EvalConfig(**files, **options))

    run.annotations = source["annotations"]
    return run


def ious(predicted, annotations):
    by_id = {one["id"]: one["segmentation"] for one in predicted}
    return np.array(
        [
            coco_mask.iou([by_id[one["id"]]], [one["segmentation"]], [0])[0, 0]
            if one["id"] in by_id
            else 0.0
            for one in annotations
        ]
    )


def test_differences_and_counts_equal_counting_by_hand(compare):
    annotations = compare.annotations
    count = len(annotations)
    first = shifted(annotations, [2] * count)
    second = shifted(annotations, [(0, 2, 5)[n % 3] for n in range(count)], missing=(1,))
    result = compare(first, second).to_json()
    change = ious(second, annotations) - ious(first, annotations)
    found = result["compare"]
    assert found["difference"]["all"]["value"] == pytest.approx(change.mean())
    assert found["miou"]["all"] == pytest.approx(ious(second, annotations).mean())
    assert result["miou"]["all"] == pytest.approx(ious(first, annotations).mean())
    assert (found["better"], found["worse"]) == ((change > 0.01).sum(), (change < -0.01).sum())
    assert found["better"] + found["worse"] + found["equal"] == count
    assert found["counts"]["missing"] == 1
    assert set(found["ap"]) == set(result["ap"])
    json.dumps(result, allow_nan=False)


def test_the_interval_is_paired_over_images(compare):
    annotations = compare.annotations
    first = shifted(annotations, [3] * len(annotations))
    second = shifted(annotations, [1] * len(annotations))
    found = compare(first, second, bootstrap=400, seed=3).to_json()["compare"]["difference"]["all"]
    change = ious(second, annotations) - ious(first, annotations)
    images = np.array([one["image_id"] for one in annotations])
    known = np.unique(images)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        drawn = rng.choice(known, len(known))
        means.append(np.concatenate([change[images == image] for image in drawn]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.2 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.2 * (high - low))


def test_a_file_against_itself_differs_nowhere(compare):
    same = shifted(compare.annotations, [1] * len(compare.annotations))
    found = compare(same, same).to_json()["compare"]
    assert found["difference"]["all"] == {"value": 0, "low": 0, "high": 0}
    assert (found["better"], found["worse"]) == (0, 0)
    bare = compare(same, same, bootstrap=0).to_json()["compare"]
    assert bare["difference"]["all"] == {"value": 0, "low": None, "high": None}


def test_the_report_shows_what_improved_and_worsened(compare, tmp_path):
    annotations = compare.annotations
    first = shifted(annotations, [4, 0] + [1] * len(annotations))
    second = shifted(annotations, [0, 4] + [1] * len(annotations))
    page = tmp_path / "report.html"
    compare(first, second, report=page)
    text = page.read_text()
    words = ("improved", "worsened")
    improved, worsened = (text.index(f">Most {word} by the second masks</h2>") for word in words)
    assert f"id {annotations[0]['id']}, " in text[improved:worsened]
    assert f"id {annotations[1]['id']}, " in text[worsened : text.index(">Worst</h2>")]
    assert "Most uncertain" not in text  # all scores are equal
    with pytest.raises(OutputError, match="also an input"):
        compare(first, second, report=tmp_path / "second.json")


def test_what_cannot_be_compared_is_refused_in_one_line(compare):
    annotations = compare.annotations
    good = shifted(annotations, [1] * len(annotations))
    keys = ("image_id", "category_id", "segmentation")
    results = [{key: one[key] for key in keys} | {"score": 0.5} for one in good]
    for first, second in ((good, results), (results, good)):
        with pytest.raises(ConfigError, match=r"--compare.* results list"):
            compare(first, second)
    for broken in ({"images": []}, "text", {}):
        with pytest.raises(DataFormatError, match=r"second\.json"):
            compare(good, broken)
    damaged = [{**good[0], "segmentation": {"size": [72, 96], "counts": "1"}}, *good[1:]]
    assert list(compare(good, damaged).comparison.problems.counts.values()) == [1]
    with pytest.raises(DataFormatError, match=r"second\.json: --strict"):
        compare(good, damaged, strict=True)
