"""Schedules against their written-out twins and golden points."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.train.config import TrainConfig
from puna.train.schedule import ScheduleConfig, rate_factor
from tests.reference.training_naive import rate_factors


@pytest.mark.parametrize("kind", ["cosine", "constant", "wsd"])
@pytest.mark.parametrize("decay", ["linear", "sqrt"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (57, 0), (20, 16)])
def test_every_step_equals_the_twin(kind, decay, steps, warmup):
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, final_ratio=0.05, decay_share=0.2, decay=decay)
    expected = rate_factors(steps, kind=kind, warmup=warmup, final=0.05, decay_steps=round(0.2 * steps), decay=decay)
    assert [rate_factor(t, steps=steps, config=config) for t in range(steps)] == pytest.approx(expected, abs=1e-12)


def test_golden_points_of_the_405b_schedule():
    """Warm-up of 8,000 steps, cosine over 1,200,000 steps to 1/100 of the peak (2407.21783, section 3.4.1)."""
    config = ScheduleConfig(kind="cosine", warmup_steps=8_000, final_ratio=0.01)
    rates = {
        t: 8e-5 * rate_factor(t, steps=1_208_000, config=config) for t in (0, 3_999, 7_999, 8_000, 608_000, 1_207_999)
    }
    assert rates == pytest.approx(
        {0: 1e-8, 3_999: 4e-5, 7_999: 8e-5, 8_000: 8e-5, 608_000: 4.04e-5, 1_207_999: 8e-7}, rel=1e-4
    )


@given(
    kind=st.sampled_from(["cosine", "constant", "wsd"]),
    warmup=st.integers(0, 50),
    final=st.floats(0, 1),
    share=st.floats(0, 0.5),
    decay=st.sampled_from(["linear", "sqrt"]),
)
def test_the_rate_rises_to_the_peak_and_never_rises_again(kind, warmup, final, share, decay):
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, final_ratio=final, decay_share=share, decay=decay)
    factors = [rate_factor(t, steps=120, config=config) for t in range(120)]
    assert all(0 <= f <= 1 for f in factors)
    assert all(a < b for a, b in pairwise(factors[:warmup]))
    assert all(a >= b for a, b in pairwise(factors[warmup:]))
    if kind != "constant":
        assert factors[-1] >= final - 1e-12


def test_a_warm_up_that_does_not_fit_into_the_run_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="warmup_steps 100 do not fit into 50 steps"):
        TrainConfig(steps=50)
    with pytest.raises(ValueError, match="warmup_steps 90 and 20 decay steps do not fit into 100 steps"):
        TrainConfig(steps=100, schedule=ScheduleConfig(kind="wsd", warmup_steps=90))
