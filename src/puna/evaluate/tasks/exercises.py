"""Held-out exercises as a task: our own questions, judged by our own verifiers.

`text` asks a base model with solved examples of the same kind before the question, all from the train split; `dialog`
asks a chat model, with or without examples. Both see the same items, so scores of all stages can be compared in pairs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from puna.core.errors import PunaError
from puna.core.generator import Prompt, Sampling
from puna.evaluate.few_shot import Shot, dialog_prompt, text_prompt
from puna.evaluate.task import AnswerItem, Judgement, Task
from puna.exercises.exercise import Exercise, Level
from puna.exercises.generate import generate
from puna.exercises.verify import verify

Style = Literal["text", "dialog"]


def exercise_task(
    *,
    n: int,
    seed: int = 0,
    style: Style = "dialog",
    n_shot: int = 0,
    kinds: Sequence[str] | None = None,
    levels: Sequence[Level] = (1, 2, 3),
    max_tokens: int = 64,
    name: str = "exercises",
) -> Task:
    """Build the task from the test split.

    Args:
        n: Items at most; the same `n`, `seed` and `kinds` give the same items in both styles.
        seed: Of the test stream.
        style: `text` for a base model, `dialog` for a chat model.
        n_shot: Solved examples of the item's kind, from the train split.
        kinds: Kinds of exercise; None takes all that are tested.
        levels: Difficulties.
        max_tokens: Bound of an answer.
        name: The task's name.

    Returns:
        A task with one group a kind and `exact_match` as its figure.

    Raises:
        PunaError: The chosen kinds have no test problems.
    """
    exercises = list(generate("test", n=n, seed=seed, kinds=kinds, levels=levels))
    if not exercises:
        raise PunaError(f"task {name}: the kinds {', '.join(kinds or ())} have no test problems; choose others")
    shots = {
        kind: [
            Shot(e.question, e.response) for e in generate("train", n=n_shot, seed=seed, kinds=[kind], levels=levels)
        ]
        for kind in sorted({e.kind for e in exercises})
    }
    items = tuple(
        AnswerItem(
            id=f"{e.kind}/{e.key}",
            prompt=_prompt(e, shots[e.kind], style),
            target=e.answer,
            judge=partial(_judge, e),
            group=e.kind,
        )
        for e in exercises
    )
    stop = ("\n",) if style == "text" else ()
    return Task(
        name=name,
        items=items,
        primary="exact_match",
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0, stop=stop),
        n_shot=n_shot,
        about="held-out exercises, judged by their verifiers",
    )


def _prompt(exercise: Exercise, shots: Sequence[Shot], style: Style) -> Prompt:
    build = text_prompt if style == "text" else dialog_prompt
    return build(shots, exercise.question)


def _judge(exercise: Exercise, answer: str) -> Judgement:
    verdict = verify(exercise, answer)
    return Judgement(verdict.correct, verdict.reason)
