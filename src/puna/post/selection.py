"""From checked samples to training rows: what to imitate, what to contrast, and how much signal there was.

For each task its K answers are counted by text. Imitated are the distinct right answers, the most frequent first: what
the model says often is nearest to what it can already do. Contrasted is the most frequent right answer with the most
frequent wrong one, the mistake that the model is most likely to make. When no answer was right, the task's own
reference answer may take the chosen side; such a pair says so in its source, since nothing in it was sampled.

An answer that ran into the length limit or is empty counts as wrong, but is in no row: as a row it would end with an
`<|eot_id|>` that the model never wrote.

Source: pass@k, unbiased: Chen et al. 2021, arXiv:2107.03374, equation 1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

from puna.core.dialog import Dialog, Message
from puna.post.preference_rows import Preference

SAMPLED, REFERENCE = "sampled", "reference"


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer and the verifier's word on it.

    Attributes:
        text: the answer without surrounding white space.
        n_tokens: sampled tokens, stop token included.
        finished: the model stopped by itself.
        correct: the verifier accepted it, and it is finished.
        reason: the verifier's reason.
    """

    text: str
    n_tokens: int
    finished: bool
    correct: bool
    reason: str

    @property
    def usable(self) -> bool:
        """Whether it can stand in a row."""
        return self.finished and bool(self.text)


@dataclass(frozen=True, slots=True)
class Samples:
    """All answers to one task.

    Attributes:
        task: id of the task.
        prompt: what was asked.
        reference: a right answer that is known, or None.
        answers: the K answers in the order of their seeds.
    """

    task: str
    prompt: Dialog
    reference: str | None
    answers: tuple[Answer, ...]

    @property
    def n_correct(self) -> int:
        """How many answers are right."""
        return sum(answer.correct for answer in self.answers)


def _distinct(samples: Samples, *, correct: bool) -> list[str]:
    """Distinct usable answers, the most frequent first, then the first drawn."""
    counts = Counter(a.text for a in samples.answers if a.usable and a.correct == correct)
    return [text for text, _ in counts.most_common()]


def imitation_rows(samples: Samples, *, limit: int) -> list[dict[str, Any]]:
    """Rows for fine-tuning: the prompt with each of at most `limit` distinct right answers."""
    answers = _distinct(samples, correct=True)[:limit]
    return [{"messages": samples.prompt.plus("assistant", a).as_messages(), "source": SAMPLED} for a in answers]


def preference_pairs(samples: Samples, *, limit: int, use_reference: bool) -> list[Preference]:
    """At most `limit` pairs of a right and a wrong answer, the most frequent of both first.

    Args:
        samples: the answers to one task.
        limit: upper bound of pairs.
        use_reference: when no answer is right, put the reference on the chosen side.

    Returns:
        The pairs; their source is `sampled` or `reference`.
    """
    right, wrong = _distinct(samples, correct=True), _distinct(samples, correct=False)
    source = SAMPLED
    if not right and use_reference and samples.reference is not None:
        right, source = [samples.reference.strip()], REFERENCE
    crossed = sorted((i + j, i, j) for i in range(len(right)) for j in range(len(wrong)) if right[i] != wrong[j])
    return [
        Preference(
            prompt=samples.prompt,
            chosen=(Message("assistant", right[i]),),
            rejected=(Message("assistant", wrong[j]),),
            source=source,
        )
        for _, i, j in crossed[:limit]
    ]


def pass_at_k(n: int, n_correct: int, k: int) -> float:
    """Chance that at least one of k answers is right, estimated without bias from n of which `n_correct` are.

    Args:
        n: answers drawn.
        n_correct: right ones among them.
        k: answers allowed, 1..n.

    Returns:
        1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021, equation 1.
    """
    assert 1 <= k <= n and 0 <= n_correct <= n, f"n {n}, correct {n_correct}, k {k}"
    return 1.0 - comb(n - n_correct, k) / comb(n, k)


@dataclass
class Statistics:
    """What sampling found.

    Attributes:
        n_tasks: tasks sampled.
        n_answers: answers drawn.
        pass_at: mean pass@k over the tasks, for k = 1, 2, 4, ... and K.
        with_signal: fraction of tasks with right and wrong answers: the ones that a contrast can be drawn from.
        never_right: fraction of tasks without a right answer.
        unfinished: fraction of answers that ran into the length limit.
        distinct: mean number of distinct answers to a task.
        reasons: wrong answers by the verifier's reason.
    """

    n_tasks: int = 0
    n_answers: int = 0
    pass_at: dict[int, float] = field(default_factory=dict)
    with_signal: float = 0.0
    never_right: float = 0.0
    unfinished: float = 0.0
    distinct: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


def summarize(all_samples: Iterable[Samples]) -> Statistics:
    """Statistics over tasks that all have the same number of answers."""
    tasks = list(all_samples)
    assert tasks, "nothing was sampled"
    n = len(tasks[0].answers)
    assert all(len(task.answers) == n for task in tasks), "tasks differ in their number of answers"
    answers = [answer for task in tasks for answer in task.answers]
    reasons = Counter(a.reason for a in answers if not a.correct)
    return Statistics(
        n_tasks=len(tasks),
        n_answers=len(answers),
        pass_at={k: _mean([pass_at_k(n, task.n_correct, k) for task in tasks]) for k in _powers_of_two(n)},
        with_signal=_mean([0 < task.n_correct < n for task in tasks]),
        never_right=_mean([task.n_correct == 0 for task in tasks]),
        unfinished=_mean([not a.finished for a in answers]),
        distinct=_mean([len({a.text for a in task.answers}) for task in tasks]),
        reasons=dict(reasons.most_common()),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _powers_of_two(n: int) -> list[int]:
    return sorted({1 << bit for bit in range(n.bit_length())} | {n})
