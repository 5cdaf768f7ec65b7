"""Tasks as they stand in a recipe, and how they become tasks.

    [[tasks]]
    kind = "multiple_choice"
    name = "arc"
    path = "benchmarks/arc.jsonl"
    fields = { question = "query", answer = "gold" }

A task whose files are missing or broken does not stop the others: `build_all` returns it with the reason.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from puna.core.config import Config
from puna.core.errors import PunaError
from puna.evaluate.task import Task
from puna.evaluate.tasks.benchmarks import gsm8k_task, mmlu_task
from puna.evaluate.tasks.exercises import exercise_task
from puna.evaluate.tasks.jsonl import generate_task, mosaic_task, multiple_choice_task, perplexity_task
from puna.evaluate.tasks.programs import code_task
from puna.exercises.generate import KINDS
from puna.sandbox.program import SandboxConfig

TaskKind = Literal["exercises", "multiple_choice", "generate", "perplexity", "mosaic", "mmlu", "gsm8k", "code"]

_FIELDS: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("question", "choices", "answer"),
    "generate": ("question", "answer"),
    "perplexity": ("text",),
}
_WITH_SHOTS_FILE = ("multiple_choice", "generate", "gsm8k")


class TaskConfig(Config):
    """One task of an evaluation."""

    kind: TaskKind = "exercises"
    """What is asked and how it is judged."""
    name: str = ""
    """Name in reports; the kind when empty."""
    path: Path | None = None
    """The data: a .jsonl file, for mmlu the folder with test/ and dev/. The exercises need none."""
    shots: Path | None = None
    """A .jsonl file with solved examples of the same form (multiple_choice, generate, gsm8k)."""
    n_shot: int = 0
    """Solved examples before the question."""
    style: Literal["text", "dialog"] = "dialog"
    """`text` for base models, `dialog` for chat models."""
    limit: PositiveInt | None = None
    """Only the first so many items (mmlu: of each subject); the exercises draw so many, 500 when not set."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Names of the fields in the file, where they differ from question, choices, answer, text."""
    extract: str = ""
    """Regular expression whose last match in a generated answer is compared (generate)."""
    max_tokens: PositiveInt = 64
    """Bound of a generated answer (exercises, generate, mosaic, code)."""
    sandbox: SandboxConfig = SandboxConfig()
    """Limits of the programs that a model writes (code)."""
    seed: int = 0
    """Which exercises are drawn."""
    kinds: tuple[str, ...] | None = None
    """Kinds of exercises; all tested ones when not set."""
    levels: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
    """Difficulties of the exercises."""

    @property
    def label(self) -> str:
        """The task's name."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _check(self) -> "TaskConfig":
        if self.n_shot < 0:
            raise ValueError(f"task {self.label}: n_shot is {self.n_shot}; 0 or more is allowed")
        if self.kind != "exercises" and self.path is None:
            raise ValueError(f"task {self.label}: kind {self.kind!r} needs path, the file or folder with its data")
        if self.n_shot and self.kind in _WITH_SHOTS_FILE and self.shots is None:
            raise ValueError(f"task {self.label}: n_shot={self.n_shot} needs shots, a .jsonl file with solved examples")
        if self.n_shot and self.kind in ("perplexity", "mosaic", "code"):
            raise ValueError(f"task {self.label}: kind {self.kind!r} takes no examples; set n_shot=0")
        allowed = _FIELDS.get(self.kind, ())
        for name in self.fields:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                takes = ", ".join(allowed) or "none"
                raise ValueError(f"task {self.label}: fields has {name!r}{hint} kind {self.kind!r} takes {takes}")
        for kind in self.kinds or ():
            if kind not in KINDS:
                near = difflib.get_close_matches(kind, KINDS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; allowed are {', '.join(KINDS)}"
                raise ValueError(f"task {self.label}: exercise kind {kind!r} is not known{hint}")
        return self


def build(config: TaskConfig) -> Task:
    """Read the data and make the task.

    Raises:
        PunaError: The data is missing or broken; the message names file and row.
    """
    if config.kind == "exercises":
        return exercise_task(
            n=config.limit or 500,
            seed=config.seed,
            style=config.style,
            n_shot=config.n_shot,
            kinds=config.kinds,
            levels=config.levels,
            max_tokens=config.max_tokens,
            name=config.label,
        )
    assert config.path is not None, "checked by the config"
    path, name, style, limit, shots = config.path, config.label, config.style, config.limit, config.shots
    match config.kind:
        case "multiple_choice":
            return multiple_choice_task(
                name, path, shots=shots, n_shot=config.n_shot, style=style, limit=limit, **config.fields
            )
        case "generate":
            return generate_task(
                name,
                path,
                shots=shots,
                n_shot=config.n_shot,
                style=style,
                extract=config.extract,
                max_tokens=config.max_tokens,
                limit=limit,
                **config.fields,
            )
        case "perplexity":
            return perplexity_task(name, path, limit=limit, **config.fields)
        case "mosaic":
            return mosaic_task(name, path, limit=limit, max_tokens=config.max_tokens)
        case "mmlu":
            return mmlu_task(path, name=name, n_shot=config.n_shot, style=style, limit=limit)
        case "gsm8k":
            return gsm8k_task(path, name=name, shots=shots, n_shot=config.n_shot, style=style, limit=limit)
        case "code":
            return code_task(
                path, name=name, style=style, max_tokens=config.max_tokens, limit=limit, sandbox=config.sandbox
            )


def build_all(configs: Sequence[TaskConfig]) -> tuple[list[Task], dict[str, str]]:
    """Build every task that can be built.

    Returns:
        The tasks, and the reason for each name that was left out.
    """
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    for config in configs:
        try:
            tasks.append(build(config))
        except PunaError as error:
            skipped[config.label] = str(error)
    return tasks, skipped
