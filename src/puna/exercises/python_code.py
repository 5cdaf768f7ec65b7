"""Tiny Python: what an expression gives, and one-line functions with tests.

Functions are judged by `expression.parse_function`, never executed. Expressions that repeat another kind's problem
(`len('pear')`, `max([3, 9])`, `27 + 35`) live with that kind and share its key; here are the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from puna.exercises.exercise import Check, Exercise, Level
from puna.exercises.words import WORDS

_SHORT_WORDS = tuple(word for word in WORDS if len(word) <= 5)


def python_value(rng: Random, level: Level) -> Exercise:
    """What an expression evaluates to."""
    source, answer, accept = rng.choice((_item, _remainder, _repeat, _join, _equal)[: 2 + level])(rng)
    question = rng.choice(
        (
            f"What does Python print for print({source})?",
            f"What is {source} in Python?",
            f"What is the value of {source}?",
            f"Evaluate {source} in Python.",
        )
    )
    statements = (
        f">>> {source}\n{accept or answer}",
        f">>> print({source})\n{answer}",
        f"x = {source}\nassert x == {accept or answer}",
    )
    check = Check("text", accept=(accept,) if accept else ())
    return Exercise(
        question, answer, f"value:{source}", "python_value", level=level, check=check, statements=statements
    )


def _item(rng: Random) -> tuple[str, str, str]:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(3, 4))]
    index = rng.choice((0, 1, 2, -1))
    return f"[{', '.join(map(str, numbers))}][{index}]", str(numbers[index]), ""


def _remainder(rng: Random) -> tuple[str, str, str]:
    a, b = rng.randint(1, 50), rng.randint(2, 10)
    return (f"{a} % {b}", str(a % b), "") if rng.random() < 0.5 else (f"{a} // {b}", str(a // b), "")


def _repeat(rng: Random) -> tuple[str, str, str]:
    word, n = rng.choice(_SHORT_WORDS), rng.randint(2, 3)
    return f"'{word}' * {n}", word * n, f"'{word * n}'"


def _join(rng: Random) -> tuple[str, str, str]:
    word, other = rng.sample(_SHORT_WORDS, 2)
    return f"'{word}' + '{other}'", word + other, f"'{word + other}'"


def _equal(rng: Random) -> tuple[str, str, str]:
    a = rng.randint(0, 99)
    b = a if rng.random() < 0.5 else rng.randint(0, 99)
    return f"{a} == {b}", str(a == b), ""


@dataclass(frozen=True, slots=True)
class _Template:
    """A family of functions: its expression, the ways to ask for it, and what it computes."""

    expression: str
    asks: tuple[str, ...]
    apply: Callable[[int, int], int | bool]
    numbers: tuple[int, int]


_TEMPLATES: tuple[_Template, ...] = (
    _Template("x + {n}", ("adds {n} to x", "returns x plus {n}"), lambda x, n: x + n, (1, 99)),
    _Template("x - {n}", ("subtracts {n} from x", "returns x minus {n}"), lambda x, n: x - n, (1, 99)),
    _Template("x * {n}", ("multiplies x by {n}", "returns {n} times x"), lambda x, n: x * n, (2, 99)),
    _Template("{n} - x", ("subtracts x from {n}", "returns {n} minus x"), lambda x, n: n - x, (1, 99)),
    _Template("x > {n}", ("tells if x is larger than {n}", "checks if x is over {n}"), lambda x, n: x > n, (1, 99)),
    _Template("x < {n}", ("tells if x is smaller than {n}", "checks if x is under {n}"), lambda x, n: x < n, (1, 99)),
    _Template("x == {n}", ("tells if x is equal to {n}", "checks if x is {n}"), lambda x, n: x == n, (0, 99)),
    _Template("x % {n}", ("gives the rest of x divided by {n}", "returns x modulo {n}"), lambda x, n: x % n, (2, 99)),
)


def python_function(rng: Random, level: Level) -> Exercise:
    """A one-line function from its description, with tests; level 2 and 3 know more operations."""
    template = rng.choice(_TEMPLATES[: (4, 6, 8)[level - 1]])
    n = rng.randint(*template.numbers)
    name = rng.choice("fgh")
    expression = template.expression.format(n=n)
    ask = rng.choice(template.asks).format(n=n)
    question = rng.choice(
        (
            f"Write a Python function {name}(x) that {ask}.",
            f"Write {name}(x) in Python: it {ask}.",
            f"Give a one-line Python function {name}(x) that {ask}.",
        )
    )
    answer = f"def {name}(x): return {expression}"
    inputs = (0, 1, n - 1, n, n + 1, 3 * n + 2)
    tests = tuple((str(x), str(template.apply(x, n))) for x in inputs)
    statements = (
        f"# {name} {ask}\n{answer}",
        f"def {name}(x):\n    # {ask}\n    return {expression}\n\nassert {name}({tests[3][0]}) == {tests[3][1]}",
        f">>> {answer}\n>>> {name}({tests[4][0]})\n{tests[4][1]}",
    )
    key = f"function:{expression}"
    check = Check("function", tests=tests)
    return Exercise(question, answer, key, "python_function", level=level, check=check, statements=statements)
