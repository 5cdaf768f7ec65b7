"""The search: what it proposes can be built and fits; what cannot is refused with what is nearest."""

import pytest

from puna.core.errors import UsageError
from puna.model.config import SIZES
from puna.planner.estimate import estimate
from puna.planner.hardware import read_cluster
from puna.planner.layout import Degrees
from puna.planner.search import HEADROOM, nearest_fitting, reasons, search, trainer_problems
from puna.planner.shape import from_config
from tests.planner.rows import work


def find(size, cluster, **changes):
    given = {"seq_len": 8192, "batch_tokens": 4 << 20} | changes
    return search(from_config(SIZES[size]), read_cluster(cluster), **given)


def test_every_proposal_can_be_built_fits_and_gives_its_reasons():
    found = find("70B", "512xH100")
    assert len(found.best) == 5
    assert found.tried >= found.fitting > 0
    for layout in found.best:
        assert trainer_problems(layout.work) == []
        assert layout.memory.total_gib <= HEADROOM * 79.1
        assert layout.work.tokens == 4 << 20
        assert reasons(layout)
        shares = [int(reason.partition("%")[0]) for reason in reasons(layout)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 105


def test_the_first_is_the_fastest_or_nearly():
    found = find("70B", "512xH100", top=40)
    assert found.best[0].seconds <= 1.05 * min(layout.seconds for layout in found.best)


def test_a_small_model_on_one_node_needs_no_more_than_sharding():
    assert find("8B", "8xH100", batch_tokens=1 << 20).best[0].work.degrees == Degrees(dp_shard=8)


def test_fixed_degrees_are_kept():
    for layout in find("70B", "512xH100", fixed={"tp": 8, "pp": 1}).best:
        assert (layout.work.degrees.tp, layout.work.degrees.pp) == (8, 1)


def test_long_sequences_get_context_parallelism():
    assert find("8B", "64xH100", seq_len=131_072).best[0].work.degrees.cp > 1


def test_what_cannot_fit_says_the_smallest_that_was_found():
    with pytest.raises(UsageError, match=r"the smallest layout, .* needs \d+ GiB"):
        find("405B", "8xH100")


def test_a_batch_that_does_not_split_says_so():
    with pytest.raises(UsageError, match="splits 1 sequences"):
        find("8B", "64xH100", batch_tokens=8192, fixed={"tp": 1, "cp": 1, "pp": 1})


def test_the_nearest_layout_that_fits_changes_little():
    asked = work("70B", "64xH100", Degrees(dp_shard=64), global_batch=512, micro_batch=8)
    assert not estimate(asked).fits
    found = nearest_fitting(asked)
    assert found is not None
    assert found.memory.total_gib <= HEADROOM * 79.1
    assert found.work.degrees == asked.degrees
    assert nearest_fitting(work("405B", "8xH100")) is None


def test_the_trainers_limits_are_told():
    given = work("70B", "512xH100", Degrees(dp_shard=2, tp=16, pp=16), global_batch=16)
    text = "; ".join(trainer_problems(given))
    assert "tp 16 does not divide 8 kv heads" in text
    assert "8 micro-batches do not fill 16 pipeline ranks" in text
    assert "untied" in "; ".join(trainer_problems(work("1B", degrees=Degrees(dp_shard=4, pp=2))))


def test_an_estimate_knows_what_travels_over_which_link():
    found = estimate(work("70B", "64xH100", Degrees(dp_shard=8, tp=8), recompute="full"))
    links = {traffic.kind: traffic.link for traffic in found.traffic}
    assert links == {"tensor": "NVLink", "data": "network"}
    assert all(traffic.exposed_seconds <= found.seconds for traffic in found.traffic)
    assert found.tflops("full") > found.tflops("causal")
    assert found.mfu("full") == pytest.approx(found.tflops("full") / 989)
