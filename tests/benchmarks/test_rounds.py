"""How the rounds of several seeds are counted together."""

import importlib.util
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from puna.evaluate.statistics import paired_difference

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rounds.py"


@pytest.fixture(scope="module")
def rounds():
    spec = importlib.util.spec_from_file_location("benchmark_rounds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_other_items_of_each_seed_are_counted_as_if_they_were_one_list(rounds):
    rng = random.Random(0)
    lists = [([rng.randint(0, 1) for _ in range(n)], [rng.randint(0, 1) for _ in range(n)]) for n in (40, 70)]
    parts = [asdict(paired_difference(a, b)) for a, b in lists]
    together = [[x for pair in lists for x in pair[side]] for side in (0, 1)]
    assert rounds.pooled(parts) == pytest.approx(paired_difference(*together))


def test_the_same_question_counts_once_whatever_the_number_of_seeds(rounds, tmp_path):
    def scores(name, right):
        (tmp_path / name).mkdir()
        rows = [{"task": "t", "id": str(n), "scores": {"exact_match": x}} for n, x in enumerate(right)]
        (tmp_path / name / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    before, after = scores("before", [0, 0, 1, 1]), scores("after", [1, 0, 1, 0])
    better = scores("better", [1, 1, 1, 0])
    once, twice = rounds.over_seeds([(before, after)]), rounds.over_seeds([(before, after)] * 2)
    assert once.difference == twice.difference == 0.0 and once.n == twice.n == 4
    found = rounds.over_seeds([(before, after), (before, better)])
    assert found.difference == pytest.approx((1 + 0.5 + 0 - 1) / 4) and found.n == 4


def test_a_refused_round_ends_with_the_model_before_it(rounds, tmp_path):
    found = {"rounds": [{"round": n, "decision": {"accepted": n == 1}} for n in (1, 2)]}
    start, first = tmp_path / "start/scores", tmp_path / "round-1/scores"
    assert rounds._ends("last", found, tmp_path) == (start, first)
    assert rounds._ends("step", found, tmp_path) == (first, first)
