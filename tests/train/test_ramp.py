"""Growing batches: what each step is follows from the tokens seen, whatever the rows; the paper's own numbers."""

import pytest

from puna.core.errors import ConfigError
from puna.train.ramp import BatchPhase, resolve_ramp
from puna.train.schedule import ScheduleConfig, rate_factor

PAPER = (
    BatchPhase(until_tokens=252_000_000, batch_tokens=4 << 20, sequence_length=4096),
    BatchPhase(until_tokens=2_870_000_000_000, batch_tokens=8 << 20),
    BatchPhase(batch_tokens=16 << 20),
)


def by_hand(ramp, steps):
    """Micro-batches and tokens seen before each step, step by step."""
    seen, told = 0, []
    for _ in range(steps):
        told.append((ramp.at(seen), seen))
        seen += ramp.at(seen) * ramp.tokens
    return told


def test_the_405b_grows_as_published():
    """4M tokens until 252M, 8M until 2.87T, then 16M (2407.21783, section 3.4.1)."""
    ramp = resolve_ramp(PAPER, rows=128, sequence_length=8192, accumulation=1)
    assert ramp.batches == (4, 8, 16) and ramp.lengths == (4096, 8192, 8192)
    assert ramp.starts[1] == 61 * (4 << 20)  # the 61st step is the one that reaches 252M
    assert ramp.starts[2] // 10**9 == 2_870
    assert ramp.tokens_at(1_100_000) == pytest.approx(15.6e12, rel=0.01)  # the paper's 15.6T


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_same_steps_for_any_rows(rows):
    phases = (BatchPhase(until_tokens=100, batch_tokens=32), BatchPhase(until_tokens=300, batch_tokens=64))
    ramp = resolve_ramp(phases, rows=rows, sequence_length=8, accumulation=96 // (8 * rows))
    told = by_hand(ramp, 12)
    assert [n * ramp.tokens for n, _ in told] == [32] * 4 + [64] * 3 + [96] * 5
    assert [ramp.tokens_at(step) for step in range(12)] == [seen for _, seen in told]
    assert [ramp.steps_until(seen) for _, seen in told] == list(range(12))
    assert ramp.steps_until(33) == 2 and ramp.cuts(8) == ()


def test_without_phases_every_step_is_the_same():
    ramp = resolve_ramp((), rows=3, sequence_length=5, accumulation=2)
    assert [ramp.at(t) for t in (0, 29, 10**9)] == [2, 2, 2] and ramp.tokens_at(7) == 210 and ramp.cuts(5) == ()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (({"batch_tokens": 100, "until_tokens": 1},), "no multiple of data.rows x data.sequence_length = 4 x 8 = 32"),
        (({"batch_tokens": 32}, {"batch_tokens": 64}), "only the last phase"),
        (({"batch_tokens": 32, "until_tokens": 64}, {"batch_tokens": 64, "until_tokens": 60}), "no later than"),
        (({"batch_tokens": 32, "until_tokens": 64, "sequence_length": 3},), "does not divide"),
    ],
)
def test_phases_that_cannot_be_are_refused_with_the_reason(phases, message):
    with pytest.raises(ConfigError, match=message):
        resolve_ramp([BatchPhase(**p) for p in phases], rows=4, sequence_length=8, accumulation=1)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_schedule_by_tokens_follows_tokens(kind):
    """Half of all tokens after the warm-up is half of the way, though it is far more than half of the steps."""
    ramp = resolve_ramp((BatchPhase(until_tokens=800, batch_tokens=8),), rows=1, sequence_length=8, accumulation=10)
    by_tokens = ScheduleConfig(kind=kind, warmup_steps=0, final_ratio=0.1, by="tokens", decay_share=1.0, decay="linear")
    rates = [rate_factor(t, steps=110, config=by_tokens, tokens_at=ramp.tokens_at) for t in range(110)]
    assert ramp.tokens_at(100) == ramp.tokens_at(110) / 2
    assert rates[100] == pytest.approx(0.55) and rates == sorted(rates, reverse=True)
    by_steps = by_tokens.model_copy(update={"by": "steps"})
    assert rate_factor(55, steps=110, config=by_steps, tokens_at=ramp.tokens_at) == pytest.approx(0.55)
