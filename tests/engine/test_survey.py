import pytest

from malcli.engine.survey import share_of
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
