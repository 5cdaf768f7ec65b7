"""Whether a reward model is good enough to be used: figures over pairs that it did not learn from, and a verdict.

A reward model that is used will be leaned on: best-of-K and PPO look for answers that it likes, not for good ones. So
accuracy alone does not decide. The checks, each with the figure, what is asked and a reason:

- `pairs`: enough of them to say anything.
- `accuracy`: the lower end of its 95 % interval is above the asked one (ties count as wrong).
- `length`: it beats the rule "the longer answer is better" (or the shorter one), and is right more often than not where
  the better answer is the shorter one. A model that learned length alone fails here.
- `calibration`: sigma(score difference) is about how often it is right. Best-of-K does not need this, soft labels do.

Scores have no unit, so their spread within and between prompts is told too: a large spread between prompts makes
"top quartile over all prompts" a choice of prompts, not of answers.

Source: Guo et al. 2017, arXiv:1706.04599 (reliability diagram, expected calibration error); Singhal et al. 2023,
arXiv:2310.03716 (length in reward models); Wilson's interval: `evaluate/statistics.py`.
Shapes: M pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.core.config import Config
from puna.evaluate.statistics import Estimate, wilson
from puna.post.rankings import EncodedRankings
from puna.post.reward import Scorer

N_BINS = 10


class CheckConfig(Config):
    """What is asked of a reward model."""

    min_pairs: int = Field(default=100, ge=1)
    """Fewest pairs for a verdict."""
    min_accuracy: float = Field(default=0.55, ge=0.0, le=1.0)
    """The lower end of the accuracy's 95 % interval must reach this."""
    max_calibration_error: float = Field(default=0.15, ge=0.0, le=1.0)
    """Largest mean distance of confidence and accuracy."""
    min_accuracy_shorter: float = Field(default=0.5, ge=0.0, le=1.0)
    """Accuracy on pairs whose better answer is the shorter one."""


@dataclass(frozen=True)
class ScoredPairs:
    """What a model says of pairs whose order is known. All `[M]`.

    Attributes:
        better: Scores of the better answers.
        worse: Scores of the worse ones.
        better_tokens: Lengths of the better answers.
        worse_tokens: Lengths of the worse ones.
        strengths: How much better, by name, `unknown` where nobody said it.
        sources: Where each pair came from.
        within: Standard deviation of the scores of each prompt's answers, one a prompt.
        between: Mean score of each prompt's answers, one a prompt.
    """

    better: NDArray[np.float64]
    worse: NDArray[np.float64]
    better_tokens: NDArray[np.int64]
    worse_tokens: NDArray[np.int64]
    strengths: Sequence[str]
    sources: Sequence[str]
    within: NDArray[np.float64]
    between: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the better answer has the higher score."""
        return self.better > self.worse


@dataclass(frozen=True, slots=True)
class Check:
    """One of the checks.

    Attributes:
        name: Of the check.
        passed: Whether it is passed.
        reason: The figure and what is asked, in words.
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """Figures and verdict.

    Attributes:
        accuracy: Over all pairs.
        by_strength: Accuracy by strength.
        by_source: Accuracy by source.
        shorter: Accuracy where the better answer is the shorter one, or None without such pairs.
        longer: Where it is the longer one.
        longer_rule: Accuracy of "the longer answer is better", ties in length left out.
        length_correlation: Of score difference and length difference.
        calibration_error: Expected calibration error.
        bins: For each bin of confidence: mean confidence, share right, pairs.
        spread_within: Mean standard deviation of scores among the answers to one prompt.
        spread_between: Standard deviation of the prompts' mean scores.
        checks: The checks.
    """

    accuracy: Estimate
    by_strength: dict[str, Estimate]
    by_source: dict[str, Estimate]
    shorter: Estimate | None
    longer: Estimate | None
    longer_rule: Estimate | None
    length_correlation: float
    calibration_error: float
    bins: list[tuple[float, float, int]]
    spread_within: float
    spread_between: float
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether every check is passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """All figures in JSON types."""

        def estimate(value: Estimate | None) -> dict[str, float] | None:
            return None if value is None else {"value": value.value, "low": value.low, "high": value.high, "n": value.n}

        return {
            "passed": self.passed,
            "checks": [{"name": c.name, "passed": c.passed, "reason": c.reason} for c in self.checks],
            "accuracy": estimate(self.accuracy),
            "by_strength": {name: estimate(value) for name, value in self.by_strength.items()},
            "by_source": {name: estimate(value) for name, value in self.by_source.items()},
            "better_is_shorter": estimate(self.shorter),
            "better_is_longer": estimate(self.longer),
            "longer_rule": estimate(self.longer_rule),
            "length_correlation": self.length_correlation,
            "calibration_error": self.calibration_error,
            "calibration": [{"confidence": c, "right": r, "n": n} for c, r, n in self.bins],
            "spread_within": self.spread_within,
            "spread_between": self.spread_between,
        }


def score_pairs(scorer: Scorer, encoded: EncodedRankings) -> ScoredPairs:
    """Scores every answer of a data set and lines up its pairs.

    Args:
        scorer: The reward model.
        encoded: Rankings with a shared prefix.
    """
    scores = scorer.trees(encoded.trees, label="scoring rankings")
    better, worse, better_n, worse_n = list[float](), list[float](), list[int](), list[int]()
    strengths, sources = list[str](), list[str]()
    for ranking, tree, own in zip(encoded.rankings, encoded.trees, scores, strict=True):
        for pair in ranking.pairs:
            better.append(own[pair.better])
            worse.append(own[pair.worse])
            better_n.append(len(tree.branches[pair.better]))
            worse_n.append(len(tree.branches[pair.worse]))
            strengths.append(pair.strength or "unknown")
            sources.append(ranking.source)
    within, between = np.array([own.std() for own in scores]), np.array([own.mean() for own in scores])
    columns = (np.array(better), np.array(worse), np.array(better_n), np.array(worse_n))
    return ScoredPairs(*columns, strengths, sources, within, between)


def examine(pairs: ScoredPairs, config: CheckConfig) -> CheckReport:
    """Figures and verdict over scored pairs, at least one.

    Args:
        pairs: What the model said.
        config: What is asked.
    """
    right, difference = pairs.right, pairs.better - pairs.worse
    length = pairs.better_tokens - pairs.worse_tokens
    accuracy = _share(right)
    assert accuracy is not None, "there is no pair to examine"
    bins, error = calibration(difference)
    shorter, longer = _share(right[length < 0]), _share(right[length > 0])
    rule = _share((length > 0)[length != 0])
    report = CheckReport(
        accuracy=accuracy,
        by_strength=_by(right, pairs.strengths),
        by_source=_by(right, pairs.sources),
        shorter=shorter,
        longer=longer,
        longer_rule=rule,
        length_correlation=_correlation(difference, length.astype(np.float64)),
        calibration_error=error,
        bins=bins,
        spread_within=float(pairs.within.mean()),
        spread_between=float(pairs.between.std()),
        checks=[],
    )
    report.checks.extend(_checks(report, config))
    return report


def _checks(report: CheckReport, config: CheckConfig) -> list[Check]:
    accuracy, n = report.accuracy, report.accuracy.n
    checks = [
        Check("pairs", n >= config.min_pairs, f"{n} pairs, asked are {config.min_pairs}"),
        Check(
            "accuracy",
            accuracy.low >= config.min_accuracy,
            f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]; the lower end must reach "
            f"{config.min_accuracy:.1%}",
        ),
    ]
    if report.longer_rule is not None:
        rule = max(report.longer_rule.value, 1.0 - report.longer_rule.value)
        which = "longer" if report.longer_rule.value >= 0.5 else "shorter"
        told = f'"the {which} answer is better" is right in {rule:.1%}, the model in {accuracy.value:.1%}'
        checks.append(Check("length rule", accuracy.value > rule, told))
    if report.shorter is not None:
        told = (
            f"{report.shorter.value:.1%} right where the better answer is the shorter one, asked is "
            f"{config.min_accuracy_shorter:.1%}"
        )
        checks.append(Check("shorter answers", report.shorter.value >= config.min_accuracy_shorter, told))
    told = f"expected calibration error {report.calibration_error:.3f}, allowed is {config.max_calibration_error:g}"
    checks.append(Check("calibration", report.calibration_error <= config.max_calibration_error, told))
    return checks


def calibration(difference: NDArray[np.float64]) -> tuple[list[tuple[float, float, int]], float]:
    """Confidence against accuracy, in bins of equal width over 0.5 to 1.

    Args:
        difference: Score of the better answer minus that of the worse one.

    Returns:
        `(mean confidence, share right, pairs)` of each bin that has any, and the expected calibration error.

    Source: Guo et al. 2017, equation 3.
    """
    confidence = 1.0 / (1.0 + np.exp(-np.abs(difference).clip(max=500.0)))
    place = np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(np.int64), N_BINS - 1)
    bins, error = [], 0.0
    for number in range(N_BINS):
        inside = place == number
        if inside.any():
            mean, share = float(confidence[inside].mean()), float((difference[inside] > 0).mean())
            bins.append((mean, share, int(inside.sum())))
            error += abs(mean - share) * inside.mean()
    return bins, float(error)


def _share(values: NDArray[np.bool_]) -> Estimate | None:
    return wilson(int(values.sum()), len(values)) if len(values) else None


def _by(right: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Estimate]:
    chosen = np.array(names)
    return {n: wilson(int(right[chosen == n].sum()), int((chosen == n).sum())) for n in sorted(set(names))}


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else 0.0
