import numpy as np
import pytest

from puna.post.reward_check import CheckConfig, ScoredPairs, calibration, examine
from puna.stages.page import reward_page


def pairs(n=400, *, seed=0, taste=2.0, length_bias=0.0, scale=1.0):
    """A simulated reward model that knows quality by `taste` and likes length by `length_bias`."""
    rng = np.random.default_rng(seed)
    better_n, worse_n = rng.integers(5, 50, n), rng.integers(5, 50, n)
    difference = scale * (taste + rng.logistic(size=n) + length_bias * (better_n - worse_n))
    worse = rng.normal(size=n)
    strengths = [("better", "slightly_better")[i % 2] for i in range(n)]
    return ScoredPairs(worse + difference, worse, better_n, worse_n, strengths, ["s"] * n, np.ones(n), worse)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_a_model_that_knows_better_answers_passes():
    report = examine(pairs(), CheckConfig())
    assert report.passed and report.by_strength.keys() == {"better", "slightly_better"}
    assert report.accuracy.low > 0.8 and abs(report.length_correlation) < 0.15


def test_a_model_that_learned_length_alone_does_not_pass():
    report = examine(pairs(taste=0.0, length_bias=1.0), CheckConfig())
    assert {"accuracy", "shorter answers"} <= failed(report)
    assert report.length_correlation > 0.9 and report.longer.value > 0.9 > 0.1 > report.shorter.value


def test_too_few_pairs_ties_and_overconfidence_are_told():
    few = examine(pairs(20), CheckConfig())
    assert "pairs" in failed(few)
    tied = pairs()
    tied = ScoredPairs(
        tied.worse,
        tied.worse,
        tied.better_tokens,
        tied.worse_tokens,
        tied.strengths,
        tied.sources,
        tied.within,
        tied.between,
    )
    assert examine(tied, CheckConfig()).accuracy.value == 0.0
    assert "calibration" in failed(examine(pairs(taste=0.6, scale=50.0), CheckConfig()))


def test_the_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy():
    difference = np.array([0.0001] * 50 + [-0.0001] * 50 + [20.0] * 75 + [-20.0] * 25)
    bins, error = calibration(difference)
    assert [n for _, _, n in bins] == [100, 100]
    assert error == pytest.approx(0.5 * 0.0 + 0.5 * 0.25, abs=1e-3)


def test_the_page_shows_every_figure_and_is_well_formed(tmp_path):
    from html.parser import HTMLParser

    report = examine(pairs(), CheckConfig())
    reward_page.write(tmp_path / "check.html", report, title="A <model>")
    text = (tmp_path / "check.html").read_text()
    HTMLParser().feed(text)
    assert "A &lt;model&gt;" in text and text.count("<svg") == 2 and f"{report.calibration_error:.3f}" in text
