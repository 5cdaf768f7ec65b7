"""`puna annotate qa`: items and labels in; cards, verdicts, a report page and weighted training rows out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from puna.core import config, console, files
from puna.core.run_folder import RunFolder
from puna.evaluate.statistics import paired_difference
from puna.post.preferences.quality import Quality, QualityConfig
from puna.post.preferences.records import Item, Label
from puna.stages.annotate_label import items_file
from puna.stages.stage import PlanRow, Stage, StageRecipe

PAGE = "report.html"


class QualityRecipe(StageRecipe):
    """Items, labels, and how strict the checks are."""

    items: tuple[Path, ...] = Field(min_length=1)
    """Folders of `puna annotate items`, or JSONL files."""
    labels: tuple[Path, ...] = Field(min_length=1)
    """Folders of `puna annotate label`, or JSONL files."""
    quality: QualityConfig = QualityConfig()
    """Thresholds."""
    min_strength: int = Field(default=1, ge=1, le=4)
    """Weaker preferences are no training rows; 3 keeps what Llama 3 keeps."""
    held_out_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of prompts whose accepted rows go to `held_out.jsonl` instead, to judge a reward model by."""


def inputs(recipe: QualityRecipe) -> Mapping[str, Path]:
    """Items and labels."""
    named = {f"items.{i}": path for i, path in enumerate(recipe.items)}
    return named | {f"labels.{i}": path for i, path in enumerate(recipe.labels)}


def plan(recipe: QualityRecipe) -> Sequence[PlanRow]:
    """How much there is to check."""
    items, labels = _read(recipe)
    return [("items", f"{len(items):,}"), ("labels", f"{len(labels):,}")]


def _read(recipe: QualityRecipe) -> tuple[list[Item], list[Label]]:
    from puna.post.preferences.records import read_items, read_labels

    labels = [path / "labels.jsonl" if path.is_dir() else path for path in recipe.labels]
    items = read_items([items_file(path) for path in recipe.items])
    return items, read_labels(labels, items=items)


def run(recipe: QualityRecipe, folder: RunFolder) -> None:
    """Check, decide, write."""
    from puna.post.preferences import export
    from puna.post.preferences.quality import check, verdict_row
    from puna.post.rankings import falls_out
    from puna.stages.page import preferences as page

    items, labels = _read(recipe)
    quality = check(items, labels, recipe.quality)
    aside = {item.id for item in items if falls_out(item.prompt, recipe.held_out_fraction)}
    every = export.training_rows(items, quality, min_strength=recipe.min_strength)
    rows = [row for row in every if row["item"] not in aside]
    held_out = [row for row in every if row["item"] in aside and row["verdict"] == "accept"]
    voted = [row for row in export.unchecked_rows(items, labels) if row["item"] not in aside]
    raw = [row for row in export.raw_rows(items, labels) if row["item"] not in aside]
    said: dict[str, list[Label]] = {}
    for label in labels:
        said.setdefault(label.item, []).append(label)
    _write(folder, "preferences.jsonl", rows)
    _write(folder, "held_out.jsonl", held_out)
    _write(folder, "unchecked.jsonl", voted)
    _write(folder, "raw.jsonl", raw)
    _write(folder, "edited.jsonl", export.edited_rows(items, quality))
    _write(folder, "verdicts.jsonl", (verdict_row(v, said.get(v.item, [])) for v in quality.verdicts))
    _write(folder, "queue.jsonl", ({"item": k, "priority": v} for k, v in quality.queue.items()))
    truth = _truth(recipe)
    found = quality.as_json() | {"n_items": len(items), "n_labels": len(labels), "rows": len(rows)}
    found |= {"held_out_rows": len(held_out), "unchecked_rows": len(voted), "raw_rows": len(raw)}
    if truth:
        found["against_truth"] = against_truth(quality, items, labels, truth)
    files.write_json(folder.path / "quality.json", found)
    fingerprints = {key: files.fingerprint(path) for key, path in inputs(recipe).items()}
    rounds = sorted({item.round for item in items})
    name = recipe.name or "preferences"
    settings = config.to_toml(recipe)
    card = export.dataset_card(
        name, quality, len(rows), command="puna annotate qa config.toml", inputs=fingerprints, rounds=rounds
    )
    with files.atomic_open(folder.path / "README.md") as file:
        file.write(card)
    with files.atomic_open(folder.path / PAGE) as file:
        file.write(page.document_of(name, items, labels, quality, found, settings))
    _say(quality, len(rows), folder.path)


def _write(folder: RunFolder, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    with files.atomic_open(folder.path / name) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _truth(recipe: QualityRecipe) -> dict[str, float]:
    found: dict[str, float] = {}
    for path in recipe.items:
        if path.is_dir() and (path / "truth.json").is_file():
            found |= files.read_json(path / "truth.json")
    return found


def against_truth(
    quality: Quality, items: Sequence[Item], labels: Sequence[Label], truth: Mapping[str, float]
) -> dict[str, Any]:
    """For simulated people: how good the checks were.

    Returns:
        Precision and recall of the excluded, and the share of items with the right side: raw labels; over everybody,
        majority vote and Dawid-Skene with their difference and its interval; checked (the bad left out, disputes
        decided), and of the rows that are kept.
    """
    from puna.post.preferences.export import majority_sides
    from puna.post.preferences.quality import first_preferences, fit_labels
    from puna.post.preferences.simulate import MIXED_CROWD, true_sides

    sides = true_sides(items, truth)
    there = {card.name for card in quality.cards}
    bad = {person.name for person in MIXED_CROWD if person.bad} & there
    excluded = set(quality.excluded)
    voted = majority_sides(labels)
    decided = [v for v in quality.verdicts if v.item in sides and v.chosen]
    kept = [v for v in decided if v.decision in ("accept", "soft")]
    raw = [label for label in first_preferences(labels) if label.item in sides]
    places = {item.id: n for n, item in enumerate(items)}
    known = {places[item.id]: 0 if item.gold == "a" else 1 for item in items if item.gold}
    modelled = fit_labels(first_preferences(labels), places, known).probabilities
    both = [v.item for v in decided if v.item in voted]
    by_vote = [voted[item] == sides[item] for item in both]
    by_model = [("a" if modelled[places[item], 0] >= 0.5 else "b") == sides[item] for item in both]
    return {
        "precision": len(bad & excluded) / len(excluded) if excluded else None,
        "recall": len(bad & excluded) / len(bad) if bad else None,
        "raw_labels": _mean([label.winner == sides[label.item] for label in raw]),
        "majority": _mean(by_vote),
        "dawid_skene": _mean(by_model),
        "dawid_skene_over_majority": asdict(paired_difference(by_vote, by_model)) if both else None,
        "checked": _mean([v.chosen == sides[v.item] for v in decided]),
        "kept": _mean([v.chosen == sides[v.item] for v in kept]),
        "kept_share": len(kept) / max(len(decided), 1),
    }


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _say(quality: Quality, n_rows: int, path: Path) -> None:
    from puna.post.preferences.export import shown

    agreement = [(name, shown(value)) for name, value in quality.trusted.items()]
    counts = [(f"items {key}", str(value)) for key, value in quality.counts().items()]
    rows = [*agreement, *counts, ("in the adjudication queue", str(len(quality.queue))), ("training rows", str(n_rows))]
    console.table(f"preferences {path}", ["what", "value"], rows)
    for card in quality.cards:
        if card.status != "ok":
            console.say(f"{card.status} {card.name}: {'; '.join(card.reasons)}")
    console.say(f"report: {path / PAGE}")


STAGE = Stage(verb="annotate qa", recipe=QualityRecipe, inputs=inputs, plan=plan, run=run)
