"""Days, months, dates and units.

A step in the calendar has one key for both directions: who has seen that Tuesday comes after Monday has also seen what
comes before Tuesday. February has 28 days here.
"""

from random import Random

from puna.exercises.exercise import KNOWN, Check, Exercise, Level

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

UNITS: tuple[tuple[str, str, int], ...] = (
    ("metre", "centimetre", 100),
    ("centimetre", "millimetre", 10),
    ("kilometre", "metre", 1000),
    ("kilogram", "gram", 1000),
    ("litre", "millilitre", 1000),
    ("hour", "minute", 60),
    ("minute", "second", 60),
    ("week", "day", 7),
    ("day", "hour", 24),
    ("year", "month", 12),
    ("euro", "cent", 100),
    ("dozen", "piece", 12),
)
"""Large unit, small unit, how many small ones make a large one."""


def weekday(rng: Random, level: Level) -> Exercise:
    """The day some days after or before a weekday; one day is a building block."""
    steps = 1 if level == 1 else rng.randint(2, 3 if level == 2 else 6)
    return _cycle(rng, level, "weekday", WEEKDAYS, steps, unit="day", noun="day")


def month(rng: Random, level: Level) -> Exercise:
    """The month some months after or before a month, or how many days it has; one month is a building block."""
    if level == 1 and rng.random() < 0.3:
        return _days_in_month(rng)
    steps = 1 if level == 1 else rng.randint(2, 4 if level == 2 else 8)
    return _cycle(rng, level, "month", MONTHS, steps, unit="month", noun="month")


def _cycle(
    rng: Random, level: Level, kind: str, names: tuple[str, ...], steps: int, *, unit: str, noun: str
) -> Exercise:
    start = rng.randrange(len(names))
    first, last = names[start], names[(start + steps) % len(names)]
    after = rng.random() < 0.6
    given, answer, word = (first, last, "after") if after else (last, first, "before")
    key = f"{KNOWN if steps == 1 else ''}{kind}:{first}:{steps}"
    if steps == 1:
        question = rng.choice(
            (
                f"Which {noun} comes {word} {given}?",
                f"What {noun} is {word} {given}?",
                f"Name the {noun} {word} {given}.",
            )
        )
        statements = (
            f"{last} comes after {first}.",
            f"{first} comes before {last}.",
            f"The {noun}s in order: {', '.join(names)}.",
        )
        return Exercise(question, answer, key, kind, level=level, statements=statements)
    order = 1 if after else -1
    where = names.index(given)
    walk = ", ".join(names[(where + order * n) % len(names)] for n in range(1, steps + 1))
    question = rng.choice(
        (
            f"Which {noun} is {steps} {unit}s {word} {given}?",
            f"What {noun} is {steps} {unit}s {word} {given}?",
            f"Name the {noun} {steps} {unit}s {word} {given}.",
        )
    )
    statements = (
        f"{steps} {unit}s {word} {given} is {answer}.",
        f"{steps} {unit}s {word} {given}: {walk}.",
        f"From {given} go {steps} {unit}s {'forward' if after else 'back'}: {walk}. It is {answer}.",
    )
    return Exercise(
        question, answer, key, kind, level=level, check=Check("text", accept=(walk,)), statements=statements
    )


def _days_in_month(rng: Random) -> Exercise:
    index = rng.randrange(12)
    name, days = MONTHS[index], str(DAYS_IN_MONTH[index])
    question = rng.choice((f"How many days does {name} have?", f"How many days are in {name}?"))
    statements = (f"{name} has {days} days.", f"There are {days} days in {name}.")
    return Exercise(question, days, f"{KNOWN}days:{name}", "month", check=Check("number"), statements=statements)


def date(rng: Random, level: Level) -> Exercise:
    """The day after or before a date; level 3 is the turn of a month."""
    index = rng.randrange(12)
    length = DAYS_IN_MONTH[index]
    day = length if level == 3 else rng.randint(1, 9 if level == 1 else length - 1)
    first = f"{day} {MONTHS[index]}"
    last = f"1 {MONTHS[(index + 1) % 12]}" if day == length else f"{day + 1} {MONTHS[index]}"
    after = rng.random() < 0.6
    given, answer, word = (first, last, "after") if after else (last, first, "before")
    question = rng.choice(
        (
            f"What is the day {word} {given}?",
            f"Which date comes {word} {given}?",
            f"Today is {given}. What date {'will be tomorrow' if after else 'was yesterday'}?",
        )
    )
    statements = (
        f"The day after {first} is {last}.",
        f"The day before {last} is {first}.",
        f"Today is {first}. Tomorrow is {last}.",
        f"Today is {last}. Yesterday was {first}.",
    )
    return Exercise(question, answer, f"date:{first}", "date", level=level, statements=statements)


def unit(rng: Random, level: Level) -> Exercise:
    """A length, weight, volume, time or sum of money in a smaller or a larger unit."""
    large, small, factor = rng.choice(UNITS)
    top = (9, 20, 99)[level - 1] if factor % 10 == 0 and factor != 60 else (5, 9, 12)[level - 1]
    n = rng.randint(1, top)
    product = n * factor
    shown_large, shown_small = _plural(n, large), _plural(product, small)
    if rng.random() < 0.65:
        answer = str(product)
        question = rng.choice(
            (
                f"How many {_plural_name(small)} are {shown_large}?",
                f"How many {_plural_name(small)} are in {shown_large}?",
                f"Convert {shown_large} to {_plural_name(small)}.",
            )
        )
        accept = (shown_small,)
    else:
        answer = str(n)
        question = rng.choice(
            (
                f"How many {_plural_name(large)} are {shown_small}?",
                f"Convert {shown_small} to {_plural_name(large)}.",
            )
        )
        accept = (shown_large,)
    one = f"1 {large} is {_plural(factor, small)}"
    statements = (
        f"{shown_large} {'is' if n == 1 else 'are'} {shown_small}.",
        f"{one}, so {shown_large} {'is' if n == 1 else 'are'} {shown_small}.",
        f"{shown_small} {'is' if product == 1 else 'are'} {shown_large}.",
    )
    key = f"{KNOWN if n == 1 else ''}unit:{large}:{small}:{n}"
    return Exercise(
        question, answer, key, "unit", level=level, check=Check("number", accept=accept), statements=statements
    )


def _plural_name(name: str) -> str:
    return name if name == "dozen" else f"{name}s"


def _plural(n: int, name: str) -> str:
    return f"{n} {name if n == 1 else _plural_name(name)}"
