import json

from malcli.engine.label import siblings
from malcli.engine.label.result import LabelResult
from malcli.engine.label.siblings import Siblings, combine, hand_in
from malcli.records import Problems


class Parts:
    """Three parts of 5, 6 and 7 boxes."""

    def __init__(self):
        self.files = set()

    def present(self):
        return set(self.files)

    def rows(self, index):
        return [0] * (5 + index)


def test_each_part_of_others_is_news_once(monkeypatch):
    monkeypatch.setattr(siblings, "LOOK_SECONDS", 0.0)
    parts = Parts()
    others = Siblings(parts, {1, 2})
    assert others.news() == 0
    parts.files = {0, 2}  # part 0 is this process's own
    assert (others.news(), others.news()) == (7, 0)
    parts.files = {0, 1, 2}
    assert (others.news(), others.news()) == (6, 0)


def test_the_folder_is_not_looked_at_too_often():
    parts = Parts()
    others = Siblings(parts, {1})
    assert others.news() == 0
    parts.files = {1}
    assert others.news() == 0


def results(folder, monkeypatch, *several):
    """Hand in results as processes of one command do; returns what is read back."""
    monkeypatch.setenv(siblings.RESULTS, str(folder))
    for rank, one in enumerate(several):
        monkeypatch.setenv("RANK", str(rank))
        assert hand_in(one.to_json(), one.labelled)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(several))]


def test_results_of_processes_add_up(monkeypatch, tmp_path):
    first = LabelResult({"ok": 5, "empty": 1}, out=tmp_path / "a.json", labelled=(6, 2.0))
    second = LabelResult({"ok": 9, "skipped:crowd": 2}, labelled=(4, 5.0))
    for one, seconds in ((first, 1.5), (second, 2.0)):
        one.seconds["network"] = seconds
        one.problems = Problems()
        one.problems.add("bad-box", "annotation 7: no bbox")  # every process reads all records
    first.problems.add("bad-image-file", "a.jpg")
    second.problems.add("bad-image-file", "b.jpg")
    whole = combine(results(tmp_path, monkeypatch, first, second))
    assert set(whole) == set(first.to_json())
    assert whole["counts"] == {"ok": 14, "empty": 1, "skipped:crowd": 2}
    assert (whole["boxes_per_s"], whole["merged"]) == (2.0, False)  # 10 boxes in 5 seconds
    assert whole["seconds"]["network"] == 3.5
    assert whole["problems"] == {
        "bad-box": {"count": 1, "examples": ["annotation 7: no bbox"]},
        "bad-image-file": {"count": 2, "examples": ["a.jpg", "b.jpg"]},
    }


def test_whoever_merged_knows_the_counts(monkeypatch, tmp_path):
    share, whole = LabelResult({"ok": 5}), LabelResult({"ok": 14, "empty": 1}, merged=True)
    found = combine(results(tmp_path, monkeypatch, share, whole))
    assert (found["counts"], found["merged"], found["boxes_per_s"]) == (whole.counts, True, 0.0)


def test_nothing_is_handed_in_where_nobody_looks_or_the_disk_is_full(monkeypatch, tmp_path):
    assert not hand_in(LabelResult().to_json(), (0, 0.0))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(siblings.RESULTS, str(tmp_path / "gone"))
    assert not hand_in(LabelResult().to_json(), (0, 0.0))
