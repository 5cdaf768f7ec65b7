"""The figures of all rounds, read from the folders of their steps: `summary.json`, and what the report page shows.

Nothing is measured here. A step that has not run yet leaves its figures out, so that a paused round can be shown too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.core import files
from puna.evaluate.report import Results
from puna.evaluate.run import RESULTS
from puna.evaluate.statistics import paired_difference
from puna.lineage.artifact import read_record
from puna.stages.annotate_items import STATISTICS
from puna.stages.reward import FIGURES
from puna.stages.reward_check import PAIRS
from puna.stages.rounds.recipe import RoundRecipe

DECISION, SUMMARY = "decision.json", "summary.json"
_STEPS = ("items", "labels", "preferences", "check-pairs", "reward", "reward-check", "reward-raw", "reward-raw-check")
_LEARNING = ("samples", "sft", "dpo", "ppo", "average", "scores")


def collect(recipe: RoundRecipe) -> dict[str, Any]:
    """All figures, in JSON types.

    Returns:
        `start` (scores of the model before), `rounds` (one table each), `product` (the newest accepted model),
        `seconds` by step, and whether all rounds are `finished`.
    """
    rounds = [_round(recipe, number) for number in range(1, recipe.rounds + 1)]
    begun = [entry for entry in rounds if len(entry) > 1]
    decided = [entry for entry in rounds if "decision" in entry]
    product = decided[-1]["decision"]["model"] if decided else None
    seconds = {"start/scores": _seconds(recipe.out / "start" / "scores")}
    for number in range(1, recipe.rounds + 1):
        for name in (*_STEPS, *_LEARNING):
            seconds[f"round-{number}/{name}"] = _seconds(recipe.out / f"round-{number}" / name)
    return {
        "start": _scores(recipe.out / "start" / "scores"),
        "rounds": begun,
        "product": product,
        "finished": len(decided) == recipe.rounds,
        "seconds": {name: value for name, value in seconds.items() if value},
    }


def _round(recipe: RoundRecipe, number: int) -> dict[str, Any]:
    home = recipe.out / f"round-{number}"
    found: dict[str, Any] = {"round": number}
    if (home / "items" / STATISTICS).is_file():
        found["items"] = files.read_json(home / "items" / STATISTICS) | {"models": _models(home / "items")}
    if (home / "preferences" / "quality.json").is_file():
        found["labels"] = _labels(files.read_json(home / "preferences" / "quality.json"))
    reward = _reward(home)
    if reward:
        found["reward"] = reward
    mix = _mix(recipe, home)
    if mix:
        found["mix"] = mix
    if (home / "samples" / "statistics.json").is_file():
        found["samples"] = files.read_json(home / "samples" / "statistics.json")
    scores = _scores(home / "scores")
    if scores:
        found["scores"] = scores
    if (home / DECISION).is_file():
        found["decision"] = files.read_json(home / DECISION)
    return found


def _labels(quality: Mapping[str, Any]) -> dict[str, Any]:
    alpha = "Krippendorff alpha, side"
    kept = ("n_items", "n_labels", "items", "adjudicated", "excluded", "rows", "held_out_rows", "raw_rows", "models")
    reasons = {c["name"]: "; ".join(c["reasons"]) for c in quality["annotators"] if c["status"] == "exclude"}
    agreement = {"all": quality["agreement"][alpha], "trusted": quality["agreement_trusted"][alpha]}
    found = {key: quality[key] for key in kept} | {"reasons": reasons, "alpha": agreement}
    found["annotators"] = len(quality["annotators"])
    return found | ({"against_truth": quality["against_truth"]} if "against_truth" in quality else {})


def _reward(home: Path) -> dict[str, Any]:
    """Accuracy of the reward model, and against one of the labels as they came, over the same pairs."""
    found: dict[str, Any] = {}
    for name, folder in (("checked", "reward-check"), ("raw", "reward-raw-check")):
        if (home / folder / FIGURES).is_file():
            report = files.read_json(home / folder / FIGURES)
            found[name] = {key: report[key] for key in ("accuracy", "passed", "checks", "calibration_error")}
    if len(found) == 2:
        raw, checked = (_right(home / folder / PAIRS) for folder in ("reward-raw-check", "reward-check"))
        found["checked_over_raw"] = asdict(paired_difference(raw, checked))
    return found


def _right(path: Path) -> list[bool]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row["better"] > row["worse"] for row in rows]


def _mix(recipe: RoundRecipe, home: Path) -> dict[str, dict[str, int]]:
    """Rows by file that each training step of a round learned from."""
    keys = {"reward": "preferences", "reward-raw": "preferences", "sft": "dialogs", "dpo": "pairs"}
    found = {}
    for name, key in keys.items():
        record = read_record(home / name) if (home / name).is_dir() else None
        if record is not None:
            paths = [home / name / entry.path for k, entry in record.inputs.items() if k.startswith(f"{key}.")]
            found[name] = {_named(path.resolve(), recipe.out.resolve()): _rows(path) for path in paths}
    return found


def _named(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else path.name


def _rows(path: Path) -> int:
    """Lines of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(_rows(inner) for inner in path.glob("*.jsonl"))
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _scores(folder: Path) -> dict[str, Any] | None:
    if not (folder / RESULTS).is_file():
        return None
    results = Results.from_json(files.read_json(folder / RESULTS))
    found = {}
    for task in results.tasks:
        figure = task.metrics.get(task.primary.removesuffix("_macro"))
        if figure is not None:
            found[task.name] = {"metric": task.primary.removesuffix("_macro"), **figure.as_json()}
    return found


def _models(folder: Path) -> Sequence[str]:
    record = read_record(folder)
    if record is None:
        return []
    paths = [Path(entry.path) for key, entry in record.inputs.items() if key.startswith("models.")]
    return ["/".join(part for part in path.parts[-2:] if part != "..") for path in paths]


def _seconds(folder: Path) -> float:
    record = read_record(folder) if folder.is_dir() else None
    return round(record.seconds, 1) if record else 0.0
