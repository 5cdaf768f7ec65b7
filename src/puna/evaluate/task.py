"""What a task is: a name, items, and how their answers are counted.

There are three kinds of item, one for each thing that a `Generator` can be asked:

- `ChoiceItem`: score every continuation, the likeliest one is the answer (`acc`, and `acc_norm` per byte);
- `AnswerItem`: let it speak, then a judge looks at the text (`exact_match`);
- `PassageItem`: score a whole text (`bits_per_byte`).

A task is data: building one reads files and formats prompts, running it (`run.py`) asks the generator. An item's id is
stable and unique within its task, which makes runs resumable and two runs comparable item by item.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from puna.core.dialog import Dialog
from puna.core.generator import Prompt, Sampling

GREEDY = Sampling(max_tokens=64, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of an answer.

    Attributes:
        correct: Right or wrong.
        reason: In a few fixed words that can be counted.
        extracted: The part of the answer that was compared, when it is a part.
    """

    correct: bool
    reason: str
    extracted: str = ""


Judge = Callable[[str], Judgement]


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """Multiple choice by likelihood.

    Attributes:
        id: Stable and unique in the task.
        prompts: One prompt a choice; mostly all the same.
        continuations: One text a choice, as it follows its prompt (with its leading space after raw text).
        gold: Index of the right choice. With one choice alone, right means that greedy decoding would say it.
        group: What macro averages run over: a subject, a kind.
        cluster: Items that share a passage share a cluster.
    """

    id: str
    prompts: tuple[Prompt, ...]
    continuations: tuple[str, ...]
    gold: int
    group: str = ""
    cluster: str = ""

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.continuations), f"{self.id}: prompts and continuations differ in number"
        assert 0 <= self.gold < len(self.continuations), f"{self.id}: gold is {self.gold}"


@dataclass(frozen=True, slots=True)
class AnswerItem:
    """Generate, then match.

    Attributes:
        id: Stable and unique in the task.
        prompt: What is asked.
        target: The right answer, for reports and as part of the item's identity.
        judge: Looks at the whole answer.
        group: As in `ChoiceItem`.
        cluster: As in `ChoiceItem`.
    """

    id: str
    prompt: Prompt
    target: str
    judge: Judge = field(compare=False)
    group: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class PassageItem:
    """A text whose likelihood is measured.

    Attributes:
        id: Stable and unique in the task.
        text: The text; the generator cuts it into windows where it is longer than its context.
        group: As in `ChoiceItem`.
        cluster: As in `ChoiceItem`.
    """

    id: str
    text: str
    group: str = ""
    cluster: str = ""


Item = ChoiceItem | AnswerItem | PassageItem


@dataclass(frozen=True, slots=True)
class Task:
    """A set of items with one way to count them.

    Attributes:
        name: In reports and files; unique in a run.
        items: At least one, all of one class.
        primary: The metric that stands in tables.
        average: `micro` counts every item the same, `macro` every group.
        sampling: How answers are drawn; greedy unless the task says otherwise.
        n_shot: Solved examples in each prompt.
        about: One line: where the items come from, what is right.
        judged_at_once: Answers judged side by side, where a judge waits for other processes.
    """

    name: str
    items: tuple[Item, ...]
    primary: str
    average: Literal["micro", "macro"] = "micro"
    sampling: Sampling = GREEDY
    n_shot: int = 0
    about: str = ""
    judged_at_once: int = 1

    def __post_init__(self) -> None:
        assert self.items, f"task {self.name} has no items"
        assert len({type(item) for item in self.items}) == 1, f"task {self.name} mixes kinds of items"
        assert len({item.id for item in self.items}) == len(self.items), f"task {self.name} has an id twice"


def shown(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON: text, or OpenAI-style messages."""
    return prompt.as_messages() if isinstance(prompt, Dialog) else prompt
