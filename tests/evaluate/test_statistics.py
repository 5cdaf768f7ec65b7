import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.evaluate import statistics


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_intervals(successes, n, low, high):
    estimate = statistics.wilson(successes, n)
    assert estimate.value == successes / n
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 3000), st.data())
def test_wilson_ends_solve_the_score_equation(n, data):
    k = data.draw(st.integers(0, n))
    estimate = statistics.wilson(k, n)
    z = statistics.z_value()
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for end in (estimate.low, estimate.high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024), (10, 2, 158 / 4096), (0, 2000, 0.0)],
)
def test_mcnemar_is_the_exact_binomial_tail(only_a, only_b, p):
    assert statistics.mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=1e-12)
    assert statistics.mcnemar_exact(only_b, only_a) == pytest.approx(p, abs=1e-12)


def test_mcnemar_agrees_with_a_naive_sum():
    for n in range(1, 30):
        for k in range(n // 2 + 1):
            naive = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
            assert statistics.mcnemar_exact(k, n - k) == pytest.approx(naive)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 1.0, size=400).tolist()
    one, two = (statistics.bootstrap_mean(values, seed=3) for _ in range(2))
    assert one == two
    half = 1.96 * statistics.standard_error(values)
    assert one.value == pytest.approx(np.mean(values))
    assert one.low == pytest.approx(one.value - half, abs=0.15 * half)
    assert one.high == pytest.approx(one.value + half, abs=0.15 * half)


def test_the_ratio_of_sums_is_not_the_mean_of_ratios():
    estimate = statistics.bootstrap_ratio([1.0, 30.0], [1.0, 10.0])
    assert estimate.value == pytest.approx(31 / 11)
    assert estimate.low >= 1.0 and estimate.high <= 3.0


def test_clustered_error_equals_the_naive_double_sum():
    rng = np.random.default_rng(1)
    values, clusters = rng.random(60).tolist(), rng.integers(0, 9, 60).tolist()
    mean = float(np.mean(values))
    naive = sum(
        (values[i] - mean) * (values[j] - mean) for i in range(60) for j in range(60) if clusters[i] == clusters[j]
    )
    assert statistics.clustered_standard_error(values, clusters) == pytest.approx(math.sqrt(naive) / 60)


def test_repeating_every_item_four_times_does_not_narrow_a_clustered_interval():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    alone = statistics.clustered_standard_error(values, range(5))
    repeated = statistics.clustered_standard_error(values * 4, [*range(5)] * 4)
    assert repeated == pytest.approx(alone)


def test_macro_counts_groups_and_micro_counts_items():
    groups = [[1.0] * 8, [0.0] * 2]
    assert statistics.macro_mean(groups).value == 0.5
    assert statistics.mean_estimate([v for g in groups for v in g]).value == 0.8
    assert statistics.macro_mean(groups).high > 0.55


def test_paired_difference_of_binary_scores():
    a = [1.0] * 40 + [0.0] * 60
    b = [1.0] * 38 + [0.0] * 2 + [1.0] * 12 + [0.0] * 48
    paired = statistics.paired_difference(a, b)
    assert (paired.n, paired.only_a, paired.only_b) == (100, 2, 12)
    assert paired.difference == pytest.approx(0.10)
    assert paired.p_value == pytest.approx(2 * sum(math.comb(14, k) for k in range(3)) / 2**14)
    # Agresti and Min: (12.5 - 2.5) / 102 +- 1.96 sqrt(15 - 100 / 102) / 102.
    assert paired.low == pytest.approx(0.09804 - 0.07193, abs=1e-4)
    assert paired.high == pytest.approx(0.09804 + 0.07193, abs=1e-4)


def test_equal_models_do_not_give_a_certain_difference():
    paired = statistics.paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert paired.difference == 0 and paired.p_value == 1
    assert paired.low < 0 < paired.high


def test_paired_difference_of_other_scores_uses_the_differences():
    a, b = [1.0, 2.5, 3.0, 4.0], [1.5, 2.6, 3.7, 4.2]
    paired = statistics.paired_difference(a, b)
    differences = [0.5, 0.1, 0.7, 0.2]
    assert paired.difference == pytest.approx(0.375)
    assert paired.high - paired.difference == pytest.approx(1.959964 * np.std(differences, ddof=1) / 2, rel=1e-5)
