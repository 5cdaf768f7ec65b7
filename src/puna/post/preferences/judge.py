"""A model as an annotator, over any Generator: each item is asked twice, with the answers on both sides.

The judge is asked which answer is better and its next word is scored, not sampled: P(left) is the share of "1" against
"2". The mean over both orders cancels a leaning to one side; the two orders are two labels (the second one a repeat),
so that the leaning is still seen on the judge's card.

Source: Zheng et al. 2023, "Judging LLM-as-a-Judge" (arXiv 2306.05685), section 3.4 (swapping positions).
"""

import math
from collections.abc import Sequence

from puna.core.dialog import Dialog
from puna.core.generator import Generator
from puna.post.preferences.records import Item, Label, Side

_QUESTION = """\
Here is a conversation and two answers to it. Which answer is better? Say 1 or 2.

{prompt}

Answer 1:
{left}

Answer 2:
{right}
"""
_EDGES = (0.6, 0.75, 0.9)
"""Probability at which the strength rises by one."""


def judge_items(items: Sequence[Item], generator: Generator, *, name: str = "") -> list[Label]:
    """Labels of a judge model: two an item, the first in the order that the item's id decides.

    Args:
        items: What to judge.
        generator: The judge.
        name: Name in the data; by default `judge:` and the model's name.
    """
    name = name or f"judge:{generator.name}"
    asked: list[tuple[Item, Side, int]] = []
    for number, item in enumerate(items):
        left: Side = "a" if number % 2 == 0 else "b"
        right: Side = "b" if left == "a" else "a"
        asked.append((item, left, 0))
        asked.append((item, right, 1))
    prompts = [_prompt(item, left) for item, left, _ in asked for _ in range(2)]
    scores = generator.logprobs(prompts, ["1", "2"] * len(asked))
    p_left = [_share(scores[2 * n].logprob, scores[2 * n + 1].logprob) for n in range(len(asked))]
    labels = []
    for (item, left, occasion), p in zip(asked, p_left, strict=True):
        sure = max(p, 1 - p)
        strength = 1 + sum(sure >= edge for edge in _EDGES)
        prefers_a = (p >= 0.5) == (left == "a")
        value = strength if prefers_a else -strength
        labels.append(Label(item.id, name, value=value, left=left, occasion=occasion, round=item.round))
    return labels


def _share(first: float, second: float) -> float:
    return 1 / (1 + math.exp(max(-500.0, min(500.0, second - first))))


def _prompt(item: Item, left: Side) -> Dialog:
    told = "\n\n".join(f"{message.role}: {message.content}" for message in item.prompt.messages)
    right: Side = "b" if left == "a" else "a"
    return Dialog.of(("user", _QUESTION.format(prompt=told, left=item.answer(left), right=item.answer(right))))
