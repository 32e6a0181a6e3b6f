"""`evaluate` on drawn scenes: numbers, robustness to bad records, and the report."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from malcli.config.evaluate import EvalConfig
from malcli.config.label import LabelConfig
from malcli.data.formats.open import open_boxes
from malcli.data.formats.registry import writer_of
from malcli.engine.eval.masks import evaluate
from malcli.engine.label import command as label_command
from malcli.errors import (
    ConfigError,
    DataFormatError,
    Interrupted,
    MissingImageError,
    OutputError,
)
from malcli.records import records_of

KEYS = ["miou", "category_miou", "dice", "boundary_iou", "iou_over", "ap", "box_ap", "baselines"]
KEYS += ["counts", "intervals", "retention", "compare", "score"]


@pytest.fixture
def truth(scenes):
    """The drawn annotations, as a fresh copy."""
    return json.loads(scenes.instances.read_text())


@pytest.fixture
def score(scenes, tmp_path):
    """Score a list of annotations, or anything else that JSON can hold, against the scenes."""

    def run(pred, gt=None, **options):
        source = json.loads(scenes.instances.read_text())
        if isinstance(pred, list) and "id" in (pred or [{"id": 0}])[0]:
            pred = {**source, "annotations": pred}
        path = tmp_path / "pred.json"
        path.write_text(json.dumps(pred))
        given = scenes.instances
        if gt is not None:
            given = tmp_path / "gt.json"
            given.write_text(json.dumps(gt))
        options = {"bootstrap": 0, "images": scenes.images} | options
        return evaluate(EvalConfig(gt=given, pred=path, **options))

    return run


def eroded(annotations, seed=0):
    """Predictions: each mask shifted by some pixels, with a score."""
    rng = np.random.default_rng(seed)
    out = []
    for record in annotations:
        image = coco_mask.decode(as_rle(record))
        moved = np.roll(image, rng.integers(-3, 4, 2), axis=(0, 1))
        rle = coco_mask.encode(np.asfortranarray(moved))
        mask = {"size": rle["size"], "counts": rle["counts"].decode()}
        out.append({**record, "segmentation": mask, "malcli_score": float(rng.random())})
    return out


def as_rle(record, image_hw=(72, 96)):
    value = record["segmentation"]
    if isinstance(value, list):
        return coco_mask.merge(coco_mask.frPyObjects(value, *image_hw))
    if isinstance(value["counts"], list):
        return coco_mask.frPyObjects(value, *image_hw)
    return value


def test_human_masks_against_themselves_are_perfect(truth, score):
    result = score(truth["annotations"]).to_json()
    assert list(result)[: len(KEYS)] == KEYS
    assert result["miou"]["all"] == result["dice"]["all"] == result["boundary_iou"]["all"] == 1
    assert result["ap"]["AP"] == result["box_ap"]["AP"] == pytest.approx(1)
    assert result["iou_over"] == {"0.5": 1, "0.75": 1, "0.9": 1}
    assert result["counts"]["instances"] == result["counts"]["paired"] == len(truth["annotations"])
    assert result["intervals"] is None
    assert result["retention"] is None
    assert 0 < result["baselines"]["box"]["miou"]["all"] < 1


def test_numbers_equal_pycocotools_on_the_same_files(truth, score, tmp_path, capsys):
    predicted = eroded(truth["annotations"])
    result = score(predicted).to_json()
    expected = [
        coco_mask.iou([as_rle(p)], [as_rle(t)], [0])[0, 0]
        for p, t in zip(predicted, truth["annotations"], strict=True)
    ]
    assert result["miou"]["all"] == pytest.approx(np.mean(expected), abs=1e-12)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    reference = COCO(str(path))
    keys = ("image_id", "category_id", "segmentation")
    detections = reference.loadRes(
        [{key: one[key] for key in keys} | {"score": one["malcli_score"]} for one in predicted]
    )
    evaluation = COCOeval(reference, detections, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    found = [-1 if value is None else value for value in result["ap"].values()]
    assert found == pytest.approx(evaluation.stats.tolist(), abs=1e-9)


@pytest.mark.parametrize("part", [[5.0, 5.0, 9.0, 9.0], [5, 5], [5, 5, 9, 9, 4], []])
def test_ap_equals_pycocotools_where_a_human_mask_has_a_degenerate_part(score, tmp_path, part):
    squares = [[10, 10, 40, 10, 40, 40, 10, 40], [50, 50, 80, 50, 80, 80, 50, 80]]
    value = {
        "images": [{"id": 1, "file_name": "a.png", "height": 72, "width": 96}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 900}
            | {"bbox": [square[0], square[1], 30, 30], "segmentation": [square, part]}
            for n, square in enumerate(squares, 1)
        ],
    }
    mask = as_rle({"segmentation": [squares[0]]})
    mask = mask | {"counts": mask["counts"].decode()}
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": mask}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(value))
    reference = COCO(str(path))
    evaluation = COCOeval(reference, reference.loadRes([dict(one) for one in results]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    found = [-1 if one is None else one for one in score(results, value).ap.values()]
    assert found == pytest.approx(evaluation.stats.tolist(), abs=1e-6)
    assert 0.4 < found[0] < 0.6


@pytest.mark.parametrize(
    ("name_of", "said"),
    [
        (lambda image: str(image["id"]), None),
        (lambda image: Path(image["file_name"]).stem, "names of files"),
        (lambda image: Path(image["file_name"]).name, "names of files"),
    ],
)
def test_results_find_their_images_by_text_ids_and_by_names(truth, score, capsys, name_of, said):
    names = {image["id"]: name_of(image) for image in truth["images"]}
    results = [
        {"image_id": names[one["image_id"]], "category_id": one["category_id"], "score": 0.5}
        | {"segmentation": one["segmentation"]}
        for one in truth["annotations"]
    ]
    assert score(results).ap["AP"] == pytest.approx(1)
    assert said is None or said in capsys.readouterr().err


def test_numbers_that_are_names_find_their_images(truth, score):
    """Ultralytics writes the stem of 000112.jpg as 112."""
    gt = json.loads(json.dumps(truth))
    for image in gt["images"]:
        image["file_name"] = f"{image['id'] + 1000:06d}.jpg"
    results = [
        {"image_id": one["image_id"] + 1000, "category_id": one["category_id"], "score": 0.5}
        | {"segmentation": one["segmentation"]}
        for one in truth["annotations"]
    ]
    assert score(results, gt, images=None).ap["AP"] == pytest.approx(1)
    with pytest.raises(DataFormatError, match="its image ids or, in a results list, its file"):
        score([{**one, "image_id": f"x{one['image_id']}"} for one in results], gt, images=None)


def test_missing_empty_and_skipped_predictions_count_zero(truth, score):
    annotations = truth["annotations"]
    empty = {"size": [72, 96], "counts": coco_mask.encode(np.zeros((72, 96), np.uint8, order="F"))}
    empty["counts"] = empty["counts"]["counts"].decode()
    skipped = {key: value for key, value in annotations[1].items() if key != "segmentation"}
    predicted = [
        {**annotations[0], "segmentation": empty, "malcli_score": 0.0, "malcli_status": "empty"},
        {**skipped, "malcli_status": "skipped:memory"},
        *annotations[3:],
    ]
    result = score(predicted)
    count = len(annotations)
    assert result.metrics.miou["all"] == pytest.approx((count - 3) / count)
    assert result.counts["missing"] == 1
    assert result.counts["paired"] == count - 1
    assert not result.problems.counts


def test_no_prediction_at_all_is_zero_not_an_error(score):
    result = score([]).to_json()
    assert result["miou"]["all"] == 0
    assert result["ap"]["AP"] == 0
    assert result["counts"]["missing"] == result["counts"]["instances"]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [72, 96], "counts": "garbage"},
        {"size": [72, 96], "counts": "1"},
        {"size": [96, 72], "counts": "oh1"},
        [[1, 2, 3]],
        [],
        "mask",
        {"size": [72, 96], "counts": {"a": 1}},
    ],
)
def test_a_damaged_prediction_counts_zero_and_is_reported(truth, score, segmentation):
    annotations = truth["annotations"]
    predicted = [{**annotations[0], "segmentation": segmentation}, *annotations[1:]]
    result = score(predicted)
    assert result.metrics.miou["all"] == pytest.approx(1 - 1 / len(annotations))
    assert list(result.problems.counts.values()) == [1]
    assert f"id {annotations[0]['id']}" in next(iter(result.problems.examples.values()))[0]
    with pytest.raises(DataFormatError, match=r"pred\.json.*--strict"):
        score(predicted, strict=True)


def test_a_damaged_human_mask_is_left_out_and_reported(truth, score):
    good = [dict(record) for record in truth["annotations"]]
    truth["annotations"][0]["segmentation"] = {"size": [72, 96], "counts": "garbage"}
    del truth["annotations"][1]["segmentation"]
    result = score(good, gt=truth)
    assert result.metrics.miou["all"] == 1
    assert result.counts["instances"] == len(good) - 2
    assert list(result.problems.counts.values()) == [2]
    with pytest.raises(DataFormatError, match=r"gt\.json.*--strict"):
        score(good, gt=truth, strict=True)


def test_boxes_as_ground_truth_are_refused_with_the_remedy(truth, score):
    for record in truth["annotations"]:
        record.pop("segmentation")
    with pytest.raises(DataFormatError, match=r"gt\.json: .*--gt needs"):
        score([], gt=truth)
    with pytest.raises(DataFormatError, match="no annotations"):
        score([], gt={**truth, "annotations": []})


def test_masks_of_other_images_are_refused_with_the_remedy(truth, score):
    moved = [{**record, "image_id": record["image_id"] + 900} for record in truth["annotations"]]
    images = [{**image, "id": image["id"] + 900} for image in truth["images"]]
    with pytest.raises(DataFormatError, match=r"pred\.json: none of its images is in --gt"):
        score({**truth, "images": images, "annotations": moved})


def test_crowd_is_no_instance_but_ap_knows_it(truth, score):
    truth["annotations"][0]["iscrowd"] = 1
    skipped = {**truth["annotations"][0], "malcli_status": "skipped:crowd"}
    del skipped["segmentation"]
    result = score([skipped, *truth["annotations"][1:]], gt=truth)
    assert result.counts["crowd"] == 1
    assert result.counts["unmatched"] == 0
    assert result.metrics.miou["all"] == 1
    assert result.ap["AP"] == pytest.approx(1)


def test_renumbered_ids_pair_by_box(truth, score):
    predicted = [dict(record) for record in reversed(truth["annotations"])]
    for number, record in enumerate(predicted, 1):
        record["id"] = number
    assert score(predicted).metrics.miou["all"] == 1


def test_limit_and_categories_leave_both_sides_out(truth, score):
    predicted = eroded(truth["annotations"])
    first = {image["id"] for image in truth["images"][:2]}
    kept = [record for record in truth["annotations"] if record["image_id"] in first]
    limited = score(predicted, limit=2)
    assert limited.counts["instances"] == len(kept)
    assert limited.counts["unmatched"] == 0
    assert not limited.problems.counts
    category = truth["annotations"][0]["category_id"]
    name = next(item["name"] for item in truth["categories"] if item["id"] == category)
    kept = [record for record in truth["annotations"] if record["category_id"] == category]
    for text in (name, str(category)):
        chosen = score(predicted, categories=text)
        assert chosen.counts == limited.counts | {"instances": len(kept), "paired": len(kept)}
    with pytest.raises(ConfigError, match="no category 'unicorn'"):
        score(predicted, categories="unicorn")


def test_a_results_list_gives_ap_alone(truth, score):
    keys = ("image_id", "category_id", "segmentation")
    predicted = eroded(truth["annotations"])
    results = [{key: p[key] for key in keys} | {"score": p["malcli_score"]} for p in predicted]
    listed, table = score(results, bootstrap=20).to_json(), score(predicted).to_json()
    assert listed["ap"] == table["ap"]
    for key in ("miou", "category_miou", "dice", "boundary_iou", "iou_over", "baselines", "counts"):
        assert listed[key] is None
    assert listed["intervals"]["ap"]["AP"][0] <= listed["ap"]["AP"] <= 1


def test_an_empty_results_list_is_ap_zero(scenes, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    result = evaluate(EvalConfig(gt=scenes.instances, pred=path, bootstrap=0))
    assert result.ap["AP"] == 0
    assert result.counts is None


def test_a_results_list_of_boxes_has_box_ap_alone(truth, score):
    results = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for one in truth["annotations"]
    ]
    result = score(results)
    assert set(result.ap.values()) == {None}
    assert result.box_ap["AP"] == pytest.approx(1)


def test_retention_compares_with_the_oracle(truth, score, tmp_path):
    keys = ("image_id", "category_id", "segmentation")
    results = [{key: t[key] for key in keys} | {"score": 0.5} for t in truth["annotations"]]
    oracle = tmp_path / "oracle.json"
    oracle.write_text(json.dumps(results))
    predicted = eroded(truth["annotations"])
    result = score(predicted, oracle=oracle, bootstrap=30)
    kept = result.retention["AP"]
    assert kept["value"] == pytest.approx(100 * result.ap["AP"])
    assert kept["low"] <= kept["value"] <= kept["high"]


def test_intervals_have_the_nesting_of_the_metrics_and_repeat(truth, score):
    predicted = eroded(truth["annotations"])
    result = score(predicted, bootstrap=50).to_json()
    bounds = result["intervals"]
    assert set(bounds) == set(KEYS) - {"counts", "intervals", "retention", "compare", "score"}
    for key in ("miou", "category_miou", "dice", "boundary_iou"):
        for size, value in result[key].items():
            assert (
                bounds[key][size] is None or bounds[key][size][0] <= value <= bounds[key][size][1]
            )
    assert set(bounds["baselines"]["box"]) == set(result["baselines"]["box"])
    assert score(predicted, bootstrap=50).to_json() == result
    assert score(predicted, bootstrap=50, seed=1).intervals.to_json() != bounds
    json.dumps(result, allow_nan=False)


def test_categories_with_frequencies_add_apr_apc_apf(truth, score):
    letters = dict(zip(("r", "c", "f"), truth["categories"], strict=False))
    for letter, category in letters.items():
        category["frequency"] = letter
    truth["categories"].append({"id": 900, "name": "odd", "frequency": ["r"]})
    predicted = eroded(truth["annotations"])
    result = score(predicted, gt=truth, bootstrap=20).to_json()
    for name, letter in (("APr", "r"), ("APc", "c"), ("APf", "f")):
        alone = score(predicted, gt=truth, categories=letters[letter]["name"]).ap["AP"]
        assert result["ap"][name] == pytest.approx(alone)
        low, high = result["intervals"]["ap"][name]
        assert low <= high
        assert name in result["box_ap"]
    assert "APr" not in score(predicted).ap


def test_parquet_scores_as_json_does(truth, score, scenes, tmp_path):
    predicted = eroded(truth["annotations"])
    expected = score(predicted)
    table = open_boxes(tmp_path / "pred.json")
    path = tmp_path / "pred.parquet"
    writer_of("parquet")(path, table, [records_of(table)])
    found = evaluate(EvalConfig(gt=scenes.instances, pred=path, bootstrap=0))
    assert found.metrics == expected.metrics
    assert found.ap == expected.ap


def test_without_pred_the_boxes_of_gt_are_labelled_first(truth, scenes, tmp_path, monkeypatch):
    asked = []

    class FakeLabel:
        @staticmethod
        def label(config):
            asked.append(config)
            config.out.write_text(json.dumps(truth | {"info": {"malcli": {"checkpoint": "abc"}}}))

    monkeypatch.setitem(sys.modules, "malcli.engine.label.command", FakeLabel)
    both = {
        "images": scenes.images, "limit": 3, "network": "teacher", "refine": "none",
        "threshold": "0.4", "crop_size": "48", "margin": 0.125, "geometry": "released",
        "max_pixels": 12345, "workers": 0, "device": "cpu",
    }  # fmt: skip
    settings = {"gt": scenes.instances, "bootstrap": 0, **both}
    result = evaluate(EvalConfig(**settings))
    assert asked[0].boxes == scenes.instances
    assert {name: getattr(asked[0], name) for name in both} == both
    assert asked[0].tta == "flip"  # the default of label
    assert not asked[0].out.exists()
    assert result.metrics.miou["all"] == 1
    assert (result.pred, result.checkpoint) == (None, "abc")
    kept = tmp_path / "masks.json"
    assert evaluate(EvalConfig(**settings, masks=kept)).pred == kept
    assert kept.exists()


# Settings of `eval` that are not for the masks which it makes itself.
OWN = {
    "gt", "pred", "masks", "oracle", "clustering", "attention", "encoder", "weights", "ids",
    "layers", "compare", "report", "bootstrap",
}  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_a_signal_while_it_labels_names_the_eval_that_goes_on(scenes, tmp_path, monkeypatch, keep):
    def stopped(config):
        raise Interrupted(f"resume with: malcli label --out {config.out}", 15)

    monkeypatch.setattr(label_command, "label", stopped)
    masks = tmp_path / "kept.json" if keep else None
    with pytest.raises(Interrupted) as caught:
        evaluate(EvalConfig(gt=scenes.instances, masks=masks, overwrite=True))
    assert caught.value.exit_code == 143
    said = str(caught.value)
    assert "malcli label" not in said
    words = said.partition("go on with: malcli eval ")[2].split()
    assert words[words.index("--gt") + 1] == str(scenes.instances)
    # With --overwrite the next start would throw away the parts that are kept.
    assert ("--overwrite" in words, "--masks" in words) == (not keep, keep)


def test_every_setting_that_is_not_eval_s_own_reaches_label(scenes, tiny, another, monkeypatch):
    class AskedError(Exception):
        pass

    def record(config):
        raise AskedError(config)

    monkeypatch.setattr("malcli.engine.label.command.label", record)
    plain = EvalConfig(gt=scenes.instances)
    shared = {item.name for item in fields(EvalConfig)} - OWN
    given = {name: another(LabelConfig(boxes=scenes.boxes), name) for name in shared}
    category = json.loads(scenes.instances.read_text())["categories"][0]["name"]
    given |= {"images": scenes.images, "checkpoint": tiny, "categories": category}
    given |= {"max_pixels": 10**6, "max_failures": 0.75}
    assert not {name for name in shared if given[name] == getattr(plain, name)}
    with pytest.raises(AskedError) as asked:
        evaluate(replace(plain, **given))
    (config,) = asked.value.args
    assert {name: getattr(config, name) for name in shared} == given
    assert config.boxes == scenes.instances
    assert config.report is None  # eval's own page


def test_scores_on_files_need_no_torch(scenes):
    code = (
        "import sys; from pathlib import Path; from malcli.config.evaluate import EvalConfig\n"
        "from malcli.engine.eval.masks import evaluate\n"
        "path = Path(sys.argv[1])\n"
        "assert evaluate(EvalConfig(gt=path, pred=path)).metrics.miou['all'] == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scenes.instances], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_report_is_one_page_with_pictures(truth, score, tmp_path):
    truth["categories"][0]["name"] = "<script>alert(1)</script>"
    page = tmp_path / "sub" / "report.html"
    score(eroded(truth["annotations"]), gt=truth, report=page, bootstrap=10)
    text = page.read_text()
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("data:image/jpeg;base64,") >= len(truth["annotations"])
    assert not re.search(r"(src|href)=.https?://", text)
    for title in ("Worst", "Median", "Best", "Most uncertain"):
        assert f">{title}</h2>" in text
    assert ">How well the score tells</h2>" in text
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_the_report_does_without_photographs_unless_their_folder_was_named(truth, score, tmp_path):
    page = tmp_path / "report.html"
    score(truth["annotations"], gt=truth, images=None, report=page)
    assert "data:image/jpeg" in page.read_text()
    with pytest.raises(MissingImageError):
        score(truth["annotations"], gt=truth, images=tmp_path, report=page)


def test_the_report_replaces_only_reports(truth, score, scenes, tmp_path):
    page = tmp_path / "notes.html"
    page.write_text("my notes")
    with pytest.raises(OutputError, match="is no report of malcli"):
        score(truth["annotations"], report=page)
    assert page.read_text() == "my notes"
    score(truth["annotations"], report=page, overwrite=True)
    score(truth["annotations"], report=page)
    with pytest.raises(OutputError, match="also an input"):
        score(truth["annotations"], report=scenes.instances)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[{}]", "\x00\x01", '{"images": 3}'])
def test_a_file_that_is_no_mask_file_is_refused_in_one_line(scenes, tmp_path, text):
    path = tmp_path / "pred.json"
    path.write_text(text)
    with pytest.raises(DataFormatError, match=r"pred\.json") as caught:
        evaluate(EvalConfig(gt=scenes.instances, pred=path))
    assert "\n" not in str(caught.value)


def test_categories_that_the_human_side_lacks_or_names_otherwise_are_told(scenes, tmp_path, capsys):
    gt = json.loads(scenes.instances.read_text("utf-8"))
    results = [
        {key: one[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.5}
        for one in gt["annotations"]
    ]
    for one in results:
        one["category_id"] -= 1  # a trainer that counts from 0
    first = sum(one["category_id"] == 0 for one in results)
    assert first
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), "utf-8")
    evaluate(EvalConfig(gt=scenes.instances, pred=path, bootstrap=0))
    assert f"{first} predictions of categories that --gt does not have" in capsys.readouterr().err
    for one in gt["categories"]:
        one["name"] = f" {one['name'].upper()}" if one["id"] > 1 else "zebra"
    path.write_text(json.dumps(gt), "utf-8")
    evaluate(EvalConfig(gt=scenes.instances, pred=path, bootstrap=0))
    err = capsys.readouterr().err
    assert "1 categories of another name than in --gt, such as 1 is 'zebra', in --gt" in err


def test_how_well_the_score_tells_is_measured_on_the_masks_there_are(truth, score):
    predicted = eroded(truth["annotations"])
    iou = plain_ious(truth["annotations"], predicted)
    for one, value in zip(predicted, iou, strict=True):
        one["malcli_score"] = value
    found = score(predicted).to_json()["score"]
    assert found["spearman"] == pytest.approx(1)
    assert found["gap"] == pytest.approx(0, abs=1e-9)
    assert found["mean_iou"] == pytest.approx(np.mean(iou))
    del predicted[0]  # without a mask there is nothing to be sure of
    assert score(predicted).score["mean_iou"] == pytest.approx(np.mean(iou[1:]))
    for unfit in (0.5, 7.0):
        given = [one | {"malcli_score": unfit + n * (unfit > 1)} for n, one in enumerate(predicted)]
        assert score(given).score is None


def test_malcli_s_score_goes_before_another_tool_s(truth, score):
    predicted = eroded(truth["annotations"])
    both = [one | {"score": round(1 - one["malcli_score"], 9)} for one in predicted]
    alone = [{key: value for key, value in one.items() if key != "malcli_score"} for one in both]
    assert score(both).score == score(predicted).score != score(alone).score
    none = [one | {"malcli_score": None} for one in both]
    assert score(none).score == score(alone).score


def test_a_record_without_an_id_is_named_by_its_place_in_the_file(truth, score, monkeypatch):
    monkeypatch.setattr("malcli.engine.eval.read_instances.CHUNK", 2)
    keys = ("image_id", "category_id", "segmentation")
    listed = [{key: one[key] for key in keys} | {"score": 0.5} for one in truth["annotations"]]
    listed[3]["segmentation"] = {"size": [72, 96], "counts": "1"}
    result = score(listed)
    ((named,),) = result.problems.examples.values()
    assert named.startswith("annotations[3]: ")


def test_a_human_instance_without_a_box_has_that_of_its_mask(truth, score):
    boxed = [one | {"bbox": coco_mask.toBbox(as_rle(one)).tolist()} for one in truth["annotations"]]
    bare = [{key: value for key, value in one.items() if key != "bbox"} for one in boxed]
    found, wanted = (score(boxed, gt=truth | {"annotations": some}) for some in (bare, boxed))
    assert found.baselines == wanted.baselines
    assert found.metrics == wanted.metrics


@pytest.mark.parametrize("name", ["gt", "pred", "oracle", "masks", "compare"])
def test_the_report_is_never_one_of_the_files_given(scenes, tmp_path, name):
    files = {"gt": scenes.instances, name: tmp_path / "one.json"}
    with pytest.raises(OutputError, match="also an input"):
        evaluate(EvalConfig(**files, report=tmp_path / "one.json", overwrite=True))


def plain_ious(annotations, predicted):
    masks = [[coco_mask.decode(as_rle(one)) for one in side] for side in (annotations, predicted)]
    return [float((a & b).sum() / (a | b).sum()) for a, b in zip(*masks, strict=True)]
