import json

import numpy as np
import pytest

from puna.core.errors import ConfigError
from puna.data.loader import PackedLoader
from puna.data.mix import MixConfig, resolve_mix
from tests.data.shard_sets import make_set

SIZES = {"web-en": 10_000, "web-de": 500, "web-sw": 20, "github": 3_000, "books": 100}
GROUPS = {"non_english": ["web-de", "web-sw"], "code": ["git*"]}


def _mix(rows=100, **changes):
    config = MixConfig.model_validate({"groups": GROUPS, "max_epochs": 1000} | changes)
    return resolve_mix(config, SIZES, rows=rows, row_tokens=10)


def test_by_itself_sources_count_by_size():
    weights = _mix().weights
    assert weights == pytest.approx({name: size / sum(SIZES.values()) for name, size in SIZES.items()})


def test_temperature_gives_small_sources_more():
    assert _mix(temperature=3).weights["web-sw"] > 5 * _mix().weights["web-sw"]


def test_shares_and_floors_hold_and_the_rest_keeps_its_proportions():
    weights = _mix(shares={"code": 0.5}, floors={"non_english": 0.05, "code": 0.1}).weights
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["github"] == pytest.approx(0.5 * 0.95 / (1 - 520 / 10620 * 0.5), rel=0.06)
    assert weights["web-de"] + weights["web-sw"] == pytest.approx(0.05)
    assert weights["web-de"] / weights["web-sw"] == pytest.approx(25)
    assert weights["web-en"] / weights["books"] == pytest.approx(100)


def test_no_source_is_read_more_often_than_allowed():
    mixed = _mix(rows=1000, shares={"books": 0.5}, max_epochs=4)
    rows = {row.source: row for row in mixed.rows}
    assert rows["books"].epochs == pytest.approx(4)
    assert mixed.capped == ("books",)
    assert sum(row.read for row in mixed.rows) == pytest.approx(10_000)
    with pytest.raises(ConfigError, match="at most 4 epochs"):
        _mix(rows=100_000, max_epochs=4)


def test_annealing_changes_the_shares_and_its_sources_are_kept_for_it():
    phases = [{"start": 0.9, "shares": {"books": 0.4}}]
    mixed = _mix(rows=1000, shares={"books": 0.5}, max_epochs=4, phases=phases)
    (row, weights), *_ = mixed.later
    assert row == 900
    assert weights["books"] == pytest.approx(0.4)
    assert {r.source: r.epochs for r in mixed.rows}["books"] == pytest.approx(4)
    assert mixed.weights["books"] == pytest.approx(0)


def test_wrong_names_are_named_and_wrong_numbers_refused():
    with pytest.raises(ConfigError, match="Did you mean 'code'"):
        _mix(shares={"cod": 0.1})
    with pytest.raises(ConfigError, match="no source fits nothing"):
        _mix(groups={"x": ["nothing*"]})
    with pytest.raises(ValueError, match="at most 1"):
        _mix(shares={"code": 0.7, "books": 0.7})
    with pytest.raises(ValueError, match="must rise"):
        _mix(phases=[{"start": 0.5, "shares": {}}, {"start": 0.4, "shares": {}}])


def test_the_loader_changes_its_weights_at_the_row_and_resumes_across_it(tmp_path):
    shards = make_set(tmp_path, {"code": [40, 30, 60, 22], "prose": [33, 50, 20, 41]}, documents_per_shard=2)

    def loader(rank=0, world=1):
        settings = {"weights": {"code": 1.0}, "later": [(10, {"code": 0.25, "prose": 0.75})]}
        return PackedLoader([shards], **settings, rows=4, sequence_length=16, seed=0, rank=rank, world=world)

    one = loader()
    seen = [one.next_batch().sources for _ in range(2)]
    assert seen == [{"code": 64}, {"code": 64}]
    state = json.loads(json.dumps(one.state()))
    rest = [one.next_batch() for _ in range(12)]
    assert rest[0].sources["code"] >= 32  # rows 8 and 9
    later = sum(batch.sources.get("prose", 0) for batch in rest[1:])
    assert later / (11 * 64) == pytest.approx(0.75, abs=0.03)
    ranks = [loader(rank, 2) for rank in range(2)]
    for other in ranks:
        other.restore(state)
    for batch in rest:
        assert np.array_equal(np.concatenate([other.next_batch().tokens for other in ranks]), batch.tokens)
    with pytest.raises(ConfigError, match="rows must rise"):
        PackedLoader([shards], later=[(0, {"code": 1})], rows=1, sequence_length=8, seed=0)
