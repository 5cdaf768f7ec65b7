r"""Preference rows: a prompt with a chosen and a rejected answer.

    {"prompt": ..., "chosen": ..., "rejected": ...}                 each of them text or a list of messages
    {"chosen": [messages], "rejected": [messages]}                  the common beginning is the prompt
    {"chosen": "\n\nHuman: ...", "rejected": "\n\nHuman: ..."}     transcripts, as HH-RLHF writes them

with, where known, `strength` (Llama 3's four levels, by name or 1 to 4), `edited` (a person's better version of the
chosen answer), `annotator`, `round`, `source`, `weight` (how much the row counts) and `probability` (that the chosen
answer is the better one, as several annotators' labels give it). A chosen answer that repeats the prompt's messages, as
UltraFeedback writes it, loses them. The rules of turns are those of `post/dialogs.py`.

Other tools' columns may stand beside these, except one that is nearly one of these keys: a mistyped key would be lost
in silence. In a row that has a key of this form alone (`strength`, `edited`, ...), every other key must be known.

Source: The Llama 3 Herd of Models (2407.21783), section 4.2.1 (levels of strength; edited > chosen > rejected).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from puna.core.dialog import Dialog, Message, Role
from puna.post.dialogs import RowError, check_turns, keys_of, meant, openai_messages, read_each, text_of
from puna.post.rows import Row, kind_of

Strength = Literal["marginally_better", "slightly_better", "better", "significantly_better"]
STRENGTHS: tuple[Strength, ...] = ("marginally_better", "slightly_better", "better", "significantly_better")
MAX_WEIGHT = 1000.0
"""Largest weight of a row: one that counts more than a thousand others is a slip, and would be all that is learned."""
_KEYS = ("prompt", "chosen", "rejected", "ranking", "edited", "strength", "annotator", "round", "source")
_KEYS += ("weight", "probability")
_OURS_ALONE = ("edited", "strength", "probability", "verdict")
_BESIDE = frozenset(
    {"item", "verdict", "model_chosen", "model_rejected"}  # of `puna annotate qa`
    | {"id", "metadata", "prompt_id", "messages", "annotator_id", "annotation", "annotations"}
    | {"score_chosen", "score_rejected", "chosen-model", "rejected-model", "chosen-rating", "rejected-rating"}
    | {"chosen_is"}  # of `puna annotate export ultrafeedback`
)
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_OPTIONAL = ("strength", "annotator", "round", "source", "weight", "probability")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which a judge preferred the first.

    Attributes:
        prompt: Ends with a user or a tool.
        chosen: The preferred answer: messages that begin and end with an assistant.
        rejected: The other answer.
        edited: A person's improvement of the chosen answer, better than both.
        strength: How much better the chosen answer is, in Llama 3's four levels.
        annotator: Who judged.
        round: Round of collection, counted from 1.
        source: Where the row came from.
        weight: How much the row counts, above 0, at most `MAX_WEIGHT`; None counts once.
        probability: That the chosen answer is really the better one, 0.5 to 1; None is certain.
    """

    prompt: Dialog
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    edited: tuple[Message, ...] | None = None
    strength: Strength | None = None
    annotator: str | None = None
    round: int | None = None
    source: str | None = None
    weight: float | None = None
    probability: float | None = None

    @property
    def best(self) -> tuple[Message, ...]:
        """The edited answer where there is one, otherwise the chosen one."""
        return self.edited or self.chosen

    def as_row(self) -> dict[str, Any]:
        """The preference as a JSON row that `read_preferences` gives back."""
        row: dict[str, Any] = {"prompt": self.prompt.as_messages()}
        for name in ("chosen", "rejected", "edited"):
            messages = getattr(self, name)
            if messages is not None:
                row[name] = Dialog(messages).as_messages()
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        return row | {name: value for name, value in optional.items() if value is not None}


def read_preferences(paths: Sequence[Path | str], *, max_problems: int = 20) -> list[Preference]:
    """Reads every preference row of some files.

    Args:
        paths: JSON lines (`.jsonl`, `.gz`, `.zst`), JSON lists, or folders of these.
        max_problems: Stop after this many unusable rows.

    Returns:
        The preferences in order.

    Raises:
        MissingError: A file is not there.
        CorruptError: A compressed file is cut short or damaged.
        ConfigError: Rows that cannot be used, each with file, line, what was got and what is allowed.
    """
    return list(read_each(paths, parse_preference, what="preferences", max_problems=max_problems))


def refuse_keys(value: dict[str, Any]) -> None:
    """Refuses keys that would be passed over although they were meant.

    Raises:
        RowError: A key is nearly one of this form; or is not known beside keys that only this form has; or the row is a
            ranking and a pair at once.
    """
    given = {key for key, found in value.items() if found is not None}
    if "ranking" in given:
        both = [key for key in ("chosen", "rejected", "edited", "strength", "weight", "probability") if key in given]
        if both:
            raise RowError(f"has 'ranking' and {both[0]!r}; a row is either a ranking or a pair. Make two rows of it")
    strange = [key for key in value if key not in _KEYS and key not in _BESIDE]
    for key in strange:
        near = get_close_matches(key.lower(), [known for known in _KEYS if known not in value], n=1, cutoff=0.8)
        if near:
            told = f"has the keys {keys_of(value)}; {key!r} is not one of preferences"
            raise RowError(f"{told}. Did you mean {near[0]!r} instead of {key!r}?")
    ours = [key for key in _OURS_ALONE if key in given]
    if strange and ours:
        raise RowError(
            f"{strange[0]!r} beside {ours[0]!r} is not a key of preferences; allowed are {', '.join(_KEYS)}, and "
            "'metadata' for whatever else is known"
        )


def parse_prompted(row: Row, answers: Sequence[Any], name: str) -> tuple[Dialog, tuple[tuple[Message, ...], ...]]:
    """The prompt of a row and answers to it.

    Args:
        row: Has a `prompt`.
        answers: Text or lists of messages.
        name: What a message calls each, with its number: `"answer {}"`.

    Raises:
        RowError: Something cannot be used.
    """
    if row.value.get("prompt") is None:
        told = f"has the keys {keys_of(row.value)}; it must have a 'prompt'"
        raise RowError(f"{told}.{meant(row.value, 'prompt')}".rstrip("."))
    prompt = _prompt(row.value["prompt"])
    names = [name.format(number) for number in range(1, len(answers) + 1)]
    parsed = tuple(
        _check(named, _without(prompt, _answer(given, named)), ends_with=("assistant",), after=prompt[-1].role)
        for named, given in zip(names, answers, strict=True)
    )
    return Dialog(prompt), parsed


def parse_preference(row: Row) -> Preference:
    """One row as a preference.

    Raises:
        RowError: It cannot be used.
    """
    value = row.value
    refuse_keys(value)
    for key in ("chosen", "rejected"):
        if key not in value:
            told = f"has the keys {keys_of(value)}; a preference must have 'chosen' and 'rejected'"
            raise RowError(f"{told}.{meant(value, 'chosen', 'rejected')}".rstrip("."))
    chosen, rejected = _answer(value["chosen"], "'chosen'"), _answer(value["rejected"], "'rejected'")
    edited = _answer(value["edited"], "'edited'") if value.get("edited") is not None else None
    if value.get("prompt") is not None:
        prompt = _prompt(value["prompt"])
    else:
        chosen, rejected = _transcript(chosen), _transcript(rejected)
        prompt = _check("'prompt'", _common_prompt(chosen, rejected), ends_with=("user", "tool"))
    last = prompt[-1].role
    preference = Preference(
        prompt=Dialog(prompt),
        chosen=_check("'chosen' after the prompt", _without(prompt, chosen), ends_with=("assistant",), after=last),
        rejected=_check(
            "'rejected' after the prompt", _without(prompt, rejected), ends_with=("assistant",), after=last
        ),
        edited=None
        if edited is None
        else _check("'edited' after the prompt", _without(prompt, edited), ends_with=("assistant",), after=last),
        strength=_strength(value.get("strength")),
        annotator=_optional(value, "annotator", str),
        round=_optional(value, "round", int),
        source=_optional(value, "source", str),
        weight=_number(value, "weight", 0.0, MAX_WEIGHT),
        probability=_number(value, "probability", 0.5, 1.0),
    )
    if [m.content.strip() for m in preference.best] == [m.content.strip() for m in preference.rejected]:
        raise RowError("the better answer and 'rejected' are the same; there is no preference to learn")
    return preference


def _prompt(given: Any) -> tuple[Message, ...]:
    prompt = _check("'prompt'", _answer(given, "'prompt'", role="user"), ends_with=("user", "tool"))
    if prompt[-1].role == "user" and not prompt[-1].content.strip():
        raise RowError("'prompt' is empty; it must say what was asked")
    return prompt


def _check(
    name: str, messages: tuple[Message, ...], *, ends_with: tuple[Role, ...], after: Role | None = None
) -> tuple[Message, ...]:
    try:
        check_turns(messages, ends_with=ends_with, after=after)
    except RowError as refusal:
        raise RowError(f"{name}: {refusal}") from None
    return messages


def _answer(value: Any, name: str, role: Role = "assistant") -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role, text_of(value, name)),)
    if isinstance(value, list):
        try:
            return openai_messages(value)
        except RowError as refusal:
            raise RowError(f"{name}: {refusal}") from None
    raise RowError(f"{name} is {kind_of(value)}; it must be text or a list of messages")


def _transcript(answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """Cuts HH-RLHF's one text into messages; anything else stays as it is."""
    if len(answer) != 1 or not answer[0].content.startswith("\n\nHuman:"):
        return answer
    _, *parts = _TRANSCRIPT.split(answer[0].content)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], text.strip()) for speaker, text in turns)


def _common_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1].role == "assistant":
        same -= 1
    if same == 0:
        raise RowError("has no 'prompt', and 'chosen' and 'rejected' do not begin with the same messages")
    return chosen[:same]


def _without(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """An answer that repeats the prompt's messages (UltraFeedback's form) loses them."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def _strength(value: Any) -> Strength | None:
    if value is None:
        return None
    if type(value) is int and 1 <= value <= len(STRENGTHS):
        return STRENGTHS[value - 1]
    if value in STRENGTHS:
        return value
    raise RowError(f"'strength' is {value!r}; allowed are {', '.join(STRENGTHS)}, or 1 to {len(STRENGTHS)}")


def _number(value: dict[str, Any], key: str, low: float, high: float) -> float | None:
    got = value.get(key)
    if got is None:
        return None
    if type(got) not in (int, float) or not low <= got <= high or got == 0:
        allowed = f"above 0, at most {high:g}" if low == 0 else f"{low:g} to {high:g}"
        raise RowError(f"{key!r} is {got!r}; it must be a number {allowed}")
    return float(got)


def _optional(value: dict[str, Any], key: str, kind: type[_T]) -> _T | None:
    got = value.get(key)
    if got is None:
        return None
    if not isinstance(got, kind) or isinstance(got, bool):
        raise RowError(f"{key!r} is {kind_of(got)}; it must be {kind_of(kind())}")
    return got
