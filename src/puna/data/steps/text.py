"""Is it text at all, and of a sensible length? The cheapest filters, to be listed first."""

import re
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, below, each, first_no

# C0 controls without tab, line feed, form feed and carriage return; C1 controls; the replacement character
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]")


class LengthConfig(StepConfig):
    """Bounds on the length of a document."""

    kind: Literal["length"] = "length"
    """Which kind of step this is."""
    min_characters: int = Field(default=1, ge=0)
    """Shorter documents (without outer white space) are dropped."""
    max_characters: int = Field(default=10_000_000, ge=1)
    """Longer documents are dropped."""


class NonTextConfig(StepConfig):
    """Control and replacement characters: binary data or a wrong decoding."""

    kind: Literal["non_text"] = "non_text"
    """Which kind of step this is."""
    max_fraction: float = Field(default=0.005, ge=0, le=1)
    """Largest fraction of such characters."""


def _length(document: Document, config: LengthConfig) -> Scores:
    return {"characters": len(document.text.strip())}


def _judge_length(scores: Scores, config: LengthConfig) -> Verdict:
    n = scores["characters"]
    return first_no(
        below("length: too short", n, config.min_characters), above("length: too long", n, config.max_characters)
    )


def _non_text(document: Document, config: NonTextConfig) -> Scores:
    text = document.text
    return {"fraction": sum(1 for _ in _NOT_TEXT.finditer(text)) / len(text) if text else 0.0}


def _judge_non_text(scores: Scores, config: NonTextConfig) -> Verdict:
    return above("non_text: control characters", scores["fraction"], config.max_fraction)


LENGTH = Filter(LengthConfig, each(_length), _judge_length, thresholds=("min_characters", "max_characters"))
NON_TEXT = Filter(NonTextConfig, each(_non_text), _judge_non_text, thresholds=("max_fraction",))
