"""The gate at the end of a round: the new model must not be worse than the one before.

Both answered the same items, so the difference is taken within items, with its interval. A task is passed when the
lower end of the interval is above minus the margin: then "worse by more than the margin" is ruled out, which "no
significant difference" would not do, since a small evaluation finds nothing significant.

Source: non-inferiority as in Piaggio et al. 2012 (CONSORT extension), figure 1; intervals: `evaluate/statistics.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from puna.core.config import Config
from puna.evaluate.report import Record, compare
from puna.evaluate.statistics import Paired

_LOWER_IS_BETTER = frozenset({"bits_per_byte"})


class GateConfig(Config):
    """When the new model takes the old one's place."""

    margin: float = Field(default=0.02, ge=0.0)
    """By how much it may be worse on a task at most; the lower end of the difference's interval must be above that."""
    tasks: tuple[str, ...] = ()
    """Tasks that count, by name; none means all."""


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """One task.

    Attributes:
        task: Its name.
        metric: What is compared.
        difference: New minus old, positive when the new one is better.
        passed: Whether it is not worse.
        reason: The figure and what is asked, in words.
    """

    task: str
    metric: str
    difference: Paired
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which model a round ends with.

    Attributes:
        accepted: Whether it is the new one.
        reason: Why, in words.
        tasks: Task by task; empty when the round ended before there was a new model.
    """

    accepted: bool
    reason: str
    tasks: tuple[TaskVerdict, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The decision as JSON values."""
        return asdict(self)


def decide(
    before: Sequence[Record], after: Sequence[Record], metrics: Mapping[str, str], config: GateConfig
) -> Decision:
    """Compare two evaluations of the same tasks.

    Args:
        before: Records of the old model.
        after: Records of the new one.
        metrics: The compared per-item score of each task.
        config: What is asked.
    """
    verdicts = tuple(
        _judge(task, metric, before, after, config)
        for task, metric in metrics.items()
        if not config.tasks or task in config.tasks
    )
    failed = [verdict for verdict in verdicts if not verdict.passed]
    told = "; ".join(f"{verdict.task}: {verdict.reason}" for verdict in (failed or verdicts))
    return Decision(not failed, told, verdicts)


def _judge(
    task: str, metric: str, before: Sequence[Record], after: Sequence[Record], config: GateConfig
) -> TaskVerdict:
    old, new = (after, before) if metric in _LOWER_IS_BETTER else (before, after)
    found = compare(old, new, metric=metric, task=task)
    passed = found.low > -config.margin
    told = (
        f"{found.difference:+.1%} [{found.low:+.1%}, {found.high:+.1%}] of {found.n}; the lower end must be above "
        f"{-config.margin:+.1%}"
    )
    return TaskVerdict(task, metric, found, passed, told)
