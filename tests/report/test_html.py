"""The report pages: whole, offline, escaped."""

import base64
import hashlib
from html.parser import HTMLParser

import numpy as np
import pytest

from malcli.errors import OutputError
from malcli.report.blocks import SCRIPT
from malcli.report.charts import Category
from malcli.report.html import attention_page, check_page, eval_page, label_page, write_page
from malcli.report.plots import Example

VOID = {"meta", "img", "br", "rect"}
NASTY = "<b onmouseover='x()'>&\"'\ud800"


class Balance(HTMLParser):
    """Checks that tags close in order and collects what would load something."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags, self.policy = [], [], [], ""
        self.ids, self.links, self.handlers = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.loads += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        self.handlers += [name for name in given if name.startswith("on")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(load.startswith("data:image/jpeg;base64,") for load in parser.loads)
    assert not {"b onmouseover", "link", "iframe", "base", "form"} & set(parser.tags)
    assert parser.handlers == []
    # One script, ours, and the page itself forbids all others and every connection.
    assert parser.tags.count("script") == 1
    assert f"<script>{SCRIPT}</script>" in page
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in parser.policy
    assert "default-src 'none'" in parser.policy
    assert len(set(parser.ids)) == len(parser.ids)
    assert {link.removeprefix("#") for link in parser.links} <= set(parser.ids)
    return parser


def result(**changes):
    sizes = {"all": 0.7, "small": None, "medium": 0.6, "large": 0.8}
    iou = dict.fromkeys(("miou", "category_miou", "dice", "boundary_iou"), sizes)
    iou |= {"iou_over": {"0.5": 0.9, "0.75": 0.5, "0.9": 0.1}}
    counts = {"instances": 1234, "paired": 1232, "missing": 2, "unmatched": 0, "crowd": 3}
    whole = iou | {"baselines": {"box": iou, "ellipse": iou}, "counts": counts, "gt": NASTY}
    whole |= {"ap": {"AP": 0.5, "APs": None}, "box_ap": None, "intervals": None, "retention": None}
    return whole | changes


def test_the_eval_page_is_balanced_offline_and_escaped():
    made = {"masks": np.array([0.1, 0.9, 1.0]), "ellipse": np.array([0.5])}
    pictures = {"Worst": [Example(b"jpeg", (NASTY, "id 7"))], "Best": []}
    bars = [Category(NASTY, 0.4, 3), Category("</script><script>alert(1)</script>", 0.5, 1)]
    page = eval_page(result(), {"all": made, "small": made}, bars, pictures, {"2 bad": [NASTY]})
    parser = checked(page)
    assert parser.loads == ["data:image/jpeg;base64,anBlZw=="]
    assert "mean IoU of 0.700 on 1,234 instances" in page
    assert ">Best</h2>" not in page
    assert page.count("<svg") == 2
    assert "prefers-color-scheme" in page


def test_the_histogram_counts_every_instance_the_last_bin_included():
    page = eval_page(result(), {"all": {"masks": np.array([0.0, 0.99, 1.0, 1.0])}}, [], {}, {})
    assert "IoU 0.95–1.00: 75.0 %" in page
    assert "IoU 0.00–0.05: 25.0 %" in page


def test_a_page_of_ap_alone_and_a_page_of_nothing_are_whole():
    nothing = dict.fromkeys(result())
    checked(eval_page(nothing, {}, [], {}, {}))
    page = eval_page(nothing | {"ap": {"AP": 0.25}}, {}, [], {}, {})
    checked(page)
    assert "Mask AP is 0.250." in page


def compared(**changes):
    cell = {"value": 0.02, "low": 0.01, "high": 0.03}
    sizes = dict.fromkeys(("all", "medium", "large"), cell)
    none = {"value": None, "low": None, "high": None}
    second = {key: result()[key] for key in ("miou", "boundary_iou")}
    second |= {"difference": {**sizes, "small": none}, "better": 9, "worse": 4, "equal": 2}
    return second | {"ap": {"AP": 0.55}, "pred": NASTY} | changes


def test_the_second_masks_stand_beside_the_first():
    pictures = {"Worst": [Example(b"jpeg", ("id 7",))]}
    page = eval_page(result(compare=compared()), {}, [], pictures, {})
    checked(page)
    assert "The second masks reach 0.700 (+0.020, 95 % interval +0.010 to +0.030)" in page
    assert "9 better, 4 worse, 2 equal" in page
    assert "the second one" in page
    assert "+0.050" in page  # mask AP
    alone = eval_page(result(), {}, [], pictures, {})
    assert "second masks" not in alone


def test_retention_stands_under_ap():
    kept = {"AP": {"value": 94.4, "low": 91.0, "high": 97.0}}
    page = eval_page(result(retention=kept), {}, [], {}, {})
    assert "Retention is 94.4 %" in page
    assert "91.0–97.0" in page


def test_the_label_page_says_what_became_of_the_boxes():
    summary = {"counts": {"ok": 9, "empty": 1}, "boxes_per_s": 3.0, "out": NASTY}
    page = label_page(summary, {"Least sure": [Example(b"x", ("id 1",))]}, {})
    checked(page)
    assert "9 of 10 boxes have a mask" in page
    checked(label_page({"counts": {}, "boxes_per_s": None, "out": None}, {}, {}))


@pytest.mark.parametrize("class_token", [True, False])
def test_the_attention_page_says_whose_attention_its_rows_show(class_token):
    summary = {"layers": [4, 12], "gt": NASTY, "encoder": NASTY, "weights": NASTY}
    pictures = [Example(b"jpeg", (NASTY, "id 7"))]
    page = attention_page(summary | {"class_token": class_token}, pictures, {"1 bad": [NASTY]})
    assert checked(page).loads == ["data:image/jpeg;base64,anBlZw=="]
    assert "layers 4, 12" in page
    assert ("the class token" in page) == class_token
    assert "marked by a dot" in page
    assert ">Problems</h2>" in page


def test_a_page_is_written_whole_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_page(path, eval_page(result(), {}, [], {}, {}))
    check_page(path, [])
    write_page(path, label_page({"counts": {}, "out": NASTY}, {}, {}))
    assert path.read_text().rstrip().endswith("</html>")
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_inputs_folders_and_strangers_are_not_replaced(tmp_path):
    strange = tmp_path / "thesis.html"
    strange.write_text("<html>mine</html>")
    for path, inputs in ((strange, []), (tmp_path, []), (strange, [strange])):
        with pytest.raises(OutputError):
            check_page(path, inputs)
    check_page(strange, [None], overwrite=True)
