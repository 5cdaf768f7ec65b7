"""Layouts: what is left, what cannot be, and why; all reasons at once."""

import pytest
from pydantic import ValidationError

from puna.core.errors import ConfigError
from puna.model.config import SIZES
from puna.train.parallel_config import ParallelConfig, Work, check, degree_problems, problems

WORK = Work(rows=16, sequence_length=8192, accumulation=16)


@pytest.mark.parametrize(
    ("asked", "world", "axis", "left"),
    [
        ({"dp_shard": -1, "tp": 8, "pp": 16}, 16_384, "dp_shard", 128),
        ({"dp_shard": 32, "dp_replicate": -1}, 128, "dp_replicate", 4),
        ({"cp": -1, "tp": 2}, 8, "cp", 4),
    ],
)
def test_minus_one_is_what_is_left(asked, world, axis, left):
    resolved = ParallelConfig(**asked).resolve(world)
    assert getattr(resolved, axis) == left and resolved.world_size == world


def test_degrees_that_do_not_multiply_to_the_world_are_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"12 processes cannot be divided by tp 8 = 8"):
        ParallelConfig(tp=8, dp_shard=-1).resolve(12)
    with pytest.raises(ConfigError, match=r"dp_shard 2 x tp 2 = 4 processes are asked for, there are 8"):
        ParallelConfig(tp=2, dp_shard=2).resolve(8)


def test_what_cannot_be_is_told_with_the_nearest_that_can():
    with pytest.raises(ConfigError, match=r"nearest 2 and 4; or start 6 or 9 processes"):
        ParallelConfig(tp=3, dp_shard=-1).resolve(8)
    with pytest.raises(ConfigError, match=r"3 does not divide them.*nearest 2 and 4"):
        ParallelConfig(tp=3).resolve(8)
    with pytest.raises(ConfigError, match=r"parallel.dp_shard=-1"):
        ParallelConfig(tp=2).resolve(8)
    with pytest.raises(ConfigError, match=r"dp_shard 2 = 2 processes are asked for, there are 1. Start 2 \(torchrun"):
        ParallelConfig(dp_shard=2).resolve(1)
    with pytest.raises(ConfigError, match=r"so one process is asked for, there are 2"):
        ParallelConfig().resolve(2)
    (text,) = problems(ParallelConfig(tp=3, dp_shard=8), SIZES["8B"], Work(16, 8192, 1))
    assert "does not divide the 8 kv heads and the 14336 columns" in text
    assert "The nearest that does: 2; all that do: 1, 2, 4, 8." in text


def test_degrees_are_held_against_the_model_before_the_rest_is_known():
    assert degree_problems(ParallelConfig(tp=3, dp_shard=-1), SIZES["8B"])
    assert not degree_problems(ParallelConfig(tp=8, dp_shard=-1), SIZES["8B"])


@pytest.mark.parametrize("bad", [{"tp": 0}, {"tp": -1, "dp_shard": -1}, {"tp": -2}, {"schedule": "2f2b"}])
def test_settings_that_mean_nothing_are_refused(bad):
    with pytest.raises(ValidationError):
        ParallelConfig(**bad)


def test_every_reason_is_told_at_once():
    layout = ParallelConfig(tp=16, pp=3, dp_shard=7, schedule="zbv", recompute="full", float8="rowwise")
    found = problems(layout, SIZES["3B"], Work(rows=16, sequence_length=8191, accumulation=2))
    text = "\n".join(found)
    for part in ("8 kv heads", "dim 3072", "data.rows 16", "untied head", "do not fill", "two halves", "float8"):
        assert part in text, (part, text)
    with pytest.raises(ConfigError, match=f"{len(found)} problems"):
        check(layout, SIZES["3B"], Work(rows=16, sequence_length=8191, accumulation=2))


def test_published_layouts_of_llama_3_can_be():
    assert not problems(ParallelConfig(tp=8, pp=16, dp_shard=128), SIZES["405B"], Work(128, 8192, 16))
    assert not problems(ParallelConfig(tp=8, cp=16, pp=16, dp_shard=8), SIZES["405B"], Work(8, 131_072, 16))
    assert not problems(ParallelConfig(tp=8, dp_shard=64), SIZES["70B"], WORK.__class__(64, 8192, 1))


def test_layers_left_over_go_to_the_middle_and_every_layer_is_somewhere():
    counts = [b - a for a, b in ParallelConfig(pp=16).stage_layers(126)]
    assert counts == [7, *[8] * 14, 7]  # 2407.21783, section 3.3.2
    for pp, stages, layers in [(2, 2, 5), (4, 0, 32), (3, 3, 100), (16, 4, 126)]:
        layout = ParallelConfig(pp=pp, schedule="interleaved", stages_per_rank=stages)
        edges = layout.stage_layers(layers)
        assert [a for a, _ in edges[1:]] == [b for _, b in edges[:-1]] and edges[0][0] == 0 and edges[-1][1] == layers
        owners = sorted(stage for rank in range(pp) for stage in layout.stages_of(rank))
        assert owners == list(range(layout.n_stages))


def test_a_v_puts_first_and_last_stage_on_one_process():
    layout = ParallelConfig(pp=4, schedule="zbv")
    assert [layout.stages_of(rank) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]


def test_a_choice_that_one_process_cannot_keep_is_refused_and_not_forgotten():
    found = problems(ParallelConfig(offload="optimizer", async_tp=True, float8="rowwise"), SIZES["3B"], WORK)
    assert [text.partition(" ")[0] for text in found] == [
        "parallel.async_tp", "parallel.offload", "parallel.float8=rowwise",
    ]  # fmt: skip
