"""Solved examples before the question: as one text for base models, as turns of a dialog for chat models.

The text form is a line `Question: ...` and a line `Answer: ...`, with an empty line between examples, and ends in
`Answer:` without a space, because tokenizers join a space with the word after it: the continuation brings its own.
Examples come from the train split and are the same for all items of a group, so that runs are deterministic and
prefixes can be shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from puna.core.dialog import Dialog, Message

TEXT_STOP = ("\nQuestion:", "\n\n")
"""Where the answer to a text prompt ends, when answers may have several lines."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A solved example."""

    question: str
    answer: str


def text_prompt(shots: Sequence[Shot], question: str, *, instruction: str = "") -> str:
    """Few-shot prompt for a base model.

    Args:
        shots: Solved examples, in order.
        question: The question to be answered.
        instruction: A line before all of it.

    Returns:
        Text that ends in `Answer:`.
    """
    blocks = [instruction] if instruction else []
    blocks += [f"Question: {shot.question}\nAnswer: {shot.answer}" for shot in shots]
    blocks.append(f"Question: {question}\nAnswer:")
    return "\n\n".join(blocks)


def dialog_prompt(shots: Sequence[Shot], question: str, *, system: str = "") -> Dialog:
    """Few-shot prompt for a chat model: each example is a user's and an assistant's turn.

    Args:
        shots: Solved examples, in order.
        question: The last user turn.
        system: System prompt, or none.

    Returns:
        A dialog that ends with the user's question.
    """
    messages = [Message("system", system)] if system else []
    for shot in shots:
        messages += [Message("user", shot.question), Message("assistant", shot.answer)]
    return Dialog((*messages, Message("user", question)))
