"""Labelled texts for training: from `puna quality label`, from files, or from two corpora; split so that nothing leaks.

Which part a text is in follows from the hash of its text alone (case and white space aside): equal texts are never on
both sides, and the split does not change when data is added.
"""

import csv
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import CorruptError, MissingError, UsageError
from puna.data.corpus import Corpus
from puna.data.quality.label import LABELS

Part = Literal["train", "validation", "test"]


class LabelledConfig(Config):
    """Where labels come from and when one is positive."""

    labels: tuple[Path, ...] = ()
    """Runs of `puna quality label`, or JSON Lines, CSV (with a header) or TSV files."""
    text_field: str = "text"
    """Field of the text in files."""
    label_field: str = "score"
    """Field of the label in files: a number, true or false, or a word of `positive_words`."""
    positive_from: float = 3.0
    """Labels from here on are positive."""
    positive_words: tuple[str, ...] = ()
    """Words that are positive labels; all others are negative."""
    positive: tuple[Path, ...] = ()
    """Corpora whose documents are positive examples, for instance pages that an encyclopedia cites."""
    negative: tuple[Path, ...] = ()
    """Corpora whose documents are negative examples, for instance a sample of a crawl."""
    per_corpus: int = Field(default=20_000, ge=1)
    """Documents taken of each corpus."""

    @model_validator(mode="after")
    def _has_both(self) -> "LabelledConfig":
        if not self.labels and not (self.positive and self.negative):
            raise ValueError("give labels, or both positive and negative corpora")
        return self


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its label.

    Attributes:
        text: The text.
        positive: The label.
        source: Where it comes from.
        language: Its language, if known.
    """

    text: str
    positive: bool
    source: str = ""
    language: str = ""


def read_examples(config: LabelledConfig) -> list[Example]:
    """All examples, in a fixed order.

    Raises:
        MissingError: A file or corpus is missing.
        CorruptError: A row has no label.
    """
    found: list[Example] = []
    for path in config.labels:
        found += _from_file(path / LABELS if path.is_dir() else path, config)
    for paths, positive in ((config.positive, True), (config.negative, False)):
        for path in paths:
            documents = itertools.islice(Corpus.open(path).documents(), config.per_corpus)
            found += [Example(d.text, positive, d.source, d.language) for d in documents]
    if not found:
        raise MissingError("there is no labelled text")
    return found


def _from_file(path: Path, config: LabelledConfig) -> Iterator[Example]:
    if not path.is_file():
        raise MissingError(f"{path} is not there; labels are a run of `puna quality label`, or a file")
    for number, row in enumerate(_rows(path), start=1):
        text, value = row.get(config.text_field), row.get(config.label_field, ...)
        if value is None:
            continue  # an answer that could not be read
        if not isinstance(text, str) or value is ...:
            missing = config.text_field if not isinstance(text, str) else config.label_field
            raise CorruptError(f"{path}, row {number}: no field {missing!r}; it has {', '.join(map(str, row))}")
        yield Example(
            text, _is_positive(value, config, path, number), row.get("source") or path.stem, row.get("language") or ""
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix in {".csv", ".tsv"}:
                yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _object(line, f"{path}:{number}")
    except (ValueError, csv.Error) as error:
        raise CorruptError(f"{path} cannot be read: {error}") from error


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorruptError(
            f"{place} is not JSON: {error.msg}, column {error.colno}. Mend or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise CorruptError(f"{place} is a {type(row).__name__}, not an object with the fields of a label")
    return row


def _is_positive(value: Any, config: LabelledConfig, path: Path, number: int) -> bool:
    if config.positive_words:
        return str(value) in config.positive_words
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    try:
        return float(value) >= config.positive_from
    except ValueError:
        raise CorruptError(
            f"{path}, row {number}: the label is {value!r}; a number or true/false is needed, or set positive_words"
        ) from None


def part_of(text: str) -> Part:
    """Seven tenths train, one validates, two test."""
    normal = " ".join(text.lower().split())
    tenth = (
        int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") % 10
    )
    return "train" if tenth < 7 else "validation" if tenth == 7 else "test"


@dataclass(frozen=True)
class Split:
    """Examples by part."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def split(examples: Sequence[Example]) -> Split:
    """Divide.

    Raises:
        UsageError: A part lacks one of the two classes.
    """
    parts: dict[Part, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:
        parts[part_of(example.text)].append(example)
    for name, part in parts.items():
        positive = sum(e.positive for e in part)
        if not 0 < positive < len(part):
            raise UsageError(
                f"the {name} part has {positive} positive of {len(part)} examples; both kinds are needed in each part. "
                "Label more documents, or change positive_from."
            )
    return Split(parts["train"], parts["validation"], parts["test"])


def texts_and_labels(examples: Sequence[Example]) -> tuple[list[str], NDArray[np.bool_]]:
    """The two columns."""
    return [e.text for e in examples], np.array([e.positive for e in examples], dtype=bool)
