"""FineWeb's own rules, found by comparing histograms of good and bad crawls.

Two values of `max_duplicate_line_characters` are published: 0.01 in the code that made FineWeb, 0.1 in FineWeb-2, whose
authors say that they changed it. The default is 0.1: on real pages 0.01 drops twelve times as many.

Source: Penedo et al., "The FineWeb Datasets", 2024, section 3.6; FineWeb-2's configuration, 2025.
"""

from typing import Literal

from puna.data.document import Document
from puna.data.steps.gopher import duplicates
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, below, each, first_no
from puna.data.words import words

END_MARKS = (
    ".", "!", "?", "…", "。", "！", "？", "．", "।", "॥", "؟", "۔", "։", "။", "።", "᙮", "᠃", "꓿", "꘎", "꛳",
    '"', "”", "'", "’",
)  # fmt: skip


class FineWebConfig(StepConfig):
    """FineWeb's quality rules."""

    kind: Literal["fineweb"] = "fineweb"
    """Which kind of step this is."""
    min_end_marks: float = 0.12
    """Least fraction of lines that end in a mark of a sentence's end."""
    short_line_characters: int = 30
    """A line of at most so many characters is short."""
    max_short_lines: float = 0.67
    """Largest fraction of short lines."""
    max_duplicate_line_characters: float = 0.1
    """Largest fraction of characters in lines that repeat an earlier one."""
    max_newlines: float = 0.3
    """Most line ends per word."""


def _measure(document: Document, config: FineWebConfig) -> Scores:
    text = document.text
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return {"lines": 0}
    _, characters = duplicates(lines)
    return {
        "lines": len(lines),
        "end_marks": sum(line.rstrip().endswith(END_MARKS) for line in lines) / len(lines),
        "short_lines": sum(len(line) <= config.short_line_characters for line in lines) / len(lines),
        "duplicate_line_characters": characters / max(1, len(text.replace("\n", ""))),
        "newlines": text.count("\n") / max(1, len(words(text, document.language))),
    }


def _judge(scores: Scores, config: FineWebConfig) -> Verdict:
    if not scores["lines"]:
        return Verdict(False, "fineweb: empty", 0)
    return first_no(
        below("fineweb: few lines end a sentence", scores["end_marks"], config.min_end_marks),
        above("fineweb: short lines", scores["short_lines"], config.max_short_lines),
        above("fineweb: duplicate lines", scores["duplicate_line_characters"], config.max_duplicate_line_characters),
        above("fineweb: line ends", scores["newlines"], config.max_newlines),
    )


FINEWEB = Filter(
    FineWebConfig,
    each(_measure),
    _judge,
    thresholds=("min_end_marks", "max_short_lines", "max_duplicate_line_characters", "max_newlines"),
)
