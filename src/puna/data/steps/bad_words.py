"""Counting dirty words, for adult pages that no block list of domains knows, in whatever languages lists are given for.

A list is a file called after its language (`en.txt`, or `en`), one word or phrase a line, in a folder that the user
gives (LDNOOBW's 28 lists fit as they are). Words are matched between non-word characters; in Chinese, Japanese and
Thai, which have no such borders, anywhere, but for a few entries that are harmless parts of common words.

Source: Raffel et al. 2020, section 2.2, and its multilingual form in Xue et al. 2021 (mC4): the exemptions. Llama 3
(arXiv:2407.21783), section 3.1.1, counts; it publishes no threshold.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from puna.core.errors import MissingError
from puna.data.document import Document
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, each, first_no
from puna.data.words import is_unspaced, words

_HARMLESS = {"ja": {"sm", "グロ", "女の子"}, "zh": {"性"}}


class BadWordsConfig(StepConfig):
    """Counts the words of a list."""

    kind: Literal["bad_words"] = "bad_words"
    """Which kind of step this is."""
    lists: Path
    """Folder with a file for each language."""
    max_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of the words."""
    max_count: int | None = Field(default=None, ge=0)
    """Most occurrences whatever the length; 0 is C4's rule, which also drops encyclopaedias; none is no limit."""
    min_count: int = Field(default=2, ge=1)
    """Fewer occurrences never drop a page."""


@lru_cache(maxsize=64)
def _pattern(folder: Path, language: str) -> re.Pattern[str] | None:
    if not folder.is_dir():
        raise MissingError(f"the folder of word lists {folder} is not there. Set lists= to one.")
    path = next((p for p in (folder / f"{language}.txt", folder / language) if p.is_file()), None)
    if path is None:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {line.strip().lower() for line in lines if line.strip()} - _HARMLESS.get(language, set())
    if not found:
        return None
    one_of = "|".join(map(re.escape, sorted(found, key=lambda word: (-len(word), word))))
    return re.compile(one_of if is_unspaced(language) else rf"(?<!\w)(?:{one_of})(?!\w)")


def _measure(document: Document, config: BadWordsConfig) -> Scores:
    pattern = _pattern(config.lists, document.language.partition("-")[0])
    if pattern is None:
        return {"count": 0, "fraction": 0.0}
    count = sum(1 for _ in pattern.finditer(document.text.lower()))
    return {"count": count, "fraction": count / max(1, len(words(document.text, document.language))) if count else 0.0}


def _judge(scores: Scores, config: BadWordsConfig) -> Verdict:
    most = config.max_count if config.max_count is not None else float("inf")
    verdict = above("bad_words: too many", scores["count"], most)
    if scores["count"] < config.min_count:
        return verdict
    return first_no(verdict, above("bad_words: too dense", scores["fraction"], config.max_fraction))


BAD_WORDS = Filter(BadWordsConfig, each(_measure), _judge, thresholds=("max_fraction", "max_count", "min_count"))
