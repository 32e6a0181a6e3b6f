import csv
import json
import re
from itertools import pairwise

import pytest

from malcli.config.label import LabelConfig
from malcli.engine.label import review
from malcli.engine.label.review import write_report, write_review
from malcli.records import Problems


@pytest.fixture
def masks(scenes, tmp_path):
    """The drawn scenes as `label` would write them, with scores by order and hostile names."""
    made = json.loads(scenes.instances.read_text())
    made["categories"][0]["name"] = "=HYPERLINK(1)"
    for place, one in enumerate(made["annotations"]):
        one |= {"malcli_score": round(1 - place / 100, 2), "malcli_status": "ok"}
    made["annotations"][2] |= {"malcli_score": 0.0, "malcli_status": "empty"}
    skipped = made["annotations"][3]
    skipped["malcli_status"] = "skipped:crowd"
    del skipped["malcli_score"], skipped["segmentation"]
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(made))
    return path


def test_the_least_sure_come_first_and_skipped_ones_are_left_out(masks, tmp_path):
    write_review(masks, tmp_path / "review.csv")
    with (tmp_path / "review.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = json.loads(masks.read_text())
    images = {one["id"]: one["file_name"] for one in made["images"]}
    scored = [one for one in made["annotations"] if "malcli_score" in one]
    wanted = sorted(scored, key=lambda one: one["malcli_score"])
    assert [row["id"] for row in rows] == [str(one["id"]) for one in wanted]
    assert [float(row["score"]) for row in rows] == [one["malcli_score"] for one in wanted]
    assert [row["image"] for row in rows] == [images[one["image_id"]] for one in wanted]
    assert rows[0]["status"] == "empty"
    first = made["categories"][0]["id"]
    names = {row["category"] for row, one in zip(rows, wanted, strict=True)
             if one["category_id"] == first}  # fmt: skip
    assert names == {"'=HYPERLINK(1)"}


def test_the_review_is_as_long_as_people_can_use(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(review, "REVIEWED", 3)
    write_review(masks, tmp_path / "review.csv")
    assert len((tmp_path / "review.csv").read_text().splitlines()) == 4


def test_the_report_shows_masks_and_problems(masks, scenes, tmp_path):
    page = tmp_path / "report.html"
    config = LabelConfig(boxes=scenes.boxes, images=scenes.images, out=masks, report=page)
    summary = {"counts": {"ok": 3, "empty": 1}, "boxes_per_s": 2.0, "out": str(masks)}
    problems = Problems()
    problems.add("bad-box", "annotation 5: <script>")
    write_report(config, masks, summary, problems)
    text = page.read_text()
    assert text.count("<figure>") > 6
    for words in ("The least sure", "The surest", "Random", "bad-box: 1", "&lt;script&gt;"):
        assert words in text
    assert "annotation 5: <script>" not in text


def test_each_gallery_holds_the_masks_that_its_title_says(masks, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(review, "SHOWN", 3)
    page = tmp_path / "report.html"
    config = LabelConfig(boxes=scenes.boxes, images=scenes.images, out=masks, report=page)
    write_report(config, masks, {"counts": {}, "out": str(masks)}, Problems())
    text = page.read_text()
    titles = [f">{title}</h2>" for title in ("The least sure", "The surest", "Random")]
    bounds = [*map(text.index, titles), len(text)]
    least, surest, chosen = (
        [int(number) for number in dict.fromkeys(re.findall(r"id (\d+), ", text[begin:end]))]
        for begin, end in pairwise(bounds)
    )
    made = json.loads(masks.read_text())["annotations"]
    ok = [one["id"] for one in made if one["malcli_status"] == "ok"]  # the surest first
    assert (least, surest) == (ok[:-4:-1], ok[:3])
    assert len(set(chosen)) == 3
    assert set(chosen) <= set(ok)


def test_no_mask_at_all_still_gives_review_and_report(scenes, tmp_path):
    page, sheet = tmp_path / "report.html", tmp_path / "review.csv"
    config = LabelConfig(boxes=scenes.boxes, images=scenes.images, report=page)
    write_review(scenes.boxes, sheet)
    write_report(config, scenes.boxes, {"counts": {}, "out": "x"}, Problems())
    assert sheet.read_text().splitlines() == ["id,image,category,score,status"]
    assert "<figure>" not in page.read_text()
