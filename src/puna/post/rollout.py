"""Answers sampled for learning: prompts and answers as token ids, with the sampler's own log probabilities.

Nothing is ever decoded and encoded again: the ids that the engine drew are the ids that are trained. Every prompt gets
the same number of answers, and draws of prompt i in iteration n depend on the seed, n and i alone.

What an answer is worth is a `Judge`: a verifier of exercises, a reward model, or both. A `Judge` sees the task, the
answer's text and its token ids.

Shapes: T tokens of all answers side by side.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.generator import Generator, Sampling
from puna.post.rejection import Task, Verifier, verdicts
from puna.post.reward import Scorer
from puna.post.trees import Tree


@dataclass(frozen=True)
class Group:
    """One prompt with its sampled answers.

    Attributes:
        task: What was asked.
        prompt: `[P]` token ids, as the model read them.
        answers: Token ids of each answer, stop token included where one was drawn.
        texts: The same as text.
        finished: Whether each answer ended by itself.
        logprobs: The sampler's log probability of each token, before temperature.
    """

    task: Task
    prompt: NDArray[np.int64]
    answers: tuple[NDArray[np.int64], ...]
    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    logprobs: tuple[NDArray[np.float64], ...]

    @property
    def tree(self) -> Tree:
        """For a forward pass: each branch begins with the prompt's last token, which predicts its first one."""
        last = self.prompt[-1:]
        return Tree(self.prompt[:-1], tuple(np.concatenate((last, answer[:-1])) for answer in self.answers))

    @property
    def scored_tree(self) -> Tree:
        """For a reward model: each branch ends with the answer's last token."""
        return Tree(self.prompt, self.answers)

    def to_json(self) -> dict[str, Any]:
        """Everything but the task, in JSON types."""
        return {
            "task": self.task.id,
            "prompt": self.prompt.tolist(),
            "answers": [answer.tolist() for answer in self.answers],
            "texts": list(self.texts),
            "finished": list(self.finished),
            "logprobs": [row.tolist() for row in self.logprobs],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], task: Task) -> "Group":
        """Build a group from what `to_json` gave."""
        assert record["task"] == task.id, f"a rollout of {record['task']!r} where {task.id!r} is expected"
        return cls(
            task,
            np.array(record["prompt"], dtype=np.int64),
            tuple(np.array(answer, dtype=np.int64) for answer in record["answers"]),
            tuple(record["texts"]),
            tuple(record["finished"]),
            tuple(np.array(row) for row in record["logprobs"]),
        )


def roll_out(
    tasks: Sequence[Task],
    generator: Generator,
    encode: Callable[[Task], list[int]],
    *,
    samples: int,
    sampling: Sampling,
) -> list[Group]:
    """Samples answers to every task.

    Args:
        tasks: What to answer.
        generator: Draws; all answers of a prompt stand side by side, so that it can share their prompt.
        encode: The ids that the generator reads for a task.
        samples: Answers to each task.
        sampling: How they are drawn; the seed is the call's.

    Returns:
        One group a task, in order.
    """
    completions = generator.complete([task.prompt for task in tasks for _ in range(samples)], sampling)
    groups = []
    for number, task in enumerate(tasks):
        own = completions[number * samples : (number + 1) * samples]
        prompt = np.array(encode(task), dtype=np.int64)
        assert all(c.prompt_tokens == len(prompt) for c in own), "the generator read another prompt"
        groups.append(
            Group(
                task,
                prompt,
                tuple(np.array(c.tokens, dtype=np.int64) for c in own),
                tuple(c.text.strip() for c in own),
                tuple(c.finish_reason == "stop" for c in own),
                tuple(np.array(c.logprobs) for c in own),
            )
        )
    return groups


def call_seed(*parts: object) -> int:
    """A seed that is a hash of what it depends on."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big")


@dataclass(frozen=True, slots=True)
class Judged:
    """What the answers of an iteration are worth.

    Attributes:
        rewards: `[A]` what is learned from.
        parts: The terms of it by name, each `[A]`, for the metrics.
    """

    rewards: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Judge:
    """The worth of an answer: `verifier_weight * [right] + reward_weight * score - penalty * [did not end]`.

    Attributes:
        verifier: Says whether an answer is right, or None.
        scorer: The reward model, or None.
        verifier_weight: Worth of a right answer.
        reward_weight: Factor of the reward model's score.
        unfinished_penalty: What is taken from an answer that ran into the length limit.
    """

    verifier: Verifier | None = None
    scorer: Scorer | None = None
    verifier_weight: float = 1.0
    reward_weight: float = 1.0
    unfinished_penalty: float = 1.0

    def __call__(self, groups: Sequence[Group]) -> Judged:
        """Judges every answer, group after group."""
        finished = np.array([done for group in groups for done in group.finished], dtype=np.float64)
        rewards = -self.unfinished_penalty * (1.0 - finished)
        parts = {"finished": finished}
        if self.verifier is not None:
            answers = [(group.task, text) for group in groups for text in group.texts]
            ended = [pair for pair, done in zip(answers, finished, strict=True) if done]
            right = finished.copy()
            right[finished == 1.0] = [float(verdict.correct) for verdict in verdicts(self.verifier, ended)]
            parts["correct"] = right
            rewards = rewards + self.verifier_weight * parts["correct"]
        if self.scorer is not None:
            parts["score"] = np.concatenate(self.scorer.trees([group.scored_tree for group in groups]))
            rewards = rewards + self.reward_weight * parts["score"]
        return Judged(rewards, parts)
