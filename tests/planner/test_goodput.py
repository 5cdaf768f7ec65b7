"""Goodput against the arithmetic of the Llama 3 run, and the limits."""

import math

import pytest

from puna.model.config import SIZES
from puna.planner.goodput import (
    INTERRUPTIONS_PER_GPU_HOUR,
    best_interval_seconds,
    checkpoint_bytes,
    checkpoint_seconds,
    expected_goodput,
    stall_seconds,
)
from puna.planner.shape import from_config


def test_llama3s_rate_is_an_interruption_every_2_8_hours():
    assert pytest.approx(2.78, abs=0.01) == 1 / (16_384 * INTERRUPTIONS_PER_GPU_HOUR)


@pytest.mark.parametrize(("restart", "share"), [(300, 0.950), (180, 0.962), (600, 0.920)])
def test_the_checkpoint_budget_of_sixteen_thousand_gpus(restart, share):
    found = expected_goodput(16_384, stall=2.0, restart_seconds=restart, interval_seconds=200)
    assert found.share == pytest.approx(share, abs=0.001)


def test_a_blocking_save_of_thirty_seconds_cannot_reach_95_per_cent():
    assert expected_goodput(16_384, stall=30.0, restart_seconds=60).share < 0.92


def test_the_best_interval_is_best():
    best = expected_goodput(16_384, stall=2.0)
    for factor in (0.5, 0.8, 1.25, 2.0):
        other = expected_goodput(16_384, stall=2.0, interval_seconds=best.interval_seconds * factor)
        assert other.share < best.share
    assert best.interval_seconds == pytest.approx(best_interval_seconds(2.0, best.hours_to_interruption))


def test_without_failures_only_saving_costs():
    found = expected_goodput(8, stall=1.0, interval_seconds=100, interruptions_per_gpu_hour=0)
    assert found.share == pytest.approx(0.99)
    assert found.hours_to_interruption == math.inf


def test_hopeless_rates_give_zero_and_not_less():
    assert expected_goodput(10**7, stall=30.0).share == 0.0


def test_a_checkpoint_holds_twelve_bytes_a_parameter():
    shape = from_config(SIZES["70B"])
    assert checkpoint_bytes(shape) == 12 * SIZES["70B"].parameters()
    assert checkpoint_seconds(shape, writers=64, bytes_per_second=2e9) == checkpoint_bytes(shape) / 128e9
    assert checkpoint_seconds(shape, writers=64, bytes_per_second=2e9, at_most=1e9) == checkpoint_bytes(shape) / 1e9
    assert stall_seconds(shape, 512) < 0.1
