"""Seeded, checkable exercises as pretraining text. Always from the train split: the test split is for measuring."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.sources.task import Name, Report, SourceConfig, Task
from puna.exercises.generate import generate

_ESTIMATED_BYTES = 160  # of one exercise, for plans and progress only


class ExercisesConfig(SourceConfig):
    """Exercises from the project's own generator."""

    kind: Literal["exercises"] = "exercises"
    """Which kind of source this is."""
    domain: Name = "exercises"
    """Domain of the documents."""
    licence: str = "Apache-2.0"
    """Licence of the documents."""
    kinds: tuple[str, ...] = ()
    """Kinds of exercise; none means all."""
    count: int = Field(default=100_000, ge=1)
    """How many exercises to generate."""
    per_document: int = Field(default=1, ge=1)
    """Exercises in one document, separated by an empty line; several look like a few-shot prompt."""
    seed: int = Field(default=0, ge=0)
    """Seed of the generator."""
    task_exercises: int = Field(default=20_000, ge=1)
    """Exercises of one task."""


def tasks(config: ExercisesConfig) -> list[Task]:
    """Ranges of seeds: task i draws from `(seed, i)`."""
    sizes = [min(config.task_exercises, config.count - at) for at in range(0, config.count, config.task_exercises)]
    return [Task(config.name, i, (str(n),), n * _ESTIMATED_BYTES) for i, n in enumerate(sizes)]


def read(config: ExercisesConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's exercises as documents."""
    seed = config.seed * 1_000_003 + task.index
    texts: list[str] = []
    kinds: set[str] = set()
    languages: set[str] = set()
    total = int(task.parts[0])
    for n, exercise in enumerate(generate("train", kinds=config.kinds or None, n=total, seed=seed), start=1):
        texts.append(exercise.as_text().strip())
        kinds.add(exercise.kind)
        languages.add(exercise.language)
        if len(texts) == config.per_document or n == total:
            yield Document(
                "\n\n".join(texts) + "\n",
                config.name,
                f"puna:exercises/{seed}/{n}",
                config.licence,
                languages.pop() if len(languages) == 1 else config.language,
                {"kinds": ",".join(sorted(kinds))},
            )
            texts, kinds, languages = [], set(), set()
