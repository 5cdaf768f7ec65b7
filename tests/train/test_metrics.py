"""The step line has a fixed form; rates, goodput and ETA are what they say."""

import pytest
import torch

from puna.train.clock import Clock
from puna.train.loss import LossOutput
from puna.train.matmul_rate import matmul_rate
from puna.train.metrics import Window, step_line

RECORD = {
    "step": 420,
    "steps": 2000,
    "loss": 3.14159,
    "lr": 3e-4,
    "grad_norm": 0.9149,
    "tokens_per_second": 41_234.5,
    "mfu": 0.3811,
    "memory_bytes": 21.3 * 2**30,
    "memory_total_bytes": 80 * 2**30,
    "goodput": 0.9921,
    "eta_seconds": 725.0,
}


def test_the_step_line_is_that_of_the_style_guide():
    assert step_line(RECORD) == (
        "step 00420/02000 | loss 3.1416 | lr 3.0e-04 | gnorm 0.91 | 41.2k tok/s | mfu 38.1% | mem 21.3/80 GiB | "
        "goodput 99.2% | eta 12m"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 11.7633, "grad_norm": 12.345, "tokens_per_second": 987.0, "mfu": None},
        {"loss": 0.01234, "grad_norm": 457.2, "tokens_per_second": 1_234_567.0, "mfu": 0.011, "goodput": 1.0},
        {"loss": 123.456, "grad_norm": 9.996, "tokens_per_second": 99_960.0, "mfu": 1.0, "goodput": 0.04},
        {"grad_norm": 99.96, "tokens_per_second": 999.8, "lr": 1.2e-10, "mfu": 0.9996, "memory_bytes": 2**29},
    ],
)
def test_other_values_keep_every_column_in_its_place(change):
    line, usual = step_line({**RECORD, **change}), step_line(RECORD)
    assert [i for i, c in enumerate(line) if c == "|"] == [i for i, c in enumerate(usual) if c == "|"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.7, "1m"),
        (3599, "1h00m"),
        (11_100, "3h05m"),
        (187_200, "2d04h"),
        (float("inf"), "-"),
    ],
)
def test_eta_is_short_at_every_scale(seconds, text):
    assert step_line({**RECORD, "eta_seconds": seconds}).endswith(f"eta {text}")


def test_a_window_weighs_steps_by_their_terms_and_goes_on_from_its_sums():
    window = Window()
    output = LossOutput(sum=torch.tensor(0.0), count=1, tokens=50, flops=1e9, metrics={"right": torch.tensor(3.0)})
    window.add([output], loss_sum=10.0, count=5, seconds=0.5)
    resumed = Window(dict(window.sums))
    for each in (window, resumed):
        each.add([output], loss_sum=2.0, count=1, seconds=0.5)
    assert window.means() == resumed.means() == {"loss": 2.0, "right": 1.0}
    assert window.rates() == {"tokens_per_second": 100.0, "flops_per_second": 2e9}
    assert resumed.rates() == {"tokens_per_second": 100.0, "flops_per_second": 2e9}


def test_goodput_counts_lost_steps_of_killed_sessions_against_the_run(tmp_path):
    time = [0.0]
    first = Clock(tmp_path, step=0, now=lambda: time[0])
    for step in range(1, 11):  # ten steps of 1 s, saved after step 6, killed after step 10
        time[0] += 1.0
        first.add(1.0)
        if step == 6:
            first.write(saved_step=6)
    first.write()
    assert first.goodput == 1.0
    time[0] = 1000.0  # the run did not run meanwhile: that does not count
    second = Clock(tmp_path, step=6, now=lambda: time[0])
    time[0] += 2.0
    second.add(2.0)
    assert second.seconds == 12.0
    assert second.goodput == pytest.approx(8 / 12)


def test_a_broken_clock_does_not_stop_a_run(tmp_path):
    (tmp_path / "clock.json").write_text("not json")
    assert Clock(tmp_path, step=5).goodput == 0.0


def test_the_matmul_rate_is_measured_once_in_a_process():
    first = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < first < 1e14
    assert matmul_rate(torch.device("cpu"), torch.float32) == first
