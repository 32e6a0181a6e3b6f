from malcli.engine import crew
from malcli.engine.crew import Crew


class Parts:
    """Three parts of 5, 6 and 7 boxes."""

    def __init__(self):
        self.files = set()

    def present(self):
        return set(self.files)

    def rows(self, index):
        return [0] * (5 + index)


def test_each_part_of_others_is_news_once(monkeypatch):
    monkeypatch.setattr(crew, "LOOK_SECONDS", 0.0)
    parts = Parts()
    others = Crew(parts, {1, 2})
    assert others.news() == 0
    parts.files = {0, 2}  # part 0 is this process's own
    assert (others.news(), others.news()) == (7, 0)
    parts.files = {0, 1, 2}
    assert (others.news(), others.news()) == (6, 0)


def test_the_folder_is_not_looked_at_too_often():
    parts = Parts()
    others = Crew(parts, {1})
    assert others.news() == 0
    parts.files = {1}
    assert others.news() == 0
