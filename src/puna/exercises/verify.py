"""Whether an answer is right, and if not, why not: a strict comparison, a restricted evaluator, never an execution.

Light normalisation only: Unicode NFC, white space, a final full stop, upper and lower case. A number may follow its
working (`20 + 30 = 50, 7 + 5 = 12, 50 + 12 = 62`): what stands after the last `=`
counts. An answer that goes on talking is wrong.
"""

import ast
import re
import unicodedata
from dataclasses import dataclass

from puna.exercises.exercise import Exercise
from puna.exercises.expression import MAX_SOURCE, ForbiddenError, parse_function

MAX_ANSWER = 400
"""Characters; nothing here needs more."""

_SEPARATOR = re.compile(r"\s*[,、،]\s*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement.

    Attributes:
        correct: Whether the answer is right.
        reason: `correct`, or what is wrong, in a few fixed words that can be counted.
    """

    correct: bool
    reason: str


RIGHT = Verdict(True, "correct")


def verify(exercise: Exercise, answer: str) -> Verdict:
    """Judge an answer.

    Args:
        exercise: The task.
        answer: All that the model said.

    Returns:
        The verdict with its reason.
    """
    text = _normal(answer)
    if not text:
        return Verdict(False, "empty")
    if len(text) > MAX_ANSWER:
        return Verdict(False, "too long")
    how = exercise.check.how
    if how == "function":
        return _verify_function(exercise, answer.strip())
    expected = _normal(exercise.answer)
    if text in {expected, *map(_normal, exercise.check.accept)}:
        return RIGHT
    if how == "number":
        return _verify_number(text, expected)
    if how == "letters":
        return _verify_items(list(re.sub(r"[\s,-]", "", text)), expected.split(" "), "letters")
    if how == "list":
        return _verify_items(_SEPARATOR.split(text), _SEPARATOR.split(expected), "items")
    return Verdict(False, "right start, then more" if text.startswith(expected) else "other text")


def _normal(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.rstrip(".。।").rstrip().casefold()


def _verify_number(text: str, expected: str) -> Verdict:
    final = text.rpartition("=")[2].strip()
    if final == expected:
        return RIGHT
    if re.fullmatch(r"-?[0-9]+", final):
        return Verdict(False, "other number")
    return Verdict(False, "no number at the end")


def _verify_items(given: list[str], expected: list[str], what: str) -> Verdict:
    if given == expected:
        return RIGHT
    if sorted(given) == sorted(expected):
        return Verdict(False, f"{what} in another order")
    if len(given) != len(expected):
        return Verdict(False, f"another number of {what}")
    return Verdict(False, f"other {what}")


def _verify_function(exercise: Exercise, answer: str) -> Verdict:
    if len(answer) > MAX_SOURCE:
        return Verdict(False, "too long")
    try:
        function = parse_function(answer)
    except ForbiddenError:
        return Verdict(False, "not a one-line function")
    for arguments, result in exercise.check.tests:
        values = ast.literal_eval(f"({arguments},)")
        try:
            given = function(*values)
        except ForbiddenError:
            return Verdict(False, "cannot be evaluated")
        expected = ast.literal_eval(result)
        if type(given) is not type(expected) or given != expected:
            return Verdict(False, "fails a test")
    return RIGHT
