"""The report page of all rounds: scores and gates, what the labels were worth, reward models, data mixes, lineage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core import console
from puna.lineage.artifact import ancestry
from puna.stages.page import html
from puna.stages.page.charts import Dot, bar_chart, interval_chart
from puna.stages.page.html import Section
from puna.stages.rounds.recipe import RoundRecipe

Figures = Mapping[str, Any]


def document_of(found: Figures, recipe: RoundRecipe, command: str, settings: str) -> str:
    """The whole page.

    Args:
        found: From `rounds/figures.py`.
        recipe: The recipe.
        command: What runs the rounds.
        settings: The recipe as TOML.
    """
    rounds = found["rounds"]
    done = [entry for entry in rounds if "decision" in entry]
    accepted = sum(entry["decision"]["accepted"] for entry in done)
    lead = f"{len(done)} of {recipe.rounds} rounds are finished, {accepted} of them made a better or equal model."
    if rounds and "decision" not in rounds[-1]:
        lead += f" Round {rounds[-1]['round']} is under way: {command}"
    sections = [
        _scores(found, recipe),
        *([_gates(done)] if done else []),
        *([_labels(rounds)] if any("labels" in entry for entry in rounds) else []),
        *([_truth(rounds)] if any("against_truth" in entry.get("labels", {}) for entry in rounds) else []),
        *([_reward(rounds)] if any("reward" in entry for entry in rounds) else []),
        *([_mix(rounds)] if any("mix" in entry for entry in rounds) else []),
        *([_samples(rounds)] if any("samples" in entry for entry in rounds) else []),
        _time(found["seconds"]),
        *([_lineage(recipe.out / found["product"])] if found["product"] else []),
        _made(command, settings),
    ]
    return html.document(f"Rounds in {recipe.out.as_posix()}", lead, _headline(found, recipe), sections)


def _headline(found: Figures, recipe: RoundRecipe) -> str:
    entries = [(f"{sum('decision' in e for e in found['rounds'])}/{recipe.rounds}", "rounds finished")]
    if found["start"]:
        task = next(iter(found["start"]))
        entries.append((_percent(found["start"][task]["value"]), f"{task} at the start"))
        newest = _product_scores(found)
        if newest:
            entries.append((_percent(newest[task]["value"]), f"{task} now"))
    for entry in found["rounds"][-1:]:
        if "reward" in entry:
            accuracy = entry["reward"]["checked"]["accuracy"]["value"]
            entries.append((_percent(accuracy), "reward model's accuracy, last round"))
    return html.tiles(entries)


def _product_scores(found: Figures) -> Figures | None:
    taken = [entry["scores"] for entry in found["rounds"] if entry.get("decision", {}).get("accepted")]
    return taken[-1] if taken else found["start"]


def _scores(found: Figures, recipe: RoundRecipe) -> Section:
    models = [("start", found["start"])] if found["start"] else []
    models += [(f"round {entry['round']}", entry["scores"]) for entry in found["rounds"] if "scores" in entry]
    tasks = list(dict.fromkeys(task for _, scores in models for task in scores))
    if not models:
        return Section("scores", "Scores", html.paragraph("Nothing is measured yet."))
    rows = [
        [name, task, scores[task]["metric"], scores[task]["n"], _percent(scores[task]["value"]), _range(scores[task])]
        for name, scores in models
        for task in tasks
        if task in scores
    ]
    shares = [task for task in tasks if all(0 <= s[task]["high"] <= 1 for _, s in models if task in s)]
    dots = [
        (f"{name}" if len(shares) == 1 else f"{name}, {task}", [_dot(scores[task])])
        for task in shares
        for name, scores in models
        if task in scores
    ]
    chart = interval_chart("Scores", dots, series=["share right, with 95 % interval"]) if dots else ""
    told = "Every model answered the same items, which no round learns from. A refused model is shown too."
    columns = ["after", "task", "metric", "n", "score", "95 % interval"]
    return Section("scores", "Scores", html.paragraph(told) + chart + html.table(columns, rows, numeric=(3, 4)))


def _gates(done: Sequence[Figures]) -> Section:
    rows = []
    for entry in done:
        decision = entry["decision"]
        verdict = "accepted" if decision["accepted"] else "refused, the old model stays"
        if not decision["tasks"]:
            rows.append([entry["round"], verdict, "", "", decision["reason"], decision["model"]])
        for task in decision["tasks"]:
            difference = task["difference"]
            shown = _difference(difference)
            told = task["reason"].partition(";")[2].strip()
            rows.append([entry["round"], verdict, task["task"], shown, told, decision["model"]])
    text = (
        "New minus old on the same items, with the 95 % interval of the paired difference. The new model takes the old "
        "one's place when it is not worse by more than the margin, with the whole interval."
    )
    columns = ["round", "decision", "task", "new minus old", "asked", "model afterwards"]
    return Section("gates", "Gates", html.paragraph(text) + html.table(columns, rows))


def _labels(rounds: Sequence[Figures]) -> Section:
    table, reasons = [], []
    for entry in rounds:
        if "labels" not in entry:
            continue
        labels = entry["labels"]
        counts = labels["items"]
        table.append(
            [
                entry["round"],
                ", ".join(entry.get("items", {}).get("models", ())),
                f"{labels['n_items']:,}",
                f"{labels['n_labels']:,}",
                f"{labels['annotators'] - len(labels['excluded'])} of {labels['annotators']}",
                _alpha(labels["alpha"]["all"]),
                _alpha(labels["alpha"]["trusted"]),
                f"{counts['accept']} / {counts['soft']} / {counts['relabel']} / {counts['drop']}",
                labels["adjudicated"],
                f"{labels['rows']:,}",
            ]
        )
        reasons += [[entry["round"], name, why] for name, why in labels["reasons"].items()]
    columns = ["round", "answers of", "items", "labels", "annotators used", "alpha, all", "alpha, used"]
    columns += ["accept / soft / relabel / drop", "adjudicated", "rows"]
    body = html.table(columns, table, numeric=(2, 3, 8, 9))
    if reasons:
        body += html.paragraph("Whose labels are not used, and why:") + html.table(["round", "name", "why"], reasons)
    return Section("labels", "Labels and their checks", body)


def _truth(rounds: Sequence[Figures]) -> Section:
    parts = [
        html.paragraph(
            "The annotators are simulated and the exercises can be checked, so it is known who is bad and which answer "
            "is better. Bars count items whose two answers are not equally good."
        )
    ]
    rows = []
    names = {
        "raw_labels": "single labels",
        "majority": "majority vote",
        "dawid_skene": "Dawid-Skene",
        "checked": "checked",
        "kept": "rows that are kept",
    }
    for entry in rounds:
        truth = entry.get("labels", {}).get("against_truth")
        if truth is None:
            continue
        bars = [(name, truth[key] or 0.0, _percent(truth[key])) for key, name in names.items()]
        parts.append(f"<h3>Round {entry['round']}</h3>")
        parts.append(bar_chart(f"Right side, round {entry['round']}", bars, unit="share of items with the right side"))
        over = truth["dawid_skene_over_majority"]
        shown = "–" if over is None else f"{_difference(over)} of {over['n']}"
        rows.append([entry["round"], _percent(truth["precision"]), _percent(truth["recall"]), shown])
    columns = ["round", "of those not used, bad", "of the bad, found", "Dawid-Skene minus majority vote"]
    return Section("truth", "Against the truth", "".join(parts) + html.table(columns, rows))


def _reward(rounds: Sequence[Figures]) -> Section:
    rows, dots = [], []
    compared = any("raw" in entry.get("reward", {}) for entry in rounds)
    series = ["of checked labels", "of labels as they came"] if compared else ["of checked labels"]
    for entry in rounds:
        reward = entry.get("reward", {})
        if "checked" not in reward:
            continue
        accuracy = reward["checked"]["accuracy"]
        raw = reward.get("raw", {}).get("accuracy")
        over = reward.get("checked_over_raw")
        failed = [check["name"] for check in reward["checked"]["checks"] if not check["passed"]]
        rows.append(
            [
                entry["round"],
                accuracy["n"],
                f"{_percent(accuracy['value'])} [{_range(accuracy)}]",
                f"{reward['checked']['calibration_error']:.3f}",
                "may be used" if not failed else f"not passed: {', '.join(failed)}",
                "–" if raw is None else f"{_percent(raw['value'])} [{_range(raw)}]",
                "–" if over is None else _difference(over),
            ]
        )
        dots.append((f"round {entry['round']}", [_dot(accuracy), _dot(raw)] if compared else [_dot(accuracy)]))
    columns = ["round", "pairs", "accuracy", "calibration error", "check", "of labels as they came", "difference"]
    text = "Share of pairs in the right order, on prompts that the reward model did not learn from."
    chart = interval_chart("Reward models", dots, series=series) if dots else ""
    return Section("reward", "Reward models", html.paragraph(text) + chart + html.table(columns, rows, numeric=(1,)))


def _mix(rounds: Sequence[Figures]) -> Section:
    rows = [
        [entry["round"], step, source, f"{n:,}", _percent(n / max(1, sum(files.values())))]
        for entry in rounds
        for step, files in entry.get("mix", {}).items()
        for source, n in files.items()
    ]
    text = "How many rows each training step read, and from where."
    columns = ["round", "step", "rows from", "rows", "share"]
    return Section("mix", "Data mix", html.paragraph(text) + html.table(columns, rows, numeric=(3, 4)))


def _samples(rounds: Sequence[Figures]) -> Section:
    rows = []
    for entry in rounds:
        if "samples" not in entry:
            continue
        found = entry["samples"]["statistics"]
        best = ", ".join(
            f"{value:.2f} of {k}" for k, value in sorted(found["best_of"].items(), key=lambda e: int(e[0]))
        )
        answers = f"{found['n_answers']:,} to {found['n_tasks']:,}"
        rows.append([entry["round"], answers, f"{entry['samples']['n_imitations']:,}", best])
    columns = ["round", "answers to prompts", "best ones learned", "mean best score"]
    return Section("samples", "Rejection sampling", html.table(columns, rows, numeric=(2,)))


def _time(seconds: Mapping[str, float]) -> Section:
    rows = [[name, console.short_time(value)] for name, value in seconds.items()]
    rows.append(["in all", console.short_time(sum(seconds.values()))])
    return Section("time", "Time", html.table(["step", "working time"], rows, numeric=(1,)))


def _lineage(product: Path) -> Section:
    rows = []
    for step in ancestry(product):
        name = "/".join(step.path.parts[-2:])
        fingerprint = (step.fingerprint or "missing")[:12]
        if step.record is None:
            rows.append([name, "given", "", fingerprint, ""])
            continue
        state = "changed since" if step.changed else step.record.status
        rows.append([name, f"puna {step.record.stage}", console.short_time(step.record.seconds), fingerprint, state])
    text = f"Everything that {'/'.join(product.parts[-2:])} was made from, nearest first, through all rounds."
    columns = ["artifact", "made by", "time", "fingerprint", "state"]
    return Section("lineage", "Lineage", html.paragraph(text) + html.table(columns, rows, numeric=(2,)))


def _made(command: str, settings: str) -> Section:
    body = html.preformatted(command) + html.details("every setting", html.preformatted(settings))
    return Section("made", "How it was made", body)


def _alpha(found: Figures) -> str:
    if found.get("value") is None:
        return "–"
    interval = "" if found.get("low") is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['value']:.2f}{interval}"


def _difference(found: Figures) -> str:
    return f"{found['difference']:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}]"


def _dot(found: Figures | None) -> Dot | None:
    return None if found is None else Dot(found["value"], found["low"], found["high"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _range(found: Figures) -> str:
    return f"{found['low']:.1%}, {found['high']:.1%}"
