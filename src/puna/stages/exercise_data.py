"""Exercises as data for the stages: dialogs to learn from, and tasks whose answers can be checked."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import Field, field_validator

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.exercises import generate
from puna.exercises.exercise import Exercise, Level
from puna.exercises.verify import verify
from puna.post.dialogs import DialogRow, read_prompts
from puna.post.rejection import Task, Verdict

SOURCE = "exercises"


class ExerciseConfig(Config):
    """Exercises of the project's own generator, always of the train split."""

    n: int = Field(default=10_000, ge=1)
    """How many to draw."""
    seed: int = 0
    """Seed of the stream."""
    kinds: tuple[str, ...] = ()
    """Kinds to draw from; none means all."""
    levels: tuple[Level, ...] = Field(default=(1, 2, 3), min_length=1)
    """Difficulties to draw from."""
    turns: int = Field(default=1, ge=1)
    """The most exercises in one dialog."""

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for name in kinds:
            if name not in generate.KINDS:
                near = get_close_matches(name, generate.KINDS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the kinds are {', '.join(generate.KINDS)}"
                raise ValueError(f"exercise kind {name!r} is not known; {hint}")
        return kinds


def dialog_rows(config: ExerciseConfig) -> list[DialogRow]:
    """Dialogs of one or more exercises, as the fine-tuning reader would give them."""
    drawn = generate.dialogs(
        "train", n=config.n, seed=config.seed, kinds=config.kinds or None, levels=config.levels, turns=config.turns
    )
    return [DialogRow(dialog, source=SOURCE) for dialog in drawn]


def tasks(config: ExerciseConfig) -> list[Task]:
    """Single questions with their reference answer; the payload is the exercise, for the verifier."""
    drawn = generate.generate("train", n=config.n, seed=config.seed, kinds=config.kinds or None, levels=config.levels)
    return [_task(number, exercise) for number, exercise in enumerate(drawn)]


def verify_exercise(task: Task, answer: str) -> Verdict:
    """The verdict on an answer to such a task."""
    return verify(task.payload, answer)


def _task(number: int, exercise: Exercise) -> Task:
    dialog = exercise.as_dialog()
    prompt = type(dialog)(dialog.messages[:-1])
    return Task(id=f"{number}:{exercise.key}", prompt=prompt, reference=exercise.response, payload=exercise)


def prompt_tasks(paths: Sequence[Path], *, skip: int = 0, limit: int | None = None) -> list[Task]:
    """Prompts of files as questions that no verifier can check.

    Args:
        paths: JSONL files of dialogs; a last answer is left out.
        skip: How many to pass over; beyond the end it goes on from the beginning.
        limit: How many to take, each at most once; None takes all.

    Raises:
        UsageError: The files hold no prompt.
    """
    prompts = read_prompts(paths)
    if not prompts:
        raise UsageError(f"{', '.join(map(str, paths))}: there is no prompt in it")
    count = len(prompts) if limit is None else min(limit, len(prompts))
    places = [(skip + n) % len(prompts) for n in range(count)]
    return [Task(str(place), prompts[place]) for place in places]
