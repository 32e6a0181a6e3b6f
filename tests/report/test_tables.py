"""Tables for the terminal."""

import io

import pytest
from rich.console import Console

from malcli.report.tables import (
    duration,
    eval_tables,
    fit_table,
    label_table,
    signed,
    spread,
    verdict,
)

SIZES = {"all": 0.7123, "small": None, "medium": 0.6, "large": 0.8}
IOU = {
    "miou": SIZES,
    "category_miou": SIZES,
    "dice": SIZES,
    "boundary_iou": SIZES,
    "iou_over": {"0.5": 0.9, "0.75": 0.5, "0.9": 0.1},
}
COUNTS = {"instances": 40, "paired": 38, "missing": 2, "unmatched": 1, "crowd": 3}


def text_of(table):
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue()


def test_eval_shows_masks_and_baselines_by_size_with_counts():
    result = IOU | {
        "ap": {"AP": 0.5, "APs": None},
        "box_ap": None,
        "baselines": {"box": IOU, "ellipse": IOU},
        "counts": COUNTS,
        "intervals": {"miou": {"all": [0.69, 0.73]}},
        "retention": {"AP": {"value": 94.4, "low": 90.0, "high": 97.0}},
    }
    text = text_of(eval_tables(result))
    assert "0.712" in text
    assert "0.690–0.730" in text
    assert "filled box" in text
    assert "40 instances: 38 paired, 2 missing" in text
    assert "94.4" in text
    assert "90.0–97.0" in text


def test_eval_of_a_results_list_shows_ap_alone():
    result = dict.fromkeys([*IOU, "baselines", "counts", "intervals", "box_ap"])
    text = text_of(eval_tables(result | {"ap": {"AP": 0.25}, "retention": None}))
    assert "0.250" in text
    assert "filled box" not in text


def test_label_shows_statuses_rate_and_seconds():
    summary = {
        "counts": {"ok": 90, "empty": 9, "skipped:crowd": 1},
        "boxes_per_s": 12.34,
        "seconds": {"network": 9.0, "decode": 1.0},
        "peak_memory_mb": 512.0,
        "out": "masks.json",
    }
    text = text_of(label_table(summary))
    for part in ("skipped:crowd", "90.0 %", "12.3 boxes/s", "512 MB", "90 %", "masks.json"):
        assert part in text


@pytest.mark.parametrize("rate", [None, 0.0])
def test_nothing_labelled_has_no_rate_and_no_seconds(rate):
    seconds = {"read": 0.01, "network": 0.0}
    summary = {"counts": {}, "boxes_per_s": rate, "seconds": seconds, "out": "masks.json"}
    text = text_of(label_table(summary))
    assert "masks.json" in text
    assert "boxes/s" not in text
    assert "network" not in text


def test_an_undefined_interval_is_blank():
    assert spread(None) == ""


def test_fit_shows_time_losses_and_scores():
    summary = {
        "run": "runs/boxes-1",
        "steps": 40,
        "crops_per_s": 12.5,
        "seconds": {"student": 3.0, "teacher": 1.0},
        "last": {"loss": 0.5, "loss_mil": 0.1, "loss_crf": 0.2, "memory_mb": 900, "unreadable": 3},
        "val": None,
    }
    text = text_of(fit_table(summary))
    assert "75 %" in text
    assert "40 steps, 12.5 crops/s: runs/boxes-1" in text
    assert "3 crops of images that could not be read" in text


def test_a_dry_run_shows_boxes_only():
    text = text_of(label_table({"counts": {"ok": 3}, "out": None, "seconds": {"read": 1.0}}))
    assert "ok" in text
    assert "read" not in text


def judged(miou, box=0.5, ellipse=0.6, missing=0, **more):
    sides = {"box": {"miou": {"all": box}}, "ellipse": {"miou": {"all": ellipse}}}
    counts = COUNTS | {"missing": missing}
    return " ".join(verdict({"miou": {"all": miou}, "baselines": sides, "counts": counts, **more}))


def test_the_verdict_says_whether_the_masks_beat_the_baselines():
    good = judged(0.8)
    assert "mean IoU of 0.800 on 40 instances" in good
    assert "better than both baselines" in good
    assert "50 % is put right" in good
    assert "no prediction" not in good
    assert "no better than an ellipse" in judged(0.6)
    assert "no better than a filled box" in judged(0.6, box=0.7)
    assert "2 have no prediction and count 0" in judged(0.8, missing=2)
    assert verdict({"ap": {"AP": 0.25}}) == ["Mask AP is 0.250."]
    assert verdict({}) == ["No instance has a mask to compare."]


def second(value, low, high):
    none = dict.fromkeys(("value", "low", "high"))
    change = {"all": {"value": value, "low": low, "high": high}}
    change |= dict.fromkeys(("small", "medium", "large"), none)
    return IOU | {"difference": change, "better": 3, "worse": 1, "equal": 36, "ap": {"AP": 0.4}}


def test_the_verdict_on_a_second_run_says_whether_the_difference_is_clear():
    clear = judged(0.8, compare=second(-0.02, -0.03, -0.01))
    assert "(-0.020, 95 % interval -0.030 to -0.010), better on 3" in clear
    assert "no clear difference" in judged(0.8, compare=second(0.01, -0.01, 0.03))
    assert "(+0.010), better on 3 instances and worse on 1" in judged(
        0.8, compare=second(0.01, None, None)
    )


def test_eval_shows_the_second_masks_beside_the_first():
    result = IOU | {"ap": {"AP": 0.5}, "baselines": None, "counts": COUNTS, "intervals": None}
    text = text_of(eval_tables(result | {"compare": second(0.01, -0.01, 0.03)}))
    assert "-0.010 to +0.030" in text
    assert "better on 3 instances, worse on 1, equal" in text
    assert "-0.100" in text  # mask AP 0.5 -> 0.4


def test_differences_carry_their_sign():
    assert (signed(0.5), signed(-0.25, 2), signed(None)) == ("+0.500", "-0.25", "–")
    assert spread([-0.1, 0.2], 1, signs=True) == "-0.1 to +0.2"


def test_a_dry_run_says_time_and_disk():
    summary = {"counts": {"ok": 3}, "out": None, "seconds": {}}
    sizes = {"json_mb": 12_345.6, "parquet_mb": 5000.0, "free_mb": 20_000.0}
    text = text_of(
        label_table(summary | {"estimate": sizes | {"boxes_per_s": None, "seconds": None}})
    )
    for part in ("12.3 GB as JSON", "20.0 GB are free", "may not fit", "--limit 50"):
        assert part in " ".join(text.split())
    known = sizes | {"free_mb": 90_000.0, "boxes_per_s": 28.0, "seconds": 7_290.0}
    text = " ".join(text_of(label_table(summary | {"estimate": known})).split())
    assert "about 2 h 1 min at 28.0 boxes/s" in text
    assert "may not fit" not in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (59, "59 s"), (90, "1 min 30 s"), (3600, "1 h 0 min"), (200_000, "2 d 7 h")],
)
def test_times_are_said_in_two_units(seconds, said):
    assert duration(seconds) == said
