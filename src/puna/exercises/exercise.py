"""One exercise: a question, its answer, what makes an answer right, and the two forms in which a model meets it.

The *key* names the canonical problem, not its wording: `add:27:35` is the key of "What is 27 + 35?" and of "Add 35 and
27.". A stable hash of the key alone decides the split, so no problem of the test split can occur in training under
another wording. Kinds that ask for the same fact share a key (a Python `max([3, 9])` and "the largest of 9, 3").

A key that begins with `known:` is a building block: always trained, never tested. The tables of one digit are blocks,
since worked answers to larger sums quote them; so are greetings with nothing to fill in.

`as_text` gives prose for pretraining, `as_dialog` a turn for fine-tuning. What the model should say is `response`; what
counts in it is `answer` (equal, unless the response shows its working: `20 + 30 = 50, 7 + 5 = 12, 50 + 12 = 62`).
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from puna.core.dialog import Dialog

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Level = Literal[1, 2, 3]
How = Literal["text", "number", "letters", "list", "function"]

KNOWN = "known:"
TEST_SHARE = 10
"""One problem in so many is held out."""


@dataclass(frozen=True, slots=True)
class Check:
    """What the verifier needs beside the answer.

    Attributes:
        how: `text` (equal after light normalisation), `number` (whole number, possibly after its working), `letters`
            (in order, however separated), `list` (items between commas), `function` (Python that passes `tests`).
        accept: Further texts that are right.
        tests: For `function`: pairs of argument and result, both as Python literals.
    """

    how: How = "text"
    accept: tuple[str, ...] = ()
    tests: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Exercise:
    """A checkable task.

    Attributes:
        question: One line, as a user would write it.
        answer: The shortest right answer.
        key: The canonical problem.
        kind: Name of its kind in `generate.KINDS`.
        language: BCP 47 code of the question.
        level: Difficulty within the kind.
        check: Data for the verifier.
        working: What the model should say when it is more than the answer; one line. Empty means the answer.
        statements: The same fact as prose, for pretraining.
    """

    question: str
    answer: str
    key: str
    kind: str
    language: str = "en"
    level: Level = 1
    check: Check = field(default_factory=Check)
    working: str = ""
    statements: tuple[str, ...] = ()

    @property
    def response(self) -> str:
        """What the model should say."""
        return self.working or self.answer

    @property
    def split(self) -> Split:
        """The split that this problem belongs to."""
        return split_of(self.key)

    def as_text(self, form: int | None = None) -> str:
        """The exercise as text for pretraining.

        Args:
            form: 0 is `Question: ... Answer: ...`, higher ones are the kind's prose; taken modulo their number. None
                chooses one by a stable hash of the question.
        """
        if form is None:
            form = stable_hash(f"form:{self.question}")
        index = form % (1 + len(self.statements))
        if index == 0:
            return f"Question: {self.question}\nAnswer: {self.response}"
        return self.statements[index - 1]

    def as_dialog(self) -> Dialog:
        """The exercise as one question and one answer."""
        return Dialog.of(("user", self.question), ("assistant", self.response))

    def as_json(self) -> dict[str, Any]:
        """The exercise as JSON values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Exercise":
        """Build an exercise from what `as_json` gave."""
        check = record["check"]
        tests = tuple((arguments, result) for arguments, result in check["tests"])
        rebuilt = Check(check["how"], tuple(check["accept"]), tests)
        return cls(**{**record, "check": rebuilt, "statements": tuple(record["statements"])})


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(key: str) -> Split:
    """The split of a canonical problem: one in `TEST_SHARE` is held out, building blocks never are."""
    if key.startswith(KNOWN):
        return "train"
    return "test" if stable_hash(f"puna exercises:{key}") % TEST_SHARE == 0 else "train"
