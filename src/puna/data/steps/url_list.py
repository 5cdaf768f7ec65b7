"""Block lists over addresses: domains, words and parts of words in URLs.

Lists are files that the user gives, one entry a line, `#` begins a comment. A domain blocks its subdomains. Words are
compared in lower case with the words of the whole address, parts with the address itself.

Source: the URL filter of RefinedWeb, Penedo et al. 2023, appendix G.1.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from puna.core.errors import MissingError
from puna.data.document import Document
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, each, first_no

_WORD = re.compile(r"[^\W_]+")


class UrlListConfig(StepConfig):
    """Block lists over addresses."""

    kind: Literal["url_list"] = "url_list"
    """Which kind of step this is."""
    domains_file: Path | None = None
    """Domains to block, with their subdomains."""
    words_file: Path | None = None
    """Words; one of them in the address blocks it."""
    soft_words_file: Path | None = None
    """Weaker words; `soft_words` of them block it."""
    parts_file: Path | None = None
    """Parts of words; one of them anywhere in the address blocks it."""
    soft_words: int = Field(default=2, ge=1)
    """How many weak words block an address."""
    block_domains: tuple[str, ...] = ()
    """Domains to block, written into the recipe."""


@lru_cache(maxsize=32)
def entries(path: Path) -> frozenset[str]:
    """A list's entries in lower case."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingError(f"the list {path} cannot be read: {error.strerror}") from error
    return frozenset(entry for line in lines if (entry := line.partition("#")[0].strip().lower()))


def host_of(url: str) -> str:
    """Host of an address in lower case, without `www.`; empty when there is none."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


def _measure(document: Document, config: UrlListConfig) -> Scores:
    url = document.url.lower()
    host = host_of(url)
    labels = host.split(".")
    suffixes = {".".join(labels[i:]) for i in range(len(labels))}
    blocked = set(config.block_domains) | (entries(config.domains_file) if config.domains_file else frozenset())
    words = set(_WORD.findall(url))
    plain = re.sub(r"[^a-z]", "", url)
    return {
        "domain": float(not suffixes.isdisjoint(blocked)),
        "words": len(words & entries(config.words_file)) if config.words_file else 0,
        "soft_words": len(words & entries(config.soft_words_file)) if config.soft_words_file else 0,
        "parts": sum(part in plain for part in entries(config.parts_file)) if config.parts_file else 0,
    }


def _judge(scores: Scores, config: UrlListConfig) -> Verdict:
    return first_no(
        above("url_list: blocked domain", scores["domain"], 0),
        above("url_list: blocked word", scores["words"], 0),
        above("url_list: weak words", scores["soft_words"], config.soft_words - 1),
        above("url_list: part of a word", scores["parts"], 0),
    )


URL_LIST = Filter(UrlListConfig, each(_measure), _judge, thresholds=("soft_words",))
