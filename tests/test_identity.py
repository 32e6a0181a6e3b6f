from pathlib import Path

import pytest

from malcli.errors import OutputError
from malcli.identity import differences, refuse


def test_differences_are_sorted_and_none_is_as_good_as_absent():
    before = {"margin": 0.6, "limit": None, "boxes_sha256": "a", "tta": "flip"}
    now = {"tta": "none", "margin": 0.6, "crop_size": 32, "boxes_sha256": "b"}
    assert differences(before, now) == [
        "boxes changed",
        "crop_size was not given, now 32",
        "tta was flip, now none",
    ]
    assert differences(now, dict(reversed(now.items()))) == []


def test_a_long_value_is_cut():
    (phrase,) = differences({"categories": "x" * 10_000}, {})
    assert phrase == f"categories was {'x' * 60}, now not given"


@pytest.mark.parametrize("kind", ["job", "run", "study"])
def test_the_refusal_names_place_kind_differences_and_the_ways_out(kind):
    refuse(Path("out"), kind, [])
    with pytest.raises(OutputError) as refused:
        refuse(Path("out"), kind, ["a was 1, now 2", "boxes changed"])
    assert str(refused.value) == (
        f"out: belongs to another {kind}: a was 1, now 2; boxes changed; give another --out or "
        f"--overwrite"
    )
