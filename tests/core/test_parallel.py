"""The degrees fill the world, or say why they cannot."""

import pytest
from pydantic import ValidationError

from puna.core.errors import ConfigError
from puna.core.parallel import Degrees, ParallelConfig


def test_the_default_shards_over_all_processes():
    assert ParallelConfig().resolve(8) == Degrees(dp_shard=8)
    assert ParallelConfig().resolve(1).world_size == 1


@pytest.mark.parametrize(
    ("given", "world", "name", "left"),
    [
        ({"tp": 8, "pp": 16}, 16384, "dp_shard", 128),
        ({"dp_shard": 32, "dp_replicate": -1}, 128, "dp_replicate", 4),
        ({"dp_shard": 1, "cp": -1, "tp": 2}, 8, "cp", 4),
    ],
)
def test_minus_one_is_what_is_left(given, world, name, left):
    degrees = ParallelConfig(**given).resolve(world)
    assert getattr(degrees, name) == left
    assert degrees.world_size == world


def test_degrees_that_do_not_divide_the_world_are_refused_with_numbers():
    with pytest.raises(ConfigError, match="tp 8 = 8 must divide the 12 processes"):
        ParallelConfig(tp=8).resolve(12)
    with pytest.raises(ConfigError, match="dp_shard 2 x tp 2 = 4, but this run has 8"):
        ParallelConfig(tp=2, dp_shard=2).resolve(8)


def test_zero_and_two_open_degrees_are_refused():
    with pytest.raises(ValidationError, match="cannot be 0"):
        ParallelConfig(tp=0)
    with pytest.raises(ValidationError, match="only one of them"):
        ParallelConfig(tp=-1)


def test_degrees_read_like_a_layout():
    assert str(Degrees(dp_shard=8, tp=2)) == "dp_shard 8 x tp 2"
    assert str(Degrees()) == "one process"
    assert Degrees(dp_shard=8, dp_replicate=2, cp=4).data_parallel == 16
