"""`puna annotate items`: questions and models in; pairs of their answers to compare, and test questions, out."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from puna.core import console
from puna.core.files import write_json
from puna.core.generator import Sampling
from puna.core.run_folder import RunFolder
from puna.stages.checkable import check_files
from puna.stages.exercise_data import ExerciseConfig, prompt_tasks, tasks
from puna.stages.stage import PlanRow, Stage, StageRecipe

ITEMS, TRUTH, STATISTICS = "items.jsonl", "truth.json", "statistics.json"


class ItemsRecipe(StageRecipe):
    """Models and the questions that they answer."""

    models: tuple[Path, ...] = Field(min_length=1)
    """Checkpoints; the two answers of an item come from two of them in turn (from one model, when there is one)."""
    exercises: ExerciseConfig = ExerciseConfig(n=400)
    """The questions: exercises of the train split."""
    prompts: tuple[Path, ...] = ()
    """JSONL files of dialogs to answer instead. Nothing is known about their answers: no test questions are made."""
    skip: int = Field(default=0, ge=0)
    """Prompts of the files to pass over; beyond the end it goes on from the beginning."""
    limit: int | None = Field(default=None, ge=1)
    """Most prompts of the files to answer."""
    gold: int = Field(default=24, ge=0)
    """Test questions: a wrong answer beside the reference."""
    round: int = Field(default=1, ge=1)
    """Round of collection."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the draws."""
    seed: int = 0
    """Seed of the draws."""
    max_batch: int = 128
    """Most answers written together."""


def inputs(recipe: ItemsRecipe) -> Mapping[str, Path]:
    """The models and the files of prompts."""
    named = {f"models.{i}": path for i, path in enumerate(recipe.models)}
    return named | {f"prompts.{i}": path for i, path in enumerate(recipe.prompts)}


def plan(recipe: ItemsRecipe) -> Sequence[PlanRow]:
    """How much is drawn."""
    check_files(recipe.prompts, None)
    models = max(2, len(recipe.models))
    if recipe.prompts:
        return [("answers", f"{models} to each prompt of {len(recipe.prompts)} files")]
    return [("answers", f"{models * recipe.exercises.n:,}"), ("test questions", str(recipe.gold))]


def run(recipe: ItemsRecipe, folder: RunFolder) -> None:
    """Draw answers, pair them, write items and (for simulated annotators only) what is true."""
    from puna.infer.engine import Engine
    from puna.post.preferences.records import write_rows

    if recipe.prompts:
        asked = prompt_tasks(recipe.prompts, skip=recipe.skip, limit=recipe.limit)
    else:
        asked = tasks(recipe.exercises)
    drawn: list[list[str]] = []
    for number, path in enumerate(recipe.models * 2 if len(recipe.models) == 1 else recipe.models):
        engine = Engine.load(path, max_batch=recipe.max_batch)
        sampling = Sampling(
            max_tokens=recipe.max_tokens, temperature=recipe.temperature, seed=recipe.seed * 1000 + number
        )
        drawn.append([said.text.strip() for said in engine.complete([task.prompt for task in asked], sampling)])
    items, truth = _pair(recipe, asked, drawn)
    n_gold = sum(item.gold is not None for item in items)
    write_rows(folder.path / ITEMS, items)
    if not recipe.prompts:
        write_json(folder.path / TRUTH, truth)
    counts = {"prompts": len(asked), "items": len(items), "gold": n_gold, "different": sum(map(bool, truth.values()))}
    write_json(folder.path / STATISTICS, counts)
    test = "test question" if n_gold == 1 else "test questions"
    console.say(f"{len(items) - n_gold} items, {n_gold} {test} from {len(asked)} prompts")


def model_names(models: Sequence[Path]) -> list[str]:
    """A name for each model: its folder's, with the folder above where two are called the same."""
    short = [path.name for path in models]
    return [
        path.name if short.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in map(Path, models)
    ]


def _pair(
    recipe: ItemsRecipe, asked: Sequence[Any], drawn: Sequence[Sequence[str]]
) -> tuple[list[Any], dict[str, float]]:
    """Items, and the true difference of each whose answers can be checked."""
    from puna.exercises.verify import verify
    from puna.post.preferences.records import Item

    names = model_names(recipe.models) * (2 if len(recipe.models) == 1 else 1)
    pairs = list(itertools.combinations(range(len(drawn)), 2))
    items: list[Item] = []
    truth: dict[str, float] = {}
    n_gold = 0
    for number, task in enumerate(asked):
        first, second = pairs[number % len(pairs)]
        if number // len(pairs) % 2:
            first, second = second, first
        a, b = drawn[first][number], drawn[second][number]
        right = [bool(task.payload and verify(task.payload, text).correct) for text in (a, b)]
        name = f"round-{recipe.round}-{number:05d}"
        if n_gold < recipe.gold and task.reference and not right[1] and b and b != task.reference.strip():
            better = number % 2 == 0
            answers = (task.reference.strip(), b) if better else (b, task.reference.strip())
            items.append(Item(name, task.prompt, *answers, "test", "test", recipe.round, gold="a" if better else "b"))
            truth[name] = 2.0 if better else -2.0
            n_gold += 1
        elif a and b and a != b:
            items.append(Item(name, task.prompt, a, b, names[first], names[second], recipe.round))
            truth[name] = _worth(a, right[0], task.reference) - _worth(b, right[1], task.reference)
    return items, truth


def _worth(answer: str, right: bool, reference: str | None) -> float:
    """What an answer is worth to a careful person: being right, and where it is not, how near it comes."""
    near = difflib.SequenceMatcher(None, answer, reference or "", autojunk=False).ratio()
    return 2.0 if right else near


STAGE = Stage(verb="annotate items", recipe=ItemsRecipe, inputs=inputs, plan=plan, run=run, neutral=("max_batch",))
