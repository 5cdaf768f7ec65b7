"""The report's sections on learning from judged answers: rejection sampling, the reward model, and the reward curves.

As in `sections.py` nothing is measured here; every figure stands in a file of a run folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core import files
from puna.stages.page import charts, html
from puna.stages.page.html import Section
from puna.stages.page.sections import Model

_CURVES = {
    "rollout": {"correct": "right answers", "score": "reward model's score", "kl_per_answer": "KL, nats"},
    "train": {"rewards/accuracies": "pairs in the right order", "rewards/margins": "margin"},
}
"""By kind of record: the figures that are drawn."""


def sampling(path: Path) -> Section:
    """What rejection sampling found."""
    record = files.read_json(path / "statistics.json")
    found = record["statistics"]
    rows = [[f"pass@{k}", f"{value:.1%}"] for k, value in sorted(found["pass_at"].items(), key=lambda e: int(e[0]))]
    if found["with_signal"] is not None:
        rows += [["questions with right and wrong answers", f"{found['with_signal']:.1%}"]]
    rows += [
        ["answers to imitate", f"{record['n_imitations']:,}"],
        ["preference pairs", f"{record['n_pairs']:,}"],
        ["of them with the reference answer as chosen", f"{record['n_reference_pairs']:,}"],
    ]
    text = (
        f"{found['n_answers']:,} answers to {found['n_tasks']:,} training questions, drawn from the fine-tuned model "
        "and checked. What the model says in some draws and not in others is what it can still learn from itself: the "
        "right answers to imitate, a right and a wrong one to the same question as a pair."
    )
    return Section(
        "sampling", "Rejection sampling", html.paragraph(text) + html.table(["", "value"], rows, numeric=[1])
    )


def reward_model(path: Path) -> Section:
    """How often the reward model puts held-out pairs in the right order."""
    found = files.read_json(path / "check.json")
    rows = [["all", _share(found["accuracy"])]]
    rows += [["the better answer is the shorter one", _share(found["better_is_shorter"])]]
    rows += [["the better answer is the longer one", _share(found["better_is_longer"])]]
    rows += [["the rule that the longer answer is better", _share(found["longer_rule"])]]
    text = (
        "Pairs of questions that it did not learn from; right means that the better answer has the higher score. "
        f"Expected calibration error {found['calibration_error']:.3f}."
    )
    return Section("reward", "Reward model", html.paragraph(text) + html.table(["held-out pairs", "right"], rows))


def _share(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}] of {value['n']:.0f}"


def rewards(models: Sequence[Model]) -> Section | None:
    """Curves of what each model was rewarded for, or None when none was."""
    body = ""
    for model in models:
        for kind, shown in _CURVES.items():
            for key, label in shown.items():
                points = _points(model.metrics, kind, key)
                if len(points) < 2 or not any(y for _, y in points):
                    continue
                lines = [charts.Line(label, points, faint=True), charts.Line(label, charts.smooth(points, share=0.05))]
                title = f"{model.label}: {label}"
                body += f"<h3>{html.escape(title)}</h3>"
                body += charts.line_chart(title, lines, x_label="step", y_label=label)
                ends = f"from {lines[1].points[0][1]:.3g} to {lines[1].points[-1][1]:.3g}, smoothed."
                body += html.paragraph(ends)
    return Section("rewards", "Rewards", body) if body else None


def _points(records: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    return [(float(r["step"]), float(r[key])) for r in records if r.get("kind") == kind and r.get(key) is not None]
