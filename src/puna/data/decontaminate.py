"""Decontamination: documents that contain benchmark items go, and a report says what matched.

An item (a question, a prompt, a solution) is its runs of 13 words; one of 8 to 12 words is a single run; shorter ones
cannot be told from ordinary speech and are counted as too short. A document's *coverage* of an item is the share of the
item's runs that occur in it. At `min_coverage` the document goes. The report lists each match with the item, the
coverage and the words, so that a person can see whether it is one.

Runs that many items share are template text ("Which of the following statements is") and do not count: matching those
is what makes naive n-gram decontamination throw out clean documents by the thousand.

Source: GPT-3 (2005.14165), appendix C, for 13 words; The Llama 3 Herd of Models (2407.21783), section 5.1.4, for 8 and
for a share of what is covered rather than a single hit.
"""

import csv
import functools
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from puna.core.dialog import Dialog
from puna.core.errors import CorruptError, MissingError
from puna.core.files import write_json
from puna.core.generator import Prompt
from puna.data.document import Document
from puna.data.documents import TableWriter, list_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Question, StepConfig
from puna.data.word_hashes import batches, ngrams, words_of
from puna.evaluate.task import AnswerItem, ChoiceItem, Task
from puna.evaluate.tasks.config import TaskConfig, build

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")
_SNIPPET_CHARACTERS = 240
MATCHES = "matches.parquet"


class DecontaminateConfig(StepConfig):
    """Documents that contain benchmark items."""

    kind: Literal["decontaminate"] = "decontaminate"
    """Which kind of step this is."""
    path: Path | None = None
    """A benchmark file or a folder of them: JSON Lines, JSON, CSV."""
    fields: tuple[str, ...] = ()
    """Fields that hold an item's text; none takes every text that is long enough."""
    tasks: tuple[TaskConfig, ...] = ()
    """Evaluation tasks, `[[steps.tasks]]` tables as in a recipe of `puna eval`."""
    max_words: int = Field(default=13, ge=2)
    """Words of a run."""
    min_words: int = Field(default=8, ge=2)
    """Items of fewer words are not looked for; items between the two are one run."""
    max_items_of_run: int = Field(default=8, ge=1)
    """A run that more items share is template text and does not count."""
    min_coverage: float = Field(default=0.5, gt=0, le=1)
    """Share of an item's runs in one document from which the document goes."""

    @model_validator(mode="after")
    def _has_something_to_look_for(self) -> "DecontaminateConfig":
        if self.path is None and not self.tasks:
            raise ValueError("give path, a benchmark file or folder, or [[steps.tasks]]")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, more than max_words, {self.max_words}")
        return self


@dataclass(frozen=True, slots=True)
class Item:
    """A text that must not be trained on.

    Attributes:
        benchmark: File or task.
        name: Which one in it.
        text: The text.
    """

    benchmark: str
    name: str
    text: str


# ---- reading benchmarks ----


def read_items(config: DecontaminateConfig) -> list[Item]:
    """Every item that the config names, in a fixed order.

    Raises:
        MissingError: A file is missing.
        CorruptError: A file cannot be read; the message names the place.
    """
    items: list[Item] = []
    if config.path is not None:
        for name, path in _files(config.path):
            items += _file_items(name, path, config)
    for task in config.tasks:
        items += task_items(build(task))
    return items


def task_items(task: Task) -> list[Item]:
    """Question and right answer of each item of an evaluation task."""
    found = []
    for item in task.items:
        if isinstance(item, ChoiceItem):
            text = f"{_shown(item.prompts[item.gold])} {item.continuations[item.gold]}"
        elif isinstance(item, AnswerItem):
            text = f"{_shown(item.prompt)} {item.target}"
        else:
            text = item.text
        found.append(Item(task.name, item.id, text))
    return found


def _shown(prompt: Prompt) -> str:
    return prompt.messages[-1].content if isinstance(prompt, Dialog) else prompt


def _files(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [(path.name, path)]
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name.endswith(_SUFFIXES)] if path.is_dir() else []
    if not found:
        raise MissingError(f"{path} has no benchmark: no file in it ends in {', '.join(_SUFFIXES)}")
    return [(p.relative_to(path).as_posix(), p) for p in found]


def _file_items(name: str, path: Path, config: DecontaminateConfig) -> Iterator[Item]:
    for number, row in enumerate(_rows(path), start=1):
        texts = {key: text for key, text in _texts(row) if not config.fields or key in config.fields}
        long = {key: text for key, text in texts.items() if len(text.split()) >= config.min_words}
        if not long and texts:  # a short question with its choices
            long = {"all": " ".join(texts.values())}
        for key, text in long.items():
            yield Item(name, f"{number}.{key}", text)


def _rows(path: Path) -> Iterable[Any]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as packed:
                yield from _parsed(path, packed)
        else:
            with path.open(encoding="utf-8", newline="") as file:
                yield from _parsed(path, file)
    except (ValueError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise CorruptError(f"{path} cannot be read as a benchmark: {error}") from error


def _parsed(path: Path, file: IO[str]) -> Iterator[Any]:
    if path.suffix in {".csv", ".tsv"}:
        yield from csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".json":
        value = json.load(file)
        lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else [value]
        yield from (row for rows in lists for row in rows)
    else:
        yield from (json.loads(line) for line in file if line.strip())


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a row with the name of its field, however deep."""
    if isinstance(value, str):
        yield key or "text", value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, Sequence):
        for place, inner in enumerate(value):
            yield from _texts(inner, key or f"column{place + 1}")


# ---- the table of runs ----


@dataclass(frozen=True)
class Table:
    """Runs of words of all items.

    Attributes:
        items: The items that are looked for.
        n_runs: `[items]` runs of each that count.
        by_length: For each length in words: rising hashes of runs, and the item of each.
        too_short: Items that are not looked for.
        templates: Runs that too many items share.
    """

    items: list[Item]
    n_runs: NDArray[np.int64]
    by_length: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]]
    too_short: int
    templates: int


def make_table(items: Sequence[Item], config: DecontaminateConfig) -> Table:
    """The table of some items."""
    words = words_of([item.text for item in items]) if items else None
    counts = np.diff(words.first) if words is not None else np.empty(0, np.int64)
    chosen = [item for item, count in zip(items, counts.tolist(), strict=True) if count >= config.min_words]
    n_runs = np.zeros(len(chosen), dtype=np.int64)
    by_length, templates = {}, 0
    lengths = np.minimum(counts[counts >= config.min_words], config.max_words)
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length)
        hashes, first = ngrams(words_of([chosen[i].text for i in which.tolist()]), length)
        owner = np.repeat(which, np.diff(first))
        order = np.argsort(hashes, kind="stable")  # owners rise among equal hashes
        hashes, owner = hashes[order], owner[order]
        once = np.ones(len(hashes), dtype=bool)  # a run counts once an item
        once[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        hashes, owner = hashes[once], owner[once]
        begins = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))
        shared = np.diff(begins, append=len(hashes))
        rare = np.repeat(shared <= config.max_items_of_run, shared)
        templates += int(np.count_nonzero(shared > config.max_items_of_run))
        by_length[length] = hashes[rare], owner[rare]
        n_runs += np.bincount(owner[rare], minlength=len(chosen))
    return Table(chosen, n_runs, by_length, len(items) - len(chosen), templates)


def _table_of(config: DecontaminateConfig) -> Table:
    """The config's table, made once a process; thresholds do not enter."""
    return _table_of_text(config.model_dump_json(exclude=set(DECONTAMINATE.judged_by)))


@functools.lru_cache(maxsize=2)
def _table_of_text(text: str) -> Table:
    config = DecontaminateConfig.model_validate_json(text)
    return make_table(read_items(config), config)


def find(texts: Sequence[str], table: Table) -> list[tuple[NDArray[np.uint32], NDArray[np.float32], str]]:
    """What matches in each text: items, the coverage of each, and the words of the best one's first run."""
    found: list[tuple[NDArray[np.uint32], NDArray[np.float32], str]] = []
    for batch in batches(texts):
        words = words_of(batch)
        hits: list[list[tuple[int, int, int, int]]] = [[] for _ in batch]  # item, run, word, length
        for length, (known, owners) in table.by_length.items():
            runs, first = ngrams(words, length, short=False)
            low = np.searchsorted(known, runs)
            for at in np.flatnonzero(known.take(low, mode="clip") == runs).tolist() if len(known) else ():
                text = int(np.searchsorted(first, at, side="right")) - 1
                place = int(words.first[text]) + at - int(first[text])
                for row in range(int(low[at]), int(np.searchsorted(known, runs[at], side="right"))):
                    hits[text].append((int(owners[row]), int(runs[at]), place, length))
        found += [_summary(text, hit, words, table) for text, hit in zip(batch, hits, strict=True)]
    return found


def _summary(text: str, hits: list[tuple[int, int, int, int]], words: Any, table: Table) -> Any:
    if not hits:
        return np.empty(0, np.uint32), np.empty(0, np.float32), ""
    runs: dict[int, set[int]] = {}
    for item, run, _, _ in hits:
        runs.setdefault(item, set()).add(run)
    items = sorted(runs)
    coverage = [len(runs[item]) / max(1, int(table.n_runs[item])) for item in items]
    best = items[int(np.argmax(coverage))]
    place, length = next((place, length) for item, _, place, length in hits if item == best)
    snippet = text[int(words.starts[place]) : int(words.stops[place + length - 1])]
    return np.array(items, np.uint32), np.array(coverage, np.float32), snippet[:_SNIPPET_CHARACTERS]


# ---- the step ----


def features(documents: Sequence[Document], config: DecontaminateConfig) -> Mapping[str, Any]:
    """`items` and `coverage` of each document's matches, and a `snippet`."""
    table = _table_of(config)
    found = find([d.text if config.applies(d) else "" for d in documents], table)
    return {"items": [f[0] for f in found], "coverage": [f[1] for f in found], "snippet": [f[2] for f in found]}


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("benchmark", pa.string()),
        ("item", pa.string()),
        ("coverage", pa.float32()),
        ("words", pa.string()),
        ("item_text", pa.string()),
    ]
)


def decide(question: Question[DecontaminateConfig]) -> Iterator[Decision]:
    """Drop by coverage, and write every match down."""
    config = question.config
    table = _table_of(config)
    question.report.mkdir(parents=True, exist_ok=True)
    looked_at = gone = touched = 0
    hit_items: set[int] = set()
    with TableWriter(question.report / MATCHES, _SCHEMA) as writer:
        writer.add(_SCHEMA.empty_table())
        for part in question.parts:
            frame, index = read_arrow(part.features), read_arrow(part.index)
            items, offsets = list_column(frame, "items")
            coverage, _ = list_column(frame, "coverage")
            best = np.zeros(len(part.alive))
            full = np.flatnonzero(np.diff(offsets))
            if len(full):
                best[full] = np.maximum.reduceat(coverage, offsets[full])
            keep = (best < config.min_coverage) | ~part.alive
            matched = np.flatnonzero((best > 0) & part.alive)
            columns = {name: index.column(name).take(pa.array(matched)).to_pylist() for name in ("id", "url", "source")}
            snippets = frame.column("snippet").take(pa.array(matched)).to_pylist()
            rows = []
            for at, row in enumerate(matched.tolist()):
                for place in range(int(offsets[row]), int(offsets[row + 1])):
                    item = table.items[int(items[place])]
                    hit_items |= {int(items[place])} if coverage[place] >= config.min_coverage else set()
                    rows.append(
                        (
                            *(columns[n][at] for n in columns),
                            item.benchmark,
                            item.name,
                            float(coverage[place]),
                            snippets[at],
                            item.text[:_SNIPPET_CHARACTERS],
                        )
                    )
            if rows:
                writer.add(
                    pa.table(
                        [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), _SCHEMA, strict=True)],
                        schema=_SCHEMA,
                    )
                )
            looked_at, gone, touched = (
                looked_at + int(part.alive.sum()),
                gone + int((~keep).sum()),
                touched + len(matched),
            )
            reasons = np.where(keep, "kept", "decontaminate: benchmark item").tolist()
            yield Decision(keep, reasons, best)
    summary = [
        ["documents", looked_at],
        ["items looked for", len(table.items)],
        ["items too short", table.too_short],
        ["runs that are template text", table.templates],
        ["documents that touch an item", touched],
        ["documents that go", gone],
        ["items found", len(hit_items)],
    ]
    write_json(question.report / "summary.json", {"rows": summary})


DECONTAMINATE = Barrier(config=DecontaminateConfig, features=features, decide=decide, judged_by=("min_coverage",))
