"""Greetings, courtesies, names, weekdays and counting in many languages; one TOML file a language in `languages/`.

Each file is written by hand: `say` (questions, and last the answer), `meet` (a name is filled in; `{call}` is the form
in which one calls that person, for languages that have one), `next_day`, `previous_day`, `count`. What has a slot is
held out by its filling and wording (a name in one sentence, a stretch of numbers); what has none is a building block.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from puna.exercises.exercise import KNOWN, Check, Exercise, Level


@dataclass(frozen=True, slots=True)
class Phrases:
    """What one language file holds; fields are named as in the file."""

    code: str
    language: str
    names: tuple[tuple[str, str], ...]
    weekdays: tuple[str, ...]
    numbers: tuple[str, ...]
    meet: tuple[tuple[str, str], ...]
    next_day: tuple[str, ...]
    previous_day: tuple[str, ...]
    count: tuple[str, ...]
    say: tuple[tuple[str, ...], ...]
    separator: str = ", "


@cache
def phrase_books() -> dict[str, Phrases]:
    """All languages by code, in the order of their codes."""
    books = {}
    for path in sorted(files("puna.exercises").joinpath("languages").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".toml"):
            code = path.name.removesuffix(".toml")
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
            books[code] = _phrases(code, raw)
    return books


def _phrases(code: str, raw: dict[str, Any]) -> Phrases:
    return Phrases(
        code=code,
        language=raw["language"],
        names=tuple((name.partition("/")[0], name.rpartition("/")[2]) for name in raw["names"]),
        weekdays=tuple(raw["weekdays"]),
        numbers=tuple(raw["numbers"]),
        meet=tuple((ask, answer) for ask, answer in raw["meet"]),
        next_day=tuple(raw["next_day"]),
        previous_day=tuple(raw["previous_day"]),
        count=tuple(raw["count"]),
        say=tuple(map(tuple, raw["say"])),
        separator=raw.get("separator", ", "),
    )


def greeting(rng: Random, level: Level) -> Exercise:
    """A courtesy or a small question, answered in its language; English comes more often."""
    book = _book(rng)
    *asks, answer = rng.choice(book.say)
    question = rng.choice(asks)
    statements = (f"- {question}\n- {answer}", f'In {book.language}: "{question}" "{answer}"')
    key = f"{KNOWN}say:{book.code}:{question}"
    return Exercise(question, answer, key, "greeting", book.code, level, statements=statements)


def introduction(rng: Random, level: Level) -> Exercise:
    """Somebody says a name, and is greeted by it or asks for it."""
    book = _book(rng)
    wording = rng.randrange(len(book.meet))
    name, call = rng.choice(book.names)
    question, answer = (text.format(name=name, call=call) for text in book.meet[wording])
    statements = (f"- {question}\n- {answer}", f'In {book.language}: "{question}" "{answer}"')
    key = f"meet:{book.code}:{wording}:{name}"
    return Exercise(question, answer, key, "introduction", book.code, level, statements=statements)


def weekday_name(rng: Random, level: Level) -> Exercise:
    """The weekday before or after another one, in its language."""
    book = _book(rng)
    first = rng.randrange(7)
    forward = rng.random() < 0.6
    given, answer = book.weekdays[first], book.weekdays[(first + 1) % 7]
    if not forward:
        given, answer = answer, given
    question = rng.choice(book.next_day if forward else book.previous_day).format(day=given)
    statements = (book.separator.join(book.weekdays), f"{book.language}: {book.separator.join(book.weekdays)}")
    key = f"{KNOWN}weekday:{book.code}:{first}"
    return Exercise(question, answer, key, "weekday_name", book.code, level, statements=statements)


def counting(rng: Random, level: Level) -> Exercise:
    """A stretch of the number words from one to ten."""
    book = _book(rng)
    low, high = sorted(rng.sample(range(1, 11), 2))
    words = book.separator.join(book.numbers[low - 1 : high])
    question = rng.choice(book.count).format(a=low, b=high)
    numbered = book.separator.join(f"{n} {book.numbers[n - 1]}" for n in range(low, high + 1))
    statements = (numbered, f"{book.language}: {numbered}", book.separator.join(book.numbers))
    key = f"counting:{book.code}:{low}:{high}"
    if low == 1 and high == 10:
        key = KNOWN + key
    items = Check("list")
    return Exercise(question, words, key, "counting", book.code, level, check=items, statements=statements)


def _book(rng: Random) -> Phrases:
    books = phrase_books()
    return books["en"] if rng.random() < 0.15 else books[rng.choice(tuple(books))]
