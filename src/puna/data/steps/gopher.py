"""Gopher's rules for web prose: quality and repetition.

Words are what white space separates: the thresholds were made for such words, and a tokenizer that counts
punctuation as words drops many more good pages under the same numbers. A duplicate is a repeat after the first
copy. A frequent n-gram counts only when it occurs at least twice, so a short clean text cannot be dropped for its
only n-gram. Characters covered by duplicated n-grams are counted once, however many n-grams cover them.

Source: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021, appendix A.1.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, below, each, first_no
from puna.data.words import words

BULLETS = ("•", "‣", "▪", "●", "◦", "- ", "* ", "– ")
_ELLIPSES = ("...", "…")
_ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQualityConfig(StepConfig):
    """Gopher's quality rules."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    """Which kind of step this is."""
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


class GopherRepetitionConfig(StepConfig):
    """Gopher's repetition rules; every value is the largest fraction allowed."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    """Which kind of step this is."""
    max_duplicate_lines: float = 0.30
    """Of lines that repeat an earlier one."""
    max_duplicate_paragraphs: float = 0.30
    """Of paragraphs that repeat an earlier one."""
    max_duplicate_line_characters: float = 0.20
    """Of characters in such lines."""
    max_duplicate_paragraph_characters: float = 0.20
    """Of characters in such paragraphs."""
    max_top_ngram: tuple[float, float, float] = (0.20, 0.18, 0.16)
    """Of characters in the most frequent n-gram, for n = 2, 3, 4."""
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Of characters covered by repeated n-grams, for n = 5 ... 10."""


def _quality(document: Document, config: GopherQualityConfig) -> Scores:
    text = document.text
    found = words(text, document.language)
    if not found:
        return {"words": 0}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    n = len(found)
    common = set(config.stop_words)
    distinct = Counter(found)
    plain = common & distinct.keys()
    if len(plain) < len(common):
        plain |= common & {word.strip(".,;:!?\"'()[]").lower() for word in distinct}
    return {
        "words": n,
        "mean_word_length": sum(map(len, found)) / n,
        "hash_ratio": text.count("#") / n,
        "ellipsis_ratio": sum(text.count(mark) for mark in _ELLIPSES) / n,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.endswith(_ELLIPSES) for line in lines) / len(lines),
        "alphabetic_words": sum(
            times for word, times in distinct.items() if word.isalpha() or any(map(str.isalpha, word))
        )
        / n,
        "stop_words": len(plain),
    }


def _judge_quality(scores: Scores, config: GopherQualityConfig) -> Verdict:
    name, n = "gopher_quality", scores["words"]
    if not n:
        return below(f"{name}: too few words", 0, max(config.min_words, 1))
    return first_no(
        below(f"{name}: too few words", n, config.min_words),
        above(f"{name}: too many words", n, config.max_words),
        below(f"{name}: short words", scores["mean_word_length"], config.min_mean_word_length),
        above(f"{name}: long words", scores["mean_word_length"], config.max_mean_word_length),
        above(f"{name}: hash signs", scores["hash_ratio"], config.max_symbol_ratio),
        above(f"{name}: ellipses", scores["ellipsis_ratio"], config.max_symbol_ratio),
        above(f"{name}: bullet lines", scores["bullet_lines"], config.max_bullet_lines),
        above(f"{name}: ellipsis lines", scores["ellipsis_lines"], config.max_ellipsis_lines),
        below(f"{name}: words without letters", scores["alphabetic_words"], config.min_alphabetic_words),
        below(f"{name}: few stop words", scores["stop_words"], config.min_stop_words),
    )


def _repetition(document: Document, config: GopherRepetitionConfig) -> Scores:
    text = document.text.strip()
    if not text:
        return {}
    scores: dict[str, float] = {}
    for label, separator in (("line", "\n"), ("paragraph", "\n\n")):
        parts = [part for part in text.split(separator) if part.strip()]
        repeats, characters = duplicates(parts)
        scores[f"duplicate_{label}s"] = repeats / len(parts)
        scores[f"duplicate_{label}_characters"] = characters / len(text)
    found = words(text, document.language)
    ids: dict[str, int] = {}
    numbers = [ids.setdefault(word, len(ids)) for word in found]
    lengths = list(map(len, found))
    for n in (2, 3, 4):
        counts = count_ngrams(numbers, n)
        scores[f"top_{n}gram"] = top_ngram_characters(counts, numbers, lengths) / len(text)
    for n, covered in duplicate_ngram_characters(numbers, lengths, range(5, 11)).items():
        scores[f"duplicate_{n}grams"] = covered / len(text)
    return scores


def _judge_repetition(scores: Scores, config: GopherRepetitionConfig) -> Verdict:
    name = "gopher_repetition"
    rules = [
        ("duplicate lines", "duplicate_lines", config.max_duplicate_lines),
        ("duplicate lines characters", "duplicate_line_characters", config.max_duplicate_line_characters),
        ("duplicate paragraphs", "duplicate_paragraphs", config.max_duplicate_paragraphs),
        (
            "duplicate paragraphs characters",
            "duplicate_paragraph_characters",
            config.max_duplicate_paragraph_characters,
        ),
        *((f"top {n}-gram", f"top_{n}gram", limit) for n, limit in enumerate(config.max_top_ngram, start=2)),
        *(
            (f"duplicate {n}-grams", f"duplicate_{n}grams", limit)
            for n, limit in enumerate(config.max_duplicate_ngrams, start=5)
        ),
    ]
    return first_no(*(above(f"{name}: {rule}", scores.get(score, 0.0), limit) for rule, score, limit in rules))


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and the characters in them."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    repeats = characters = 0
    for part in parts:
        if part in seen:
            repeats += 1
            characters += len(part)
        seen.add(part)
    return repeats, characters


def count_ngrams(numbers: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    """How often each n-gram occurs.

    Args:
        numbers: The words as numbers, equal words the same number.
        n: Words in an n-gram.
    """
    return Counter(_ngrams(numbers, n))


def top_ngram_characters(counts: Counter[tuple[int, ...]], numbers: Sequence[int], lengths: Sequence[int]) -> int:
    """Characters in all occurrences of the most frequent n-gram (the longest of equally frequent ones); 0 if unique.

    Args:
        counts: Of the n-grams.
        numbers: The words as numbers.
        lengths: Characters of each word.
    """
    most = max(counts.values(), default=0)
    if most < 2:
        return 0
    length = dict(zip(numbers, lengths, strict=True))
    return most * max(sum(length[word] for word in gram) for gram, count in counts.items() if count == most)


def duplicate_ngram_characters(numbers: Sequence[int], lengths: Sequence[int], sizes: Sequence[int]) -> dict[int, int]:
    """Characters of the words that lie in an n-gram seen before, each word counted once, for each n.

    An n-gram that repeats begins with an (n-1)-gram that repeats, so each n looks only where the one before it found
    repeats: few places.

    Args:
        numbers: The words as numbers, equal words the same number.
        lengths: Characters of each word.
        sizes: The n, rising.
    """
    covered = dict.fromkeys(sizes, 0)
    places: Sequence[int] = range(len(numbers))
    for n in sizes:
        places = places[: bisect_right(places, len(numbers) - n)]
        grams = [tuple(numbers[at : at + n]) for at in places] if n > sizes[0] else [*_ngrams(numbers, n)]
        counts = Counter(grams)
        if len(counts) == len(grams):
            break
        seen: set[tuple[int, ...]] = set()
        repeated: list[int] = []
        end = 0
        for at, gram in zip(places, grams, strict=True):
            if counts[gram] == 1:
                continue
            repeated.append(at)
            if gram in seen:
                start = max(at, end)
                end = at + n
                covered[n] += sum(lengths[start:end])
            else:
                seen.add(gram)
        places = repeated
    return covered


def _ngrams(numbers: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(numbers[i:] for i in range(n)), strict=False)


GOPHER_QUALITY = Filter(
    GopherQualityConfig,
    each(_quality),
    _judge_quality,
    thresholds=(
        "min_words",
        "max_words",
        "min_mean_word_length",
        "max_mean_word_length",
        "max_symbol_ratio",
        "max_bullet_lines",
        "max_ellipsis_lines",
        "min_alphabetic_words",
        "min_stop_words",
    ),
)
GOPHER_REPETITION = Filter(
    GopherRepetitionConfig,
    each(_repetition),
    _judge_repetition,
    thresholds=tuple(name for name in GopherRepetitionConfig.model_fields if name.startswith("max_")),
)
