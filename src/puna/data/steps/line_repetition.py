"""Llama 3's rule for lines that say the same again and again: coverage by repeated n-grams, line by line.

Logs and error messages can be long lines that occur once, so removing repeated lines does not find them. No threshold
is published; the default is a cautious one.

Source: "The Llama 3 Herd of Models" (arXiv:2407.21783), section 3.1.1; the ratio is Rae et al. 2021's.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.steps.gopher import duplicate_ngram_characters
from puna.data.steps.step import KEPT, Edit, Edited, StepConfig, Verdict
from puna.data.words import words


class LineRepetitionConfig(StepConfig):
    """Removes lines covered by their own repeated n-grams."""

    kind: Literal["line_repetition"] = "line_repetition"
    """Which kind of step this is."""
    n: int = Field(default=3, ge=1)
    """Words of an n-gram."""
    min_words: int = Field(default=20, ge=1)
    """Shorter lines are left alone."""
    max_coverage: float = Field(default=0.5, gt=0, le=1)
    """Lines with a larger fraction of their word characters in repeated n-grams go."""


def _edit(documents: Sequence[Document], config: LineRepetitionConfig) -> list[Edited]:
    return [_one(document, config) for document in documents]


def coverage(line: str, n: int, language: str = "") -> float:
    """Fraction of a line's word characters that lie in an n-gram seen earlier in the line."""
    found = words(line, language)
    ids: dict[str, int] = {}
    lengths = list(map(len, found))
    numbers = [ids.setdefault(word, len(ids)) for word in found]
    return duplicate_ngram_characters(numbers, lengths, [n])[n] / max(1, sum(lengths))


def _one(document: Document, config: LineRepetitionConfig) -> Edited:
    kept: list[str] = []
    gone = 0
    for line in document.text.split("\n"):
        # a line cannot have more words than characters over two, plus one
        long = len(line) // 2 + 1 >= config.min_words and len(words(line, document.language)) >= config.min_words
        if long and coverage(line, config.n, document.language) > config.max_coverage:
            gone += 1
        else:
            kept.append(line)
    if not gone:
        return Edited(document)
    edited = document.with_text("\n".join(kept))
    if not edited.text.strip():
        return Edited(edited, Verdict(False, "line_repetition: nothing left", gone), {"repetitive lines": gone})
    return Edited(edited, KEPT, {"repetitive lines": gone})


LINE_REPETITION = Edit(LineRepetitionConfig, _edit)
