"""Judges for generated answers: equality with known texts, a pattern's match, the number at the end.

Each returns its reason with its verdict. They look at text alone; nothing here runs what a model wrote.
"""

import re
import string
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from puna.evaluate.task import Judge, Judgement

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?")
_FINAL_NUMBER = re.compile(r"(?:####|answer is:?)\s*(-?\$?\d+(?:,\d{3})*(?:\.\d+)?)", re.IGNORECASE)


def plain(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus spaces (the normalisation of SQuAD)."""
    text = "".join(" " if c in string.punctuation else c for c in text.casefold())
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact(*targets: str, normalise: bool = True) -> Judge:
    """Right when the first line of the answer equals one of the targets."""
    normal = plain if normalise else str.strip
    allowed = {normal(target) for target in targets}

    def judge(answer: str) -> Judgement:
        lines = answer.strip().splitlines()
        given = normal(lines[0]) if lines else ""
        if not given:
            return Judgement(False, "empty")
        return Judgement(given in allowed, "correct" if given in allowed else "other text", given)

    return judge


def pattern(expression: str, target: str) -> Judge:
    """Right when the last match of a regular expression (its first group, if it has one) equals the target."""
    compiled = re.compile(expression)

    def judge(answer: str) -> Judgement:
        found = [m.group(1) if compiled.groups else m.group(0) for m in compiled.finditer(answer)]
        if not found or found[-1] is None:
            return Judgement(False, "pattern not found")
        same = found[-1].strip() == target.strip()
        return Judgement(same, "correct" if same else "other match", found[-1])

    return judge


def final_number(target: str) -> Judge:
    """Right when the number after `####` or `answer is`, else the last number of the answer, has the target's value."""
    wanted = _value(target)
    assert wanted is not None, f"target {target!r} is not a number"

    def judge(answer: str) -> Judgement:
        marked = _FINAL_NUMBER.findall(answer)
        numbers = marked or _NUMBER.findall(answer)
        if not numbers:
            return Judgement(False, "no number")
        same = _value(numbers[-1]) == wanted
        return Judgement(same, "correct" if same else "other number", numbers[-1])

    return judge


def letter(target: str, letters: Sequence[str]) -> Judge:
    """Right when the answer names the right letter: alone, in brackets, or after `answer is`."""
    choice = re.compile(rf"(?:answer is:?\s*)?\(?\b([{''.join(letters)}])\b", re.IGNORECASE)
    alone = re.compile(rf"^\s*\(?([{''.join(letters)}])\b", re.IGNORECASE)

    def judge(answer: str) -> Judgement:
        found = re.findall(rf"answer is:?\s*\(?([{''.join(letters)}])\b", answer, re.IGNORECASE)
        match = alone.match(answer) or (None if found else choice.search(answer.upper()))
        given = found[-1].upper() if found else match.group(1).upper() if match else ""
        if not given:
            return Judgement(False, "no letter")
        return Judgement(given == target, "correct" if given == target else "other letter", given)

    return judge


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$,\s]", "", text))
    except InvalidOperation:
        return None
