"""Source code without the licence at its head: what two files share there says nothing about what they do.

The comment blocks before the first line of code are looked at one by one; a block that speaks of copyright, licence or
warranty goes, a block that describes the file stays. Only comparisons use this: no text is changed.
"""

import re

from puna.data.document import Document
from puna.data.sources.code_tree import known_languages

_LEGAL = re.compile(
    r"copyright|\(c\) ?\d{4}|©|licen[cs]ed? |licen[cs]e\b|SPDX-|all rights reserved|permission is hereby|"
    r"redistribution and use|without warranty|public domain",
    re.IGNORECASE,
)
_PAIRS = {"/*": "*/", '"""': '"""', "'''": "'''", "<!--": "-->", "(*": "*)", "{-": "-}"}
_LINE = re.compile(r"(?:#(?![a-z!])|//|--|;|%|!|REM\b|dnl\b)", re.IGNORECASE)  # not `#include`, not `#!`
_SKIPPED = re.compile(r"\s*(?:#!.*|<\?php.*|<\?xml.*|<!doctype.*)?\Z", re.IGNORECASE)


def is_code(document: Document) -> bool:
    """Whether a document is source code, by its domain or its language."""
    return document.domain == "code" or document.language.lower() in known_languages()


def without_licence_header(text: str) -> str:
    """The text without legal comment blocks before its first line of code; the text itself where there is none."""
    if not _LEGAL.search(text):
        return text
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    at = 0
    while at < len(lines):
        end = _comment_end(lines, at)
        if end == at:
            if not _SKIPPED.match(lines[at].strip()):
                break
            kept.append(lines[at])
            at += 1
            continue
        block = "".join(lines[at:end])
        if not _LEGAL.search(block):
            kept.append(block)
        at = end
    return "".join([*kept, *lines[at:]])


def _comment_end(lines: list[str], at: int) -> int:
    """One past the last line of the comment that begins at a line; the line itself where none begins."""
    line = lines[at].strip()
    for begin, end in _PAIRS.items():
        if line.startswith(begin):
            if end in line[len(begin) :]:
                return at + 1
            for number in range(at + 1, len(lines)):
                if end in lines[number]:
                    return number + 1
            return at  # it is never closed: no comment
    while at < len(lines) and _LINE.match(lines[at].strip()):
        at += 1
    return at
