"""Streams of exercises: which kinds there are, and how problems, texts and dialogs are drawn from a seed.

The same seed gives the same stream in every process. Within a stream a problem comes once, as long as its kind has
problems left: a training stream then repeats them in other wordings, a test stream leaves the kind out, so that its
items stay independent and its length honest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from puna.core.dialog import Dialog, Message
from puna.core.errors import UsageError
from puna.exercises import arithmetic, calendar_and_units, facts, languages, letters, python_code
from puna.exercises.exercise import SPLITS, Exercise, Level, Split

SYSTEM_PROMPT = "You are Puna, a small and friendly assistant."

_TRIES = 60
"""Draws without a new problem after which a kind counts as used up."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of exercise.

    Attributes:
        name: Its name in recipes and reports.
        draw: Makes one exercise from a random state and a level.
        weight: How often it comes in a mixed stream, relative to the others.
        problems: Canonical problems in both splits together: the exact number where it is small, else a lower bound.
        tested: Whether its test split has any problem.
    """

    name: str
    draw: Callable[[Random, Level], Exercise]
    weight: float
    problems: int
    tested: bool = True


_TABLE = (
    Kind("addition", arithmetic.addition, 2.0, 5_000),
    Kind("subtraction", arithmetic.subtraction, 2.0, 4_800),
    Kind("multiplication", arithmetic.multiplication, 1.0, 199),
    Kind("comparison", arithmetic.comparison, 1.0, 400_000),
    Kind("extreme", arithmetic.extreme, 1.0, 70_000_000),
    Kind("sort_numbers", arithmetic.sort_numbers, 1.5, 70_000_000),
    Kind("sort_words", letters.sort_words, 1.5, 2_000_000_000),
    Kind("spell", letters.spell, 1.0, 1_000_000),
    Kind("reverse", letters.reverse, 1.5, 10_000_000),
    Kind("word_length", letters.word_length, 1.0, 505),
    Kind("count_letter", letters.count_letter, 1.0, 4_500),
    Kind("end_letter", letters.end_letter, 1.0, 1_010),
    Kind("weekday", calendar_and_units.weekday, 0.7, 42),
    Kind("month", calendar_and_units.month, 0.7, 108),
    Kind("date", calendar_and_units.date, 0.7, 365),
    Kind("unit", calendar_and_units.unit, 1.0, 666),
    Kind("fact_colour", facts.fact_colour, 1.5, 1_000_000_000),
    Kind("fact_owner", facts.fact_owner, 1.5, 10_000_000),
    Kind("fact_place", facts.fact_place, 1.5, 10_000_000),
    Kind("python_value", python_code.python_value, 1.0, 50_000_000),
    Kind("python_function", python_code.python_function, 1.0, 791),
    Kind("greeting", languages.greeting, 1.5, 360, tested=False),
    Kind("introduction", languages.introduction, 1.5, 864),
    Kind("weekday_name", languages.weekday_name, 0.5, 126, tested=False),
    Kind("counting", languages.counting, 0.7, 810),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _TABLE}


def generate(
    split: Split,
    *,
    n: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    levels: Sequence[Level] = (1, 2, 3),
) -> Iterator[Exercise]:
    """Draw exercises.

    Args:
        split: `train` or `test`; no problem is in both.
        n: How many at most; a test stream ends earlier when its kinds are used up.
        seed: Of the stream.
        kinds: Names of `KINDS`; None takes all (of the test split: all that have tested problems).
        levels: Difficulties to draw from, equally often.

    Yields:
        Exercises in random order of kinds.

    Raises:
        UsageError: An unknown split or kind.
    """
    if split not in SPLITS:
        raise UsageError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
    chosen = [_kind(name) for name in (KINDS if kinds is None else kinds)]
    if split == "test":
        chosen = [kind for kind in chosen if kind.tested]
    return _stream(split, chosen, n, Random(f"puna exercises {split} {seed}"), tuple(levels))


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise UsageError(f"exercise kind {name!r} is not known; the kinds are {', '.join(KINDS)}")
    return KINDS[name]


def _stream(split: Split, kinds: list[Kind], n: int, rng: Random, levels: tuple[Level, ...]) -> Iterator[Exercise]:
    seen: set[str] = set()
    spent: set[str] = set()
    left = list(kinds)
    made = 0
    while made < n and left:
        kind = rng.choices(left, weights=[k.weight for k in left])[0]
        exercise = _draw(split, kind, rng, levels, seen, again=kind.name in spent)
        if exercise is None:
            spent.add(kind.name)
            if split == "test":
                left.remove(kind)
            continue
        seen.add(exercise.key)
        made += 1
        yield exercise


def _draw(
    split: Split, kind: Kind, rng: Random, levels: tuple[Level, ...], seen: set[str], *, again: bool
) -> Exercise | None:
    """One exercise of the split; a new one unless `again`. None when the kind has none left."""
    tries, misses = 0, 0
    while misses < _TRIES and tries < 100 * _TRIES:
        tries += 1
        exercise = kind.draw(rng, rng.choice(levels))
        if exercise.split != split:
            continue
        if again or exercise.key not in seen:
            return exercise
        misses += 1
    return None


def texts(
    split: Split, *, n: int, seed: int, kinds: Sequence[str] | None = None, levels: Sequence[Level] = (1, 2, 3)
) -> Iterator[str]:
    """Documents for pretraining: one to eight exercises of one kind, in one form, as a page of a workbook.

    Several questions of a kind in a row are what a few-shot prompt looks like; half of the documents ask and answer.

    Args:
        split: `train` or `test`.
        n: Documents.
        seed: Of the stream.
        kinds: As in `generate`.
        levels: As in `generate`.

    Yields:
        Text without a final newline.
    """
    rng = Random(f"puna texts {split} {seed}")
    chosen = [_kind(name) for name in (KINDS if kinds is None else kinds)]
    if split == "test":
        chosen = [kind for kind in chosen if kind.tested]
    streams = {
        kind.name: generate(split, n=8 * n, seed=rng.randrange(2**32), kinds=[kind.name], levels=levels)
        for kind in chosen
    }
    for _ in range(n):
        kind = rng.choices(chosen, weights=[k.weight for k in chosen])[0]
        form = None if rng.random() < 0.3 else 0 if rng.random() < 0.6 else rng.randrange(8)
        page = [e.as_text(form) for _, e in zip(range(rng.randint(1, 8)), streams[kind.name], strict=False)]
        if page:
            yield ("\n\n" if any("\n" in part for part in page) else "\n").join(dict.fromkeys(page))


def dialogs(
    split: Split,
    *,
    n: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    levels: Sequence[Level] = (1, 2, 3),
    turns: int = 3,
) -> Iterator[Dialog]:
    """Dialogs of one to three exercises, one in ten with a system prompt.

    Args:
        split: `train` or `test`.
        n: Dialogs at most.
        seed: Of the stream.
        kinds: As in `generate`.
        levels: As in `generate`.
        turns: The most exercises in a dialog; 1 gives single turns.

    Yields:
        Dialogs that end with an answer.
    """
    rng = Random(f"puna dialogs {split} {seed}")
    stream = generate(split, n=turns * n, seed=seed, kinds=kinds, levels=levels)
    for _ in range(n):
        messages = [Message("system", SYSTEM_PROMPT)] if rng.random() < 0.1 else []
        for _, exercise in zip(range(rng.randint(1, turns)), stream, strict=False):
            messages += exercise.as_dialog().messages
        if messages and messages[-1].role == "assistant":
            yield Dialog(tuple(messages))
