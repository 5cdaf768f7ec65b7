"""Gopher's rules for web prose: quality and repetition.

Words are what white space separates: the thresholds were made for such words, and a tokenizer that counts
punctuation as words drops many more good pages under the same numbers. A duplicate is a repeat after the first
copy. A frequent n-gram counts only when it occurs at least twice, so a short clean text cannot be dropped for its
only n-gram. Characters covered by duplicated n-grams are counted once, however many n-grams cover them.

Source: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021, appendix A.1.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.filters.verdict import KEPT, FilterConfig, Verdict, above, below, first_no

_BULLETS = ("•", "‣", "▪", "●", "◦", "- ", "* ", "– ")
_ELLIPSES = ("...", "…")
_ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQualityConfig(FilterConfig):
    """Gopher's quality rules."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    """Which kind of filter this is."""
    min_words: int = 50
    """Fewest words."""
    max_words: int = 100_000
    """Most words."""
    min_mean_word_length: float = 3
    """Least mean word length in characters."""
    max_mean_word_length: float = 10
    """Largest mean word length in characters."""
    max_symbol_ratio: float = 0.1
    """Most `#`, and most ellipses, per word."""
    max_bullet_lines: float = 0.9
    """Largest fraction of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Largest fraction of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Least fraction of words with a letter."""
    stop_words: tuple[str, ...] = _ENGLISH
    """Common words of the language."""
    min_stop_words: int = Field(default=2, ge=0)
    """Fewest different stop words."""


class GopherRepetitionConfig(FilterConfig):
    """Gopher's repetition rules; every value is the largest fraction allowed."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    """Which kind of filter this is."""
    max_duplicate_lines: float = 0.30
    """Of lines that repeat an earlier one."""
    max_duplicate_paragraphs: float = 0.30
    """Of paragraphs that repeat an earlier one."""
    max_duplicate_line_characters: float = 0.20
    """Of characters in such lines."""
    max_duplicate_paragraph_characters: float = 0.20
    """Of characters in such paragraphs."""
    max_top_ngram: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Of characters in the most frequent n-gram, for n = 2, 3, 4."""
    max_duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Of characters covered by repeated n-grams, for n = 5 ... 10."""


def gopher_quality(document: Document, config: GopherQualityConfig) -> Verdict:
    """Drops what does not look like running text."""
    text = document.text
    words = text.split()
    if not words:
        return Verdict(False, "gopher_quality: too few words", 0)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    n = len(words)
    mean_length = sum(map(len, words)) / n
    ellipses = sum(text.count(mark) for mark in _ELLIPSES)
    alphabetic = sum(1 for word in words if word.isalpha() or any(map(str.isalpha, word))) / n
    bullets = sum(1 for line in lines if line.startswith(_BULLETS)) / len(lines)
    trailing = sum(1 for line in lines if line.endswith(_ELLIPSES)) / len(lines)
    name = "gopher_quality"
    verdict = first_no(
        below(f"{name}: too few words", n, config.min_words),
        above(f"{name}: too many words", n, config.max_words),
        below(f"{name}: short words", mean_length, config.min_mean_word_length),
        above(f"{name}: long words", mean_length, config.max_mean_word_length),
        above(f"{name}: hash signs", text.count("#") / n, config.max_symbol_ratio),
        above(f"{name}: ellipses", ellipses / n, config.max_symbol_ratio),
        above(f"{name}: bullet lines", bullets, config.max_bullet_lines),
        above(f"{name}: ellipsis lines", trailing, config.max_ellipsis_lines),
        below(f"{name}: words without letters", alphabetic, config.min_alphabetic_words),
    )
    if not verdict.keep or config.min_stop_words == 0:
        return verdict
    plain = {word.strip(".,;:!?\"'()[]").lower() for word in words}
    common = sum(1 for word in config.stop_words if word in plain)
    return below(f"{name}: few stop words", common, config.min_stop_words)


def gopher_repetition(document: Document, config: GopherRepetitionConfig) -> Verdict:
    """Drops what says the same again and again."""
    text = document.text.strip()
    if not text:
        return KEPT
    name = "gopher_repetition"
    lines = [line for line in text.split("\n") if line.strip()]
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    for label, parts, most, most_characters in (
        ("lines", lines, config.max_duplicate_lines, config.max_duplicate_line_characters),
        ("paragraphs", paragraphs, config.max_duplicate_paragraphs, config.max_duplicate_paragraph_characters),
    ):
        repeats, characters = duplicates(parts)
        verdict = first_no(
            above(f"{name}: duplicate {label}", repeats / len(parts), most),
            above(f"{name}: duplicate {label} characters", characters / len(text), most_characters),
        )
        if not verdict.keep:
            return verdict
    words = text.split()
    lengths = list(map(len, words))
    for n, limit in enumerate(config.max_top_ngram, start=2):
        verdict = above(f"{name}: top {n}-gram", top_ngram_characters(words, n) / len(text), limit)
        if not verdict.keep:
            return verdict
    for n, limit in enumerate(config.max_duplicate_ngrams, start=5):
        covered = duplicate_ngram_characters(words, lengths, n) / len(text)
        if covered > limit:
            return above(f"{name}: duplicate {n}-grams", covered, limit)
        # a repeated (n+1)-gram is made of repeated n-grams, so coverage can only fall as n grows
        if covered <= min(config.max_duplicate_ngrams):
            break
    return KEPT


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and the characters in them."""
    seen: set[str] = set()
    repeats = characters = 0
    for part in parts:
        if part in seen:
            repeats += 1
            characters += len(part)
        seen.add(part)
    return repeats, characters


def top_ngram_characters(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram (the longest of equally frequent ones); 0 if unique."""
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    most = max(grams.values(), default=0)
    if most < 2:
        return 0
    return most * max(sum(map(len, gram)) for gram, count in grams.items() if count == most)


def duplicate_ngram_characters(words: Sequence[str], lengths: Sequence[int], n: int) -> int:
    """Characters of the words that lie in an n-gram seen before, each word counted once."""
    seen: set[tuple[str, ...]] = set()
    spans: list[tuple[int, int]] = []
    for at, gram in enumerate(zip(*(words[i:] for i in range(n)), strict=False)):
        if gram in seen:
            if spans and spans[-1][1] >= at:
                spans[-1] = (spans[-1][0], at + n)
            else:
                spans.append((at, at + n))
        else:
            seen.add(gram)
    assert all(a[1] < b[0] for a, b in pairwise(spans)), "spans overlap"
    return sum(sum(lengths[start:stop]) for start, stop in spans)
