"""RefinedWeb's line rules: counters, buttons and menus go; a page that loses too many words goes with them.

Source: Penedo et al., "The RefinedWeb Dataset for Falcon LLM", 2023, appendix G.2.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.steps.step import KEPT, Edit, Edited, StepConfig, Verdict

# the whole line must be a counter: "12 likes and a real sentence" is none
_COUNTER = re.compile(
    r"\W*\d[\d,.]*\s*[KMB]?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?|downvotes?"
    r"|downloads?|views?|followers?)\W*",
    re.IGNORECASE,
)
_CART = re.compile(r"\bitems? in (?:your )?cart\b", re.IGNORECASE)
_MORE = re.compile(r"\s*read more\W*$", re.IGNORECASE)
_SIGN_IN = re.compile(r"^\W*sign[- ]?in\b\W*", re.IGNORECASE)


class RefinedWebConfig(StepConfig):
    """RefinedWeb's line rules."""

    kind: Literal["refinedweb"] = "refinedweb"
    """Which kind of step this is."""
    max_uppercase: float = 0.5
    """Lines with a larger fraction of upper case among their characters go."""
    min_line_words: int = Field(default=2, ge=0)
    """Lines with fewer words go."""
    short_line_words: int = 10
    """In lines of at most so many words, buttons ("Read more", "Sign in") are removed."""
    max_words_removed: float = 0.05
    """A page that lost a larger fraction of its words goes."""


def _edit(documents: Sequence[Document], config: RefinedWebConfig) -> list[Edited]:
    return [_one(document, config) for document in documents]


def _one(document: Document, config: RefinedWebConfig) -> Edited:
    counts = Counter[str]()
    kept: list[str] = []
    before = after = 0
    for line in document.text.split("\n"):
        n_words = len(line.split())
        before += n_words
        if not n_words:
            kept.append(line)
            continue
        rule, left = _line(line, n_words, config)
        if rule:
            counts[rule] += 1
        if left:
            kept.append(left)
            after += len(left.split())
    if not counts:
        return Edited(document)
    edited = document.with_text("\n".join(kept).strip("\n"))
    removed = 1 - after / before if before else 0.0
    if removed > config.max_words_removed:
        return Edited(edited, Verdict(False, "refinedweb: too many words removed", removed), counts)
    return Edited(edited, KEPT, counts)


def _line(line: str, n_words: int, config: RefinedWebConfig) -> tuple[str, str]:
    """The rule that acted, if any, and what is left of the line."""
    letters = line.strip()
    if sum(map(str.isupper, letters)) > config.max_uppercase * len(letters):
        return "upper case lines", ""
    if letters.replace(" ", "").isdigit():
        return "numeric lines", ""
    if _COUNTER.fullmatch(letters):
        return "counters", ""
    if n_words < config.min_line_words:
        return "one-word lines", ""
    if n_words <= config.short_line_words:
        left = _SIGN_IN.sub("", _MORE.sub("", _CART.sub("", line)))
        if left != line:
            return "buttons", left.strip()
    return "", line


REFINEDWEB = Edit(RefinedWebConfig, _edit)
