import json

import pytest

from malcli.engine.retention.student_results import _join, _part


def test_parts_of_processes_are_joined_in_the_order_of_the_images(tmp_path):
    target = tmp_path / "human.json"
    images = [[{"image_id": n, "k": k} for k in range(n % 3)] for n in range(7)]
    for rank in range(3):
        lines = (json.dumps(found) + "\n" for found in images[rank::3])
        _part(target, rank).write_text("".join(lines), "utf-8")
    _join(target, 3)
    assert json.loads(target.read_text("utf-8")) == [one for found in images for one in found]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("world", [1, 2])
def test_no_detection_at_all_is_an_empty_list(tmp_path, world):
    target = tmp_path / "human.json"
    for rank in range(world):
        _part(target, rank).write_text("[]\n", "utf-8")
    _join(target, world)
    assert json.loads(target.read_text("utf-8")) == []
