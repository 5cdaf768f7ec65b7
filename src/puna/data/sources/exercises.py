"""Seeded, checkable exercises as pretraining text. Always from the train split: the test split is for measuring.

A document is a page of a workbook: one to eight exercises of one kind. Half of the pages ask and answer, which is what
a few-shot prompt looks like; the others state the same facts as prose, code or tables.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.sources.task import Name, Report, SourceConfig, Task
from puna.exercises.exercise import Level
from puna.exercises.generate import texts

_ESTIMATED_BYTES = 280  # of one page, for plans and progress only


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
    levels: tuple[Level, ...] = (1, 2, 3)
    """Difficulties to draw from."""
    pages: int = Field(default=30_000, ge=1)
    """How many documents to generate."""
    seed: int = Field(default=0, ge=0)
    """Seed of the generator."""
    task_pages: int = Field(default=10_000, ge=1)
    """Documents of one task."""


def tasks(config: ExercisesConfig) -> list[Task]:
    """Ranges of seeds: task i draws from `(seed, i)`."""
    sizes = [min(config.task_pages, config.pages - at) for at in range(0, config.pages, config.task_pages)]
    return [Task(config.name, i, (str(n),), n * _ESTIMATED_BYTES) for i, n in enumerate(sizes)]


def read(config: ExercisesConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's pages as documents."""
    seed = config.seed * 1_000_003 + task.index
    pages = texts("train", n=int(task.parts[0]), seed=seed, kinds=config.kinds or None, levels=config.levels)
    for number, page in enumerate(pages):
        yield config.document(page.strip() + "\n", f"puna:exercises/{seed}/{number}")
