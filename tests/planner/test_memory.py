"""Memory: the arithmetic of the papers, and peaks that others published."""

from dataclasses import replace

import pytest

from puna.planner.layout import STACKS, Degrees
from puna.planner.memory import CONTEXT_BYTES, GIB, activation_bytes, block_bytes, rank_memory
from tests.planner.rows import work


def test_fsdp_divides_sixteen_bytes_a_parameter():
    found = rank_memory(given := work())
    assert found.weights + found.gradients + found.optimizer == 16 * given.shape.parameters() / 8


def test_zero_one_divides_the_optimizer_alone():
    found, n = rank_memory(given := work(zero=1)), None
    n = given.shape.parameters()
    assert (found.weights, found.gradients, found.optimizer) == (2 * n, 4 * n, 12 * n / 8)


def test_recomputation_keeps_less_and_tensor_parallelism_divides():
    eager = STACKS["torch-eager"]
    kept = [activation_bytes(work(recompute=mode, stack=eager)) for mode in ("none", "selective", "alternate", "full")]
    assert kept == sorted(kept, reverse=True)
    whole, halves = (activation_bytes(work(degrees=d)) for d in (Degrees(dp_shard=8), Degrees(dp_shard=4, tp=2)))
    assert halves == pytest.approx(whole / 2)


def test_what_a_compiler_computes_again_is_not_kept_and_gathered_inputs_are_unless_gathered_again():
    puna, eager = STACKS["puna"], STACKS["torch-eager"]
    assert block_bytes(work(stack=puna)) < 0.7 * block_bytes(work(stack=eager))
    given = work(degrees=Degrees(tp=8), stack=STACKS["torch-compile"])
    assert block_bytes(given) - block_bytes(replace(given, stack=puna)) == 2 * 2 * given.shape.dim


def test_a_pipeline_never_holds_more_micro_batches_than_there_are():
    """405B on 16,384 GPUs with 16 micro-batches and a layer a piece: interleaving adds none (2407.21783, table 4)."""
    layout = Degrees(dp_shard=128, tp=8, pp=16)
    given = [work("405B", "16384xH100", layout, global_batch=2048, stages_per_rank=v) for v in (1, 8)]
    assert activation_bytes(given[0]) == activation_bytes(given[1])
    assert rank_memory(given[1], chunked_logits=True).total_gib < 0.92 * 79.1


def test_the_first_pipeline_rank_holds_as_many_micro_batches_as_there_are_ranks():
    layout = Degrees(dp_shard=8, pp=8)
    plain = activation_bytes(work("70B", "64xH100", layout, global_batch=128))
    woven = activation_bytes(work("70B", "64xH100", layout, global_batch=128, stages_per_rank=5))
    alone = activation_bytes(work("70B", "64xH100", Degrees(dp_shard=64), global_batch=128))
    assert plain == pytest.approx(alone)
    assert woven == pytest.approx(plain * (1 + 7 / 40))


@pytest.mark.parametrize(
    ("size", "cluster", "degrees", "changes", "published"),
    [
        # torchtitan's tables (its benchmarks folder): 8B, two sequences a GPU, selective recomputation
        (
            "8B",
            "8xH100-96GB",
            Degrees(dp_shard=8),
            {"micro_batch": 2, "recompute": "alternate", "global_batch": 16},
            77.0,
        ),
        (
            "8B",
            "128xH100-96GB",
            Degrees(dp_shard=128),
            {"micro_batch": 2, "recompute": "alternate", "global_batch": 256},
            62.0,
        ),
    ],
)
def test_published_peaks_are_met_within_a_tenth(size, cluster, degrees, changes, published):
    given = work(size, cluster, degrees, stack=STACKS["torch-compile"], **changes)
    found = rank_memory(given).total - CONTEXT_BYTES
    assert found / GIB == pytest.approx(published, rel=0.1)
