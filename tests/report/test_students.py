import io

from rich.console import Console

from malcli.metrics.ap import STATS
from malcli.report.students import retention_tables

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def shown(result):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(retention_tables(result))
    return console.export_text()


def result(**changes):
    def stats(value):
        return dict.fromkeys(STATS, value)

    cell = {"value": 91.26, "low": 88.0, "high": 94.04}
    return {
        "human": {"ap": stats(0.4), "box_ap": stats(0.5)},
        "malcli": {"ap": stats(0.365), "box_ap": stats(0.49)},
        "boxes": None,
        "retention": dict.fromkeys(AP_NAMES, cell),
        "intervals": None,
        "counts": {"used": 8, "instances": 9, "images": 3, "val_images": 2},
        "out": "study",
    } | changes


def test_both_students_and_the_share_kept_are_shown():
    text = shown(result())
    for words in ("human masks", "0.400", "0.365", "0.490", "91.3", "88.0–94.0", "8 of 9"):
        assert words in text, words
    assert "boxes alone" not in text


def test_boxes_alone_are_a_row_of_box_ap_only():
    boxes = {"ap": dict.fromkeys(STATS), "box_ap": dict.fromkeys(STATS, 0.47)}
    text = shown(result(boxes=boxes))
    assert text.count("boxes alone") == 1
    assert "0.470" in text


def test_undefined_numbers_are_dashes():
    nothing = {"value": None, "low": None, "high": None}
    text = shown(result(retention=dict.fromkeys(AP_NAMES, nothing)))
    assert text.count("–") >= 6
