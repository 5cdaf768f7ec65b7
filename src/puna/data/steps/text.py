"""Is it text at all, and of a sensible length? The cheapest filters, to be listed first."""

import re
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.filters.verdict import FilterConfig, Verdict, above, below, first_no

# C0 controls without tab, line feed, form feed and carriage return; C1 controls; the replacement character
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]")


class LengthConfig(FilterConfig):
    """Bounds on the length of a document."""

    kind: Literal["length"] = "length"
    """Which kind of filter this is."""
    min_characters: int = Field(default=1, ge=0)
    """Shorter documents (without outer white space) are dropped."""
    max_characters: int = Field(default=10_000_000, ge=1)
    """Longer documents are dropped."""


class NonTextConfig(FilterConfig):
    """Control and replacement characters: binary data or a wrong decoding."""

    kind: Literal["non_text"] = "non_text"
    """Which kind of filter this is."""
    max_fraction: float = Field(default=0.005, ge=0, le=1)
    """Largest fraction of such characters."""


def length(document: Document, config: LengthConfig) -> Verdict:
    """Drops the too short and the too long."""
    n = len(document.text.strip())
    return first_no(
        below("length: too short", n, config.min_characters), above("length: too long", n, config.max_characters)
    )


def non_text(document: Document, config: NonTextConfig) -> Verdict:
    """Drops what is not text."""
    if not document.text:
        return Verdict(True)
    fraction = sum(1 for _ in _NOT_TEXT.finditer(document.text)) / len(document.text)
    return above("non_text", fraction, config.max_fraction)
