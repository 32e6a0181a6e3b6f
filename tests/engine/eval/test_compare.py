"""`eval --compare`: two files of masks on the same instances."""

import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from rich.console import Console

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.masks import evaluate
from malcli.errors import ConfigError, DataFormatError, OutputError
from malcli.report.tables import eval_tables


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
        with pytest.raises(ConfigError, match=r"--compare.*give two files of one kind"):
            compare(first, second)
    for broken in ({"images": []}, "text", {}):
        with pytest.raises(DataFormatError, match=r"second\.json"):
            compare(good, broken)
    damaged = [{**good[0], "segmentation": {"size": [72, 96], "counts": "1"}}, *good[1:]]
    assert list(compare(good, damaged).comparison.problems.counts.values()) == [1]
    with pytest.raises(DataFormatError, match=r"second\.json: --strict"):
        compare(good, damaged, strict=True)


def detections(annotations, score):
    keys = ("image_id", "category_id", "segmentation")
    return [
        {key: one[key] for key in keys} | {"score": score(n)} for n, one in enumerate(annotations)
    ]


def test_two_results_lists_differ_in_ap_with_a_paired_interval(compare, tmp_path):
    annotations = compare.annotations
    first = detections(shifted(annotations, [2] * len(annotations)), lambda n: 1 / (n + 2))
    second = detections(shifted(annotations, [0] * len(annotations)), lambda n: 1 / (n + 2))
    page = tmp_path / "report.html"
    result = compare(first, second, bootstrap=40, report=page).to_json()
    change = result["compare"]
    assert set(change["difference"]) == set(result["ap"])
    for name, gap in change["difference"].items():
        if result["ap"][name] is not None:
            assert gap["value"] == pytest.approx(change["ap"][name] - result["ap"][name])
    gap = change["difference"]["AP"]
    assert 0 < gap["low"] <= gap["value"] <= gap["high"]
    assert change["ap"]["AP"] == 1
    assert "Second detections against the first" in page.read_text("utf-8")
    same = compare(first, first, bootstrap=40).to_json()["compare"]["difference"]["AP"]
    assert same == {"value": 0, "low": 0, "high": 0}
    bare = compare(first, second, bootstrap=0).to_json()["compare"]["difference"]["AP"]
    assert (bare["low"], bare["high"]) == (None, None)
    printed = Console(width=120, record=True, file=io.StringIO())
    printed.print(eval_tables(result))
    assert "The second detections reach 1.000" in printed.export_text().replace("\n", " ")
