"""C4's rules: lines that look like sentences stay, pages of code and placeholder text go.

The paper and the released code differ; these are the released code's numbers: a line needs five words, a page three
sentences. Its bad-word rule is `bad_words`, its deduplication of three-sentence spans is `line_dedup` and `substring`.

Source: Raffel et al., "Exploring the Limits of Transfer Learning", 2020, section 2.2; the TensorFlow Datasets script.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.steps.step import KEPT, Edit, Edited, StepConfig, Verdict

END_MARKS = (".", "?", "!", '"', "。", "？", "！", "।", "؟", "”", "။", "።")
_ELLIPSIS = "..."
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
_SENTENCE = re.compile(r"[.!?…。！？।؟](?:[\"'”’)\]]*)(?:\s+|$)|\n")


class C4Config(StepConfig):
    """C4's line and page rules."""

    kind: Literal["c4"] = "c4"
    """Which kind of step this is."""
    end_marks: bool = True
    """Drop lines that do not end in a mark of a sentence's end. FineWeb left this rule out."""
    min_line_words: int = Field(default=5, ge=0)
    """Fewest words of a line; datatrove takes 3."""
    min_sentences: int = Field(default=3, ge=0)
    """Fewest sentences of a page; datatrove takes 5."""
    max_word_characters: int = Field(default=1000, ge=1)
    """Lines with a longer word go."""
    javascript: bool = True
    """Drop lines that say javascript."""
    policy: bool = True
    """Drop lines about cookies and terms of use."""
    lorem_ipsum: bool = True
    """Drop pages with placeholder text."""
    curly_brackets: bool = True
    """Drop pages with a `{`: most are code."""
    citations: bool = True
    """Remove `[1]`, `[edit]` and `[citation needed]`."""


def _edit(documents: Sequence[Document], config: C4Config) -> list[Edited]:
    return [_one(document, config) for document in documents]


def _one(document: Document, config: C4Config) -> Edited:
    counts = Counter[str]()
    kept: list[str] = []
    sentences = 0
    lowered = document.text.lower()
    # the page rules look at lines that the line rules leave, as the released code does; most pages have no such line
    suspicious = (config.lorem_ipsum and "lorem ipsum" in lowered) or (config.curly_brackets and "{" in lowered)
    for raw in document.text.split("\n"):
        line = raw.strip()
        if not line:
            continue
        if config.citations and "[" in line:
            line = CITATION.sub("", line).strip()
        rule = _line_rule(line, config)
        if rule:
            counts[rule] += 1
            continue
        if suspicious:
            if config.lorem_ipsum and "lorem ipsum" in line.lower():
                return Edited(document, Verdict(False, "c4: lorem ipsum", 1), counts)
            if config.curly_brackets and "{" in line:
                return Edited(document, Verdict(False, "c4: curly bracket", 1), counts)
        sentences += sentences_in(line)
        kept.append(line)
    edited = document.with_text("\n".join(kept))
    if sentences < config.min_sentences:
        return Edited(edited, Verdict(False, "c4: too few sentences", sentences), counts)
    return Edited(edited, KEPT, counts)


def _line_rule(line: str, config: C4Config) -> str:
    words = line.split()
    if config.max_word_characters < len(line) and any(len(word) > config.max_word_characters for word in words):
        return "lines with a long word"
    if config.end_marks and (not line.endswith(END_MARKS) or line.endswith(_ELLIPSIS)):
        return "lines without an end mark"
    if len(words) < config.min_line_words:
        return "short lines"
    lowered = line.lower()
    if config.javascript and "javascript" in lowered:
        return "lines about javascript"
    if config.policy and any(phrase in lowered for phrase in POLICY):
        return "lines about policy"
    return ""


def sentences_in(line: str) -> int:
    """Sentences of a line: at least one, and one more for each end inside."""
    return max(1, sum(1 for part in _SENTENCE.split(line) if part.strip()))


C4 = Edit(C4Config, _edit)
