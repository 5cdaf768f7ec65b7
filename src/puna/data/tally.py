"""Counting one task: what was read, what each step let through, changed and dropped, what is left.

A counter is a dict of integers, so counters of tasks and sources add up: `documents`, `bytes`, with a tokenizer
`tokens`; where a sample of the documents is counted `sampled_documents`, `sampled_bytes`, `sampled_tokens` and the sums
of squares and products that a standard error needs.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from puna.data.document import Size
from puna.data.token_counts import TokenCounter


class Tally:
    """The counters of one task.

    Args:
        counter: What counts tokens, None for nothing.

    Attributes:
        read: What came in.
        steps: By step `in`, `out`, `dropped` by reason, `edits` by what was done.
        kept: What is left.
        languages: What is left, by language.
        licences: What is left, by licence.
        problems: What could not be read, by reason.
        skipped: Records that are no document, by kind.
    """

    def __init__(self, counter: TokenCounter | None) -> None:
        self._sampled = counter is not None and counter.fraction < 1
        self.read: dict[str, int] = {}
        self.steps: dict[str, Any] = {}
        self.kept: dict[str, int] = {}
        self.languages: dict[str, dict[str, int]] = {}
        self.licences: dict[str, dict[str, int]] = {}
        self.problems = Counter[str]()
        self.skipped = Counter[str]()

    def step(self, name: str) -> dict[str, Any]:
        """A step's counters."""
        nothing = {"documents": 0, "bytes": 0}
        return self.steps.setdefault(name, {"in": {**nothing}, "out": {**nothing}, "dropped": {}, "edits": {}})

    def passed(self, step: str, before: Size, after: Size) -> None:
        """A document went through a step."""
        record = self.step(step)
        self.count(record["in"], before)
        self.count(record["out"], after)

    def dropped(self, step: str, reason: str, size: Size) -> None:
        """A step dropped a document."""
        record = self.step(step)
        self.count(record["in"], size)
        self.count(record["dropped"].setdefault(reason, {}), size)

    def edited(self, step: str, counts: Mapping[str, int]) -> None:
        """A step changed a document, by what it did."""
        edits = self.step(step)["edits"]
        for name, n in counts.items():
            edits[name] = edits.get(name, 0) + n

    def left(self, size: Size, *, language: str | None = None, licence: str = "") -> None:
        """A document is left at the end of the task; with its language in the last pass."""
        self.count(self.kept, size)
        if language is not None:
            self.count(self.languages.setdefault(language, {}), size)
            self.count(self.licences.setdefault(licence, {}), size)

    def record(self) -> dict[str, Any]:
        """Everything, for the task's record."""
        names = ("read", "steps", "kept", "languages", "licences")
        counted = {"problems": dict(self.problems), "skipped": dict(self.skipped)}
        return {name: getattr(self, name) for name in names} | counted

    def count(self, counter: dict[str, int], size: Size) -> None:
        """Count one document."""
        n_bytes, n_tokens = size
        found = {"documents": 1, "bytes": n_bytes}
        if n_tokens is not None and self._sampled:
            found |= {"sampled_documents": 1, "sampled_bytes": n_bytes, "sampled_tokens": n_tokens}
            found |= {"tokens_tokens": n_tokens**2, "tokens_bytes": n_tokens * n_bytes, "bytes_bytes": n_bytes**2}
        elif n_tokens is not None:
            found["tokens"] = n_tokens
        for name, value in found.items():
            counter[name] = counter.get(name, 0) + value
