"""Checked preferences as training rows, and the card that says where they come from.

A row is what `post/preference_rows.py` reads: prompt, chosen, rejected, edited, strength, round, weight, probability;
beside these the models, the item's id and the verdict, for whoever wants to look. Originals stay in `verdicts.jsonl`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from puna.post.preference_rows import STRENGTHS
from puna.post.preferences.quality import Quality, Verdict, first_preferences
from puna.post.preferences.records import Item, Label, Side


def training_rows(items: Sequence[Item], quality: Quality, *, min_strength: int = 1) -> list[dict[str, Any]]:
    """Rows of the accepted and soft items.

    Args:
        items: The items.
        quality: From `quality.check`.
        min_strength: Weaker preferences are left out (Llama 3 keeps 3 and 4 for its reward model and for DPO).
    """
    by_id = {item.id: item for item in items}
    return [
        training_row(by_id[verdict.item], verdict)
        for verdict in quality.verdicts
        if verdict.decision in ("accept", "soft") and verdict.chosen and (verdict.strength or 0) >= min_strength
    ]


def training_row(item: Item, verdict: Verdict) -> dict[str, Any]:
    """One training row."""
    assert verdict.chosen is not None and verdict.strength is not None, verdict
    other = "b" if verdict.chosen == "a" else "a"
    models = {"a": item.model_a, "b": item.model_b}
    row: dict[str, Any] = {
        "prompt": item.prompt.as_messages(),
        "chosen": _assistant(item.answer(verdict.chosen)),
        "rejected": _assistant(item.answer(other)),
        "strength": STRENGTHS[verdict.strength - 1],
        "round": item.round,
        "weight": verdict.weight,
        "probability": verdict.probability,
        "source": "adjudicated" if verdict.adjudicated else "annotators",
        "item": item.id,
        "model_chosen": models[verdict.chosen],
        "model_rejected": models[other],
        "verdict": verdict.decision,
    }
    if verdict.edit:
        row["edited"] = _assistant(verdict.edit)
    return row


def edited_rows(items: Sequence[Item], quality: Quality) -> list[dict[str, Any]]:
    """Improved answers as dialogs for fine-tuning."""
    by_id = {item.id: item for item in items}
    return [
        {"messages": by_id[v.item].prompt.plus("assistant", v.edit).as_messages(), "source": "edited"}
        for v in quality.verdicts
        if v.edit and v.decision in ("accept", "soft")
    ]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def dataset_card(
    name: str, quality: Quality, n_rows: int, *, command: str, inputs: Mapping[str, str], rounds: Sequence[int]
) -> str:
    """The data set's README: what it is, how it was checked, how to make it again.

    Args:
        name: Name of the set.
        quality: The findings.
        n_rows: Rows of `preferences.jsonl`.
        command: What makes it again.
        inputs: Fingerprint of each input.
        rounds: Rounds of collection in it.
    """
    counts = quality.counts()
    lines = [
        f"# {name}",
        "",
        f"{n_rows} preferences from {len(quality.cards)} annotators, round {', '.join(map(str, rounds))}.",
        "",
        "| verdict | items |",
        "|---|---|",
        *(f"| {decision} | {n} |" for decision, n in counts.items()),
        "",
        "| agreement | all | trusted |",
        "|---|---|---|",
        *(f"| {k} | {shown(v)} | {shown(quality.trusted[k])} |" for k, v in quality.coefficients.items()),
        "",
        f"Labels not used: {', '.join(quality.excluded) or 'none left out'}.",
        "",
        "`weight` is certainty above chance, `probability` the chance that `chosen` is the better answer.",
        "",
        "Made again by:",
        "",
        f"    {command}",
        "",
        "Inputs:",
        "",
        *(f"- {key}: `{fingerprint}`" for key, fingerprint in inputs.items()),
        "",
    ]
    return "\n".join(lines)


def shown(found: Any) -> str:
    """A coefficient in a table."""
    if found.value is None:
        return f"not defined: {found.reason}"
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{interval}"


def majority_sides(labels: Sequence[Label]) -> dict[str, Side]:
    """The side with more votes, by item; ties are left out. What one would have without any checks."""
    votes: dict[str, int] = {}
    for label in first_preferences(labels):
        votes[label.item] = votes.get(label.item, 0) + (1 if label.winner == "a" else -1)
    return {item: "a" if n > 0 else "b" for item, n in votes.items() if n}


def unchecked_rows(items: Sequence[Item], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Rows by plain majority over everybody, for comparison with the checked ones."""
    sides = majority_sides(labels)
    return [
        {
            "prompt": item.prompt.as_messages(),
            "chosen": _assistant(item.answer(side)),
            "rejected": _assistant(item.answer("b" if side == "a" else "a")),
            "round": item.round,
            "source": "majority",
            "item": item.id,
        }
        for item in items
        if item.gold is None and (side := sides.get(item.id))
    ]


def raw_rows(items: Sequence[Item], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """A row for every single label, as it was given: what one has when nothing is checked and nobody votes."""
    by_id = {item.id: item for item in items if item.gold is None}
    return [
        {
            "prompt": item.prompt.as_messages(),
            "chosen": _assistant(item.answer(label.winner)),
            "rejected": _assistant(item.answer("b" if label.winner == "a" else "a")),
            "strength": STRENGTHS[abs(label.value or 1) - 1],
            "round": item.round,
            "source": "raw",
            "item": item.id,
            "annotator": label.annotator,
        }
        for label in first_preferences(labels)
        if (item := by_id.get(label.item)) and label.winner
    ]
