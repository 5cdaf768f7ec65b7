"""The contract of a curation step: three forms, one ordered list in the recipe.

    [[steps]] kind = "..."      asked in the recipe's order

`Filter`   measures documents and judges by the measures. Scores are stored once, for every document, so that a changed
           threshold needs no second look at the text.
`Edit`     changes documents: masks, cuts lines, finds the language. It may drop one, with a reason.
`Barrier`  needs all documents at once: deduplication, decontamination, sampling, a corpus-wide distribution. While
           documents stream by it writes *features*, one row a document; when all tasks are done it *decides* over the
           features alone, and writes for each task one row a document: keep or drop, reason, value, spans to cut.

The engine (`passes.py`) fuses filters and edits between two barriers into one pass over the text, and lets barriers
that follow each other share a pass: the features of all are written while the text is in memory, then each decides in
turn over those that the ones before left alive. A barrier that cuts text ends its group, since what follows must see
the shorter text.

Every function here is of module level (it travels to worker processes by name), gets its config as an argument, and is
a pure function of its arguments: no clock, no random state, no order of workers. Models are loaded once a process, by a
`functools.lru_cache` over their path.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, model_validator

from puna.core.config import Config
from puna.data.document import Document, Scalar


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step says of a document.

    Attributes:
        keep: Whether it stays.
        reason: `KIND: rule` that decided; stable, since it is counted. `"kept"` otherwise.
        value: What was measured against the rule's threshold.
    """

    keep: bool
    reason: str = "kept"
    value: float = 0.0


KEPT = Verdict(True)


class StepConfig(Config):
    """Fields of every step; each kind adds `kind: Literal[...]` and its own."""

    domains: tuple[str, ...] = ()
    """Domains of the sources that it looks at; none means all."""
    languages: tuple[str, ...] = ()
    """Languages of the documents that it looks at; none means all."""
    by_language: Mapping[str, Mapping[str, Any]] = {}
    """Other values of this step's fields for documents of a language: `{ de = { max_mean_word_length = 12 } }`."""

    @model_validator(mode="after")
    def _languages_fit(self) -> Self:
        for language, values in self.by_language.items():
            if reserved := {"kind", "by_language", "languages", "domains"} & set(values):
                raise ValueError(f"by_language.{language} cannot set {', '.join(sorted(reserved))}")
            for name in sorted(set(values) - set(type(self).model_fields)):
                near = difflib.get_close_matches(name, type(self).model_fields, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"by_language.{language} has an unknown key {name!r}.{hint}")
            try:
                self.for_language(language)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                said = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"by_language.{language}.{where}: {said[:1].lower()}{said[1:]}") from None
        return self

    def for_language(self, language: str) -> Self:
        """The config as it is for documents of a language."""
        if language not in self.by_language:
            return self
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "by_language"}
        return type(self).model_validate({**values, **self.by_language[language]})

    def applies(self, document: Document) -> bool:
        """Whether the document is this step's business."""
        return (not self.domains or document.domain in self.domains) and (
            not self.languages or document.language in self.languages
        )


C = TypeVar("C", bound=StepConfig)
T = TypeVar("T")
R = TypeVar("R")
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Filter(Generic[C]):
    """A step that measures and judges.

    Attributes:
        config: Its config class.
        measure: Scores of each document of a batch, by name (`words`, `mean_word_length`). Names are the step's own;
            the engine stores them as `KIND.NAME`. Thresholds must not enter.
        judge: The verdict for the scores of one document.
        thresholds: Names of the config's fields that only `judge` reads: changing them keeps stored scores valid.
    """

    config: type[C]
    measure: Callable[[Sequence[Document], C], Sequence[Scores]]
    judge: Callable[[Scores, C], Verdict]
    thresholds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit made of a document.

    Attributes:
        document: The changed document (the same object when nothing changed); its id stays.
        verdict: Whether it stays at all.
        counts: What was done, by rule, for the funnel: `{"e-mail": 2}`, `{"short lines": 7}`.
    """

    document: Document
    verdict: Verdict = KEPT
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit(Generic[C]):
    """A step that changes documents.

    Attributes:
        config: Its config class.
        edit: The result for each document of a batch.
    """

    config: type[C]
    edit: Callable[[Sequence[Document], C], Sequence[Edited]]


@dataclass(frozen=True)
class Part:
    """One task's share of what a barrier decides over.

    Attributes:
        name: Name of the task, `SOURCE-00000`.
        features: Arrow IPC file of what `features` gave, one row a document; read it with `read_arrow`, which maps it.
        index: Arrow IPC file, same rows: id, source, domain, url, date, language, confidence, licence, file,
            offset, bytes.
        alive: True where no earlier barrier of the same pass dropped the document.
    """

    name: str
    features: Path
    index: Path
    alive: NDArray[np.bool_]


@dataclass(frozen=True)
class Question(Generic[C]):
    """What a barrier is asked to decide.

    Attributes:
        config: The step's config.
        parts: All tasks, in the corpus's order (earlier copies win). The order never depends on workers.
        scratch: A folder for temporary files; it is emptied before and after.
        report: A folder that goes into the corpus as `reports/STEP/`: clusters, matches, histograms. Same content for
            same input: no times, no paths.
        run: Applies a module-level function to items in the worker pool (or on Ray), results in order.
    """

    config: C
    parts: Sequence[Part]
    scratch: Path
    report: Path
    run: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Decision:
    """A barrier's answer for one task; arrays have one entry a document of the part, dead ones included (ignored).

    Attributes:
        keep: False where the document goes.
        reasons: Reasons of those that go, `KIND: rule`; others are ignored.
        values: What was measured (similarity, count); zeros where there is nothing to tell.
        twins: Id of the document that it repeats, or "".
        cuts: For barriers with `cuts`: for each document None, or an array of shape (n, 2) with the character spans
            to remove, sorted, not overlapping.
        metadata: For each document what to add to its metadata (`{"cluster_size": 3}`), or None.
    """

    keep: NDArray[np.bool_]
    reasons: Sequence[str]
    values: NDArray[np.float64]
    twins: Sequence[str] | None = None
    cuts: Sequence[NDArray[np.int64] | None] | None = None
    metadata: Sequence[Mapping[str, Scalar] | None] | None = None


@dataclass(frozen=True)
class Barrier(Generic[C]):
    """A step that needs all documents at once.

    Attributes:
        config: Its config class.
        features: For a batch of documents a dictionary of columns, one entry a document each: NumPy arrays (1-D, or
            2-D of fixed width), lists of strings, or lists of 1-D arrays. `{}` when the index is enough.
        decide: One `Decision` for each part, in order.
        cuts: Whether its decisions cut text.
        judged_by: Fields of the config that only `decide` reads: changing them keeps the features valid.
    """

    config: type[C]
    features: Callable[[Sequence[Document], C], Mapping[str, Any]]
    decide: Callable[[Question[C]], Iterator[Decision]]
    cuts: bool = False
    judged_by: tuple[str, ...] = ()


Step = Filter[Any] | Edit[Any] | Barrier[Any]


def each(measure: Callable[[Document, C], Scores]) -> Callable[[Sequence[Document], C], list[Scores]]:
    """A batch function from a function of one document (use at module level: `measure=each(_measure)`)."""

    def batch(documents: Sequence[Document], config: C) -> list[Scores]:
        return [measure(document, config) for document in documents]

    return batch


def above(reason: str, value: float, limit: float) -> Verdict:
    """A no when `value` exceeds `limit`."""
    return Verdict(False, reason, value) if value > limit else KEPT


def below(reason: str, value: float, limit: float) -> Verdict:
    """A no when `value` is less than `limit`."""
    return Verdict(False, reason, value) if value < limit else KEPT


def first_no(*verdicts: Verdict) -> Verdict:
    """The first verdict that drops, or `KEPT`."""
    return next((verdict for verdict in verdicts if not verdict.keep), KEPT)
