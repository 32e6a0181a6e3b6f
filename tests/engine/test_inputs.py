from pathlib import Path

import pytest

from malcli.config.label import LabelConfig
from malcli.engine.label.settings import auto_batch, crop_size_of, result_settings, share_of
from malcli.errors import ConfigError


@pytest.mark.parametrize(
    ("shard", "environment", "parts"),
    [
        (None, {}, [0, 1, 2, 3, 4, 5, 6]),
        ("0/1", {}, [0, 1, 2, 3, 4, 5, 6]),
        ("1/3", {}, [1, 4]),
        (None, {"RANK": "2", "WORLD_SIZE": "4"}, [2, 6]),
        ("6/9", {}, [6]),
        ("8/9", {}, []),
    ],
)
def test_a_share_is_every_nth_part(shard, environment, parts):
    assert list(range(7))[share_of(shard, environment)] == parts


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_shards_and_ranks_share_out_every_part_once(shards, world):
    taken = [
        part
        for shard in range(shards)
        for rank in range(world)
        for part in list(range(40))[
            share_of(f"{shard}/{shards}", {"RANK": str(rank), "WORLD_SIZE": str(world)})
        ]
    ]
    assert sorted(taken) == list(range(40))


@pytest.mark.parametrize(
    "text", ["", "1", "1/", "/2", "2/2", "-1/2", "1/2/3", "a/b", "1.0/2", "²/3"]
)
def test_other_shards_are_refused(text):
    with pytest.raises(ConfigError, match="--shard"):
        share_of(text, {})


def test_a_crop_size_is_a_number_or_auto_and_changes_the_result():
    assert (crop_size_of("160"), crop_size_of("auto")) == (160, "auto")
    given = {size: LabelConfig(boxes=Path("x"), crop_size=size) for size in ("160", "auto", None)}
    found = {size: result_settings(config).get("crop_size") for size, config in given.items()}
    assert found == {"160": 160, "auto": "auto", None: None}


@pytest.mark.parametrize("text", ["", "0", "-16", "1.5", "Auto", "autos", "12345678901", "²"])
def test_other_crop_sizes_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        crop_size_of(text)
    assert str(caught.value) == f"--crop-size {text!r}: give a whole number above 0, or auto"


def test_a_cpu_gets_fewer_crops_at_once_where_one_may_be_large():
    assert auto_batch("cpu", 256) > auto_batch("cpu", 257) == auto_batch("cpu", "auto")
    assert len({auto_batch("cuda", size) for size in (96, 512, "auto")}) == 1
