"""From checked samples to training rows: what to imitate, what to contrast, and how much signal there was.

For each task its K answers are counted by text. Imitated are the distinct right answers, the most frequent first: what
the model says often is nearest to what it can already do. Contrasted is the most frequent right answer with the most
frequent wrong one, the mistake that the model is most likely to make. When no answer was right, the task's own
reference answer may take the chosen side; such a pair says so in its source, since nothing in it was sampled.

With a reward model every answer has a score too. `best` then imitates the right answers that it likes most, and
`random` draws as many from the same answers: the difference between the two is what the reward model's taste is worth.
Without a verifier every finished answer may be imitated, and the contrast is between the best and the worst score.

An answer that ran into the length limit or is empty counts as wrong, but is in no row: as a row it would end with an
`<|eot_id|>` that the model never wrote.

Source: best and worst of K: The Llama 3 Herd of Models (2407.21783), section 4.2.2;
pass@k, unbiased: Chen et al. 2021, arXiv:2107.03374, equation 1.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any, Literal

from puna.core.dialog import Dialog, Message
from puna.post.preference_rows import Preference

SAMPLED, REFERENCE = "sampled", "reference"
Selection = Literal["frequent", "best", "random"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer and the verifier's word on it.

    Attributes:
        text: the answer without surrounding white space.
        n_tokens: sampled tokens, stop token included.
        finished: the model stopped by itself.
        correct: the verifier accepted it, and it is finished; None where nothing verified it.
        reason: the verifier's reason; without a verifier whether it ended.
        score: what a reward model thinks of it, or None.
    """

    text: str
    n_tokens: int
    finished: bool
    correct: bool | None
    reason: str
    score: float | None = None

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
        """How many answers are known to be right."""
        return sum(answer.correct is True for answer in self.answers)


def _distinct(samples: Samples, *, correct: bool, selection: Selection = "frequent", seed: int = 0) -> list[str]:
    """Distinct usable answers; `frequent`: the most frequent first, then the first drawn.

    Unverified answers pass for right ones.
    """
    counts = Counter(a.text for a in samples.answers if a.usable and (a.correct is not False) == correct)
    texts = [text for text, _ in counts.most_common()]
    if selection == "best":
        scores = _scores(samples)
        return sorted(texts, key=lambda text: -scores[text])
    if selection == "random":
        return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}/{samples.task}/{text}".encode()).digest())
    return texts


def _scores(samples: Samples) -> dict[str, float]:
    """The score of each text; equal texts have one."""
    return {answer.text: answer.score for answer in samples.answers if answer.score is not None}


def imitation_rows(
    samples: Samples, *, limit: int, selection: Selection = "frequent", seed: int = 0
) -> list[dict[str, Any]]:
    """Rows for fine-tuning: the prompt with each of at most `limit` distinct right answers.

    Args:
        samples: the answers to one task.
        limit: upper bound of rows.
        selection: which answers come first: the most frequent, the best scored, or any.
        seed: of `random`.

    Returns:
        Rows in the openai form; a scored answer's `quality` is its score.
    """
    scores, rows = _scores(samples), []
    for text in _distinct(samples, correct=True, selection=selection, seed=seed)[:limit]:
        row = {"messages": samples.prompt.plus("assistant", text).as_messages(), "source": SAMPLED}
        rows.append(row | ({"quality": scores[text]} if text in scores else {}))
    return rows


def best_rows(rows: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """The share of all rows with the highest quality, in their order (top-k over all prompts)."""
    kept = round(share * len(rows))
    best = sorted(range(len(rows)), key=lambda i: -rows[i].get("quality", 0.0))[:kept]
    return [rows[i] for i in sorted(best)]


def scored_pairs(samples: Samples, *, limit: int) -> list[Preference]:
    """At most `limit` pairs of a higher and a lower score among finished answers, the widest apart first."""
    scores = _scores(samples)
    texts = sorted({a.text for a in samples.answers if a.usable and a.text in scores}, key=lambda text: -scores[text])
    crossed = [(texts[i], texts[-1 - i]) for i in range(len(texts) // 2)]
    return [
        Preference(
            prompt=samples.prompt,
            chosen=(Message("assistant", better),),
            rejected=(Message("assistant", worse),),
            source=SAMPLED,
        )
        for better, worse in crossed[:limit]
        if scores[better] > scores[worse]
    ]


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


def expected_best(scores: Sequence[float], k: int) -> float:
    """The mean highest score among k of n answers, over all choices of k: it never falls as k grows.

    Args:
        scores: of the n answers.
        k: answers allowed, 1..n.
    """
    n = len(scores)
    return sum(score * comb(i, k - 1) for i, score in enumerate(sorted(scores))) / comb(n, k)


@dataclass
class Statistics:
    """What sampling found.

    Attributes:
        n_tasks: tasks sampled.
        n_answers: answers drawn.
        pass_at: mean pass@k over the tasks, for k = 1, 2, 4, ... and K; empty where nothing verified the answers.
        with_signal: fraction of tasks with right and wrong answers, the ones that a contrast can be drawn from; None
            where nothing verified them.
        never_right: fraction of tasks without a right answer; None likewise.
        unfinished: fraction of answers that ran into the length limit.
        distinct: mean number of distinct answers to a task.
        reasons: wrong answers by the verifier's reason; unverified ones by whether they ended.
        best_of: mean over the tasks of the expected highest score among k answers, where there are scores.
    """

    n_tasks: int = 0
    n_answers: int = 0
    pass_at: dict[int, float] = field(default_factory=dict)
    with_signal: float | None = None
    never_right: float | None = None
    unfinished: float = 0.0
    distinct: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    best_of: dict[int, float] = field(default_factory=dict)


def summarize(all_samples: Iterable[Samples]) -> Statistics:
    """Statistics over tasks that all have the same number of answers."""
    tasks = list(all_samples)
    assert tasks, "nothing was sampled"
    n = len(tasks[0].answers)
    assert all(len(task.answers) == n for task in tasks), "tasks differ in their number of answers"
    answers = [answer for task in tasks for answer in task.answers]
    reasons = Counter(a.reason for a in answers if not a.correct)
    rows = [[answer.score for answer in task.answers if answer.score is not None] for task in tasks]
    verified = all(a.correct is not None for a in answers)
    scored = rows if all(len(row) == n for row in rows) else []
    return Statistics(
        n_tasks=len(tasks),
        n_answers=len(answers),
        pass_at={k: _mean([pass_at_k(n, t.n_correct, k) for t in tasks]) for k in _powers_of_two(n)}
        if verified
        else {},
        with_signal=_mean([0 < task.n_correct < n for task in tasks]) if verified else None,
        never_right=_mean([task.n_correct == 0 for task in tasks]) if verified else None,
        unfinished=_mean([not a.finished for a in answers]),
        distinct=_mean([len({a.text for a in task.answers}) for task in tasks]),
        reasons=dict(reasons.most_common()),
        best_of={k: _mean([expected_best(row, k) for row in scored]) for k in _powers_of_two(n)} if scored else {},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _powers_of_two(n: int) -> list[int]:
    return sorted({1 << bit for bit in range(n.bit_length())} | {n})
