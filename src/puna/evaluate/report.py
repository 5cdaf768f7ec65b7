"""From records to figures: one estimate a metric, with n and interval; groups; reasons; and two runs compared.

Micro averages count every item the same, macro averages every group; both are given when a task has groups, because
published figures differ in it (MMLU: 65.4 micro and 66.6 macro are the same model). Failed items are
left out of the figures and counted.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from puna.evaluate import statistics
from puna.evaluate.statistics import Estimate, Paired
from puna.evaluate.task import Task

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The figures of one task.

    Attributes:
        name: The task's name.
        primary: Name of the metric that stands in tables.
        metrics: Figure by metric; `_macro` at the end of a name means averaged over groups.
        groups: The primary metric's per-item score averaged in each group.
        reasons: How often each reason came.
        n: Items with an answer.
        failed: Items without one.
        n_shot: Solved examples in the prompt.
        errors: The first few errors, with the item's id.
    """

    name: str
    primary: str
    metrics: dict[str, Estimate]
    groups: dict[str, Estimate]
    reasons: dict[str, int]
    n: int
    failed: int
    n_shot: int
    errors: dict[str, str]

    @property
    def score(self) -> Estimate | None:
        """The primary figure; None when every item failed."""
        return self.metrics.get(self.primary)


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of a run.

    Attributes:
        model: The generator's name.
        tasks: In the order of the run.
        skipped: Tasks that could not be built, with the reason.
    """

    model: str
    tasks: tuple[TaskResult, ...]
    skipped: dict[str, str]

    def __getitem__(self, name: str) -> TaskResult:
        """The result of the task called `name`."""
        return next(task for task in self.tasks if task.name == name)

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        tasks = {task.name: {k: v for k, v in asdict(task).items() if k != "name"} for task in self.tasks}
        return {"model": self.model, "tasks": tasks, "skipped": self.skipped}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Results":
        """Build results from what `as_json` gave."""
        tasks = []
        for name, task in record["tasks"].items():
            estimates = {k: {m: Estimate(**e) for m, e in task[k].items()} for k in ("metrics", "groups")}
            tasks.append(TaskResult(name=name, **{**task, **estimates}))
        return cls(record["model"], tuple(tasks), dict(record["skipped"]))


def summarise(task: Task, records: Sequence[Record]) -> TaskResult:
    """Figures of one task from the records of its items."""
    done = [r for r in records if "error" not in r]
    failed = [r for r in records if "error" in r]
    metrics: dict[str, Estimate] = {}
    groups: dict[str, Estimate] = {}
    names = sorted({name for r in done for name in r["scores"]})
    for name in names:
        metrics.update(_metric(name, [r for r in done if name in r["scores"]]))
    primary = (
        f"{task.primary}_macro" if task.average == "macro" and f"{task.primary}_macro" in metrics else task.primary
    )
    for group in sorted({r.get("group", "") for r in done} - {""}):
        rows = [r for r in done if r.get("group") == group]
        groups[group] = _metric(task.primary, rows)[task.primary]
    return TaskResult(
        name=task.name,
        primary=primary,
        metrics=metrics,
        groups=groups,
        reasons=dict(Counter(r["reason"] for r in done if "reason" in r).most_common()),
        n=len(done),
        failed=len(failed),
        n_shot=task.n_shot,
        errors={r["id"]: r["error"] for r in failed[:5]},
    )


def _metric(name: str, rows: Sequence[Record]) -> dict[str, Estimate]:
    if name == "bits_per_byte":
        bits, n_bytes = [r["bits"] for r in rows], [r["bytes"] for r in rows]
        per_token = statistics.bootstrap_ratio(bits, [max(1, r["tokens"]) for r in rows])
        value, low, high = (
            math.exp(min(b * math.log(2), 700.0)) for b in (per_token.value, per_token.low, per_token.high)
        )
        perplexity = Estimate(value, low, high, per_token.n, "bootstrap")
        return {name: statistics.bootstrap_ratio(bits, n_bytes), "token_perplexity": perplexity}
    values = [float(r["scores"][name]) for r in rows]
    clusters = [r.get("cluster") or r["id"] for r in rows]
    if len(set(clusters)) < len(clusters):
        plain = statistics.clustered_mean(values, clusters)
    else:
        plain = statistics.mean_estimate(values)
    found = {name: plain}
    by_group: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        by_group.setdefault(row.get("group", ""), []).append(value)
    if len(by_group) > 1:
        found[f"{name}_macro"] = statistics.macro_mean(list(by_group.values()))
    return found


COLUMNS = ("task", "metric", "shots", "n", "value", "95 % interval", "failed")


def table_rows(results: Results) -> list[list[str]]:
    """Table rows for `COLUMNS`: the primary figure of each task, then what was skipped."""
    table = []
    for task in results.tasks:
        score = task.score
        value, interval = ("-", "-") if score is None else (_figure(score.value), _interval(score.low, score.high))
        table.append([task.name, task.primary, str(task.n_shot), str(task.n), value, interval, str(task.failed)])
    table += [[name, f"skipped: {reason}", "", "0", "-", "-", ""] for name, reason in results.skipped.items()]
    return table


def group_rows(task: TaskResult) -> list[list[str]]:
    """Table rows `(group, n, value, interval)` of one task."""
    return [[g, str(e.n), _figure(e.value), _interval(e.low, e.high)] for g, e in task.groups.items()]


def compare(a: Sequence[Record], b: Sequence[Record], *, metric: str, task: str | None = None) -> Paired:
    """Compare two runs on the items that both answered.

    Args:
        a: Records of the first run (`run.read_samples`).
        b: Records of the second run.
        metric: A per-item score: `exact_match`, `acc`, `acc_norm`.
        task: Only this task; None takes all that have the metric.

    Returns:
        The paired difference, b minus a.

    Raises:
        ValueError: No item was answered by both.
    """
    left, right = (_scores(records, metric, task) for records in (a, b))
    common = [key for key in left if key in right]
    if not common:
        raise ValueError(f"no item with {metric!r} was answered in both runs")
    return statistics.paired_difference([left[k] for k in common], [right[k] for k in common])


def _scores(records: Sequence[Record], metric: str, task: str | None) -> dict[tuple[str, str], float]:
    return {
        (r["task"], r["id"]): float(r["scores"][metric])
        for r in records
        if task in (None, r["task"]) and metric in r.get("scores", {})
    }


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _interval(low: float, high: float) -> str:
    return f"{_figure(low)} to {_figure(high)}"
