"""Labels from an earlier model: sample, ask, read strictly, ask some twice, and say how far the two agree.

The sample is the same number of documents for each source and language, chosen by the hash of their ids. Every document
is asked for by a seed of its own; an answer that is no label is asked for again a few times and then counted as unread.
A share of the documents is labelled twice: the agreement of the two is the ceiling of what any classifier can learn
from such labels, and a low one says that the rubric or the model is not good enough.

With `method = "likelihood"` the model does not speak: the likeliest of "Score: 0" ... "Score: 5" is the label. Small
models that cannot follow the form can be asked in this way; the second opinion then comes from another passage.

Labels are appended as they come, so that a run that is cut off goes on where it was.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from puna.core import console
from puna.core.config import Config
from puna.core.errors import MissingError, PromptTooLongError, PunaError, Stopped
from puna.core.files import atomic_open
from puna.core.generator import Generator, Sampling
from puna.core.interrupt import StopRequest
from puna.data.document import Document
from puna.data.quality.rubric import TOP, Head, ask, likelihood_choices, read_answer

LABELS = "labels.jsonl"
SUMMARY = "agreement.json"


class LabelConfig(Config):
    """What is labelled, and how the model is asked."""

    head: Head = "quality"
    """Which rubric."""
    per_group: int = Field(default=500, ge=1)
    """Documents of each source and language."""
    max_characters: int = Field(default=3000, ge=100)
    """Characters of a document that the model sees: its beginning, or less where the context is short."""
    method: Literal["answer", "likelihood"] = "answer"
    """`answer`: the model writes and ends with a score; `likelihood`: the likeliest score is taken."""
    max_tokens: int = Field(default=160, ge=1)
    """Bound of an answer."""
    temperature: float = Field(default=0.7, ge=0)
    """Of an answer."""
    attempts: int = Field(default=3, ge=1)
    """How often an answer that cannot be read is asked for."""
    repeat_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the documents that are labelled twice."""
    min_read: float = Field(default=0.5, ge=0, le=1)
    """Share of answers that must be readable; fewer end the run, since the model does not understand the task."""
    batch: int = Field(default=32, ge=1)
    """Documents asked for at once."""
    seed: int = 0
    """Seed of the sample and of the answers."""


@dataclass(frozen=True, slots=True)
class Label:
    """One labelled document.

    Attributes:
        id: Of the document.
        text: What the model saw.
        score: 0 to 5.
        again: The second opinion, where it was asked for.
        source: Of the document.
        language: Of the document.
        url: Of the document.
    """

    id: str
    text: str
    score: int
    again: int | None
    source: str
    language: str
    url: str


def sample(documents: Iterable[Document], per_group: int, *, seed: int) -> list[Document]:
    """The same number of documents for each source and language; which ones depends on their ids and the seed alone."""
    heaps: dict[tuple[str, str], list[tuple[int, str, Document]]] = {}
    for document in documents:
        rank = -_hash(f"{seed} {document.id}")  # a heap of the least, so the greatest leaves first
        heap = heaps.setdefault((document.source, document.language), [])
        if len(heap) < per_group:
            heapq.heappush(heap, (rank, document.id, document))
        elif rank > heap[0][0]:
            heapq.heapreplace(heap, (rank, document.id, document))
    return [document for key in sorted(heaps) for _, _, document in sorted(heaps[key], reverse=True)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def label(generator: Generator, documents: Sequence[Document], config: LabelConfig, folder: Path) -> dict[str, Any]:
    """Label documents into `folder/labels.jsonl`, or go on with a run that was cut off.

    Args:
        generator: Who labels.
        documents: From `sample`.
        config: How.
        folder: Gets the labels and `agreement.json`.

    Returns:
        The summary.

    Raises:
        MissingError: There is nothing to label.
        PunaError: Too few answers can be read.
        Stopped: Ctrl-C; the same call goes on.
    """
    if not documents:
        raise MissingError("there is no document to label; look at the corpus and its sources")
    done, unread = _done(folder / LABELS)
    todo = [document for document in documents if document.id not in done]
    if done:
        console.say(f"label: {len(documents) - len(todo)} of {len(documents)} documents were labelled before, going on")
    folder.mkdir(parents=True, exist_ok=True)
    asked = len(done)
    with (
        StopRequest() as stop,
        (folder / LABELS).open("a", encoding="utf-8") as out,
        console.progress("label", total=len(todo), unit="docs") as bar,
    ):
        for begin in range(0, len(todo), config.batch):
            batch = todo[begin : begin + config.batch]
            for record in _ask_batch(generator, batch, config):
                unread += record["score"] is None
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            asked += len(batch)
            bar.advance(len(batch))
            if asked >= 20 and 1 - unread / asked < config.min_read:
                raise PunaError(
                    f"{unread} of {asked} answers of {generator.name} could not be read as a score; at least "
                    f"{config.min_read:.0%} must be. Look at {folder / LABELS}, use a stronger model, or "
                    "method=likelihood."
                )
            if stop.requested:
                raise Stopped("labelling stopped; what is labelled is kept. The same command goes on from here.")
    summary = agreement(read_labels(folder / LABELS), unread=unread)
    with atomic_open(folder / SUMMARY) as file:
        json.dump(summary, file, indent=2, sort_keys=True)
        file.write("\n")
    return summary


def _done(path: Path) -> tuple[set[str], int]:
    """Ids of the documents that were asked for, and how many had no readable answer; a line cut short is removed."""
    if not path.is_file():
        return set(), 0
    whole, ids, unread = [], set(), 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        whole.append(line)
        ids.add(record["id"])
        unread += record["score"] is None
    with atomic_open(path) as file:
        file.writelines(line + "\n" for line in whole)
    return ids, unread


_LEAST_CHARACTERS = 50


def _ask_batch(generator: Generator, documents: Sequence[Document], config: LabelConfig) -> list[dict[str, Any]]:
    """Labels of a batch; where a prompt does not fit the model's context, its texts are cut shorter and asked again."""
    while True:
        try:
            return list(_ask_at_once(generator, documents, config))
        except PromptTooLongError:
            if config.max_characters < 2 * _LEAST_CHARACTERS:
                raise
            config = config.model_copy(update={"max_characters": config.max_characters * 2 // 3})


def _ask_at_once(generator: Generator, documents: Sequence[Document], config: LabelConfig) -> Iterator[dict[str, Any]]:
    texts = [document.text[: config.max_characters] for document in documents]
    opinions = _opinions(generator, documents, texts, config, round_number=0)
    twice = [_hash(f"again {config.seed} {d.id}") / 2**64 < config.repeat_share for d in documents]
    second: dict[str, tuple[int | None, str]] = {}
    if any(twice):
        chosen = [place for place, flag in enumerate(twice) if flag]
        others = [texts[place] for place in chosen]
        if config.method == "likelihood":  # the same passage would only repeat itself
            others = [_other_passage(documents[place].text, config.max_characters) for place in chosen]
        again = _opinions(generator, [documents[place] for place in chosen], others, config, round_number=1)
        second = {documents[place].id: opinion for place, opinion in zip(chosen, again, strict=True)}
    for document, text, (score, answer) in zip(documents, texts, opinions, strict=True):
        yield {
            "id": document.id,
            "score": score,
            "again": second.get(document.id, (None, ""))[0],
            "answer": answer,
            "source": document.source,
            "language": document.language,
            "url": document.url,
            "text": text,
        }


def _other_passage(text: str, characters: int) -> str:
    return text[characters : 2 * characters] if len(text) >= characters * 3 // 2 else text[: len(text) // 2 + 1]


def _opinions(
    generator: Generator, documents: Sequence[Document], texts: Sequence[str], config: LabelConfig, *, round_number: int
) -> list[tuple[int | None, str]]:
    """A score and the answer it was read from, for each text."""
    prompts = [ask(config.head, text) for text in texts]
    if config.method == "likelihood":
        choices = likelihood_choices()
        scores = generator.logprobs([p for p in prompts for _ in choices], choices * len(prompts))
        values = np.array([s.logprob / max(1, s.n_tokens) for s in scores]).reshape(len(prompts), len(choices))
        return [(int(best), choices[int(best)]) for best in values.argmax(axis=1)]
    found: list[tuple[int | None, str]] = [(None, "")] * len(prompts)
    open_places = list(range(len(prompts)))
    for attempt in range(config.attempts):
        # a call's prompts draw from (seed, place in the call): the seed names documents, round and attempt
        seed = _hash(f"{config.seed} {round_number} {attempt} {documents[open_places[0]].id}") % 2**31
        temperature = config.temperature if config.temperature or not attempt else 0.7
        sampling = Sampling(max_tokens=config.max_tokens, temperature=temperature, seed=seed)
        answers = generator.complete([prompts[place] for place in open_places], sampling)
        for place, completion in zip(open_places, answers, strict=True):
            found[place] = read_answer(completion.text), completion.text
        open_places = [place for place in open_places if found[place][0] is None]
        if not open_places:
            break
    return found


def read_labels(path: Path) -> list[Label]:
    """The readable labels of a file.

    Raises:
        MissingError: There is no such file.
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there. Make it with: puna quality label")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = ("id", "text", "score", "again", "source", "language", "url")
    return [Label(*(record[name] for name in names)) for record in records if record["score"] is not None]


def agreement(labels: Sequence[Label], *, unread: int = 0) -> dict[str, Any]:
    """How often each score was given, and how far second opinions agree.

    Returns:
        `labels`, `unread`, `scores`, and over the documents labelled twice `repeats`, `same`, `within_one` and `kappa`
        (quadratically weighted; 1 is perfect, 0 is chance).
    """
    pairs = [(one.score, one.again) for one in labels if one.again is not None]
    scores = Counter(one.score for one in labels)
    summary: dict[str, Any] = {
        "labels": len(labels),
        "unread": unread,
        "scores": {str(score): scores[score] for score in range(TOP + 1)},
        "repeats": len(pairs),
    }
    if pairs:
        table = np.zeros((TOP + 1, TOP + 1))
        for first, second in pairs:
            table[first, second] += 1
        gaps = np.abs(np.subtract.outer(np.arange(TOP + 1), np.arange(TOP + 1)))
        chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / len(pairs)
        expected = float((chance * gaps**2).sum())
        kappa = 1 - float((table * gaps**2).sum()) / expected if expected else None
        summary |= {
            "same": float(np.trace(table) / len(pairs)),
            "within_one": float(table[gaps <= 1].sum() / len(pairs)),
            "kappa": kappa,
        }
    return summary
