"""Dialogs from the forms that data sets come in, checked row by row.

| form     | a row                                                                                           |
|----------|-------------------------------------------------------------------------------------------------|
| openai   | `{"messages": [{"role": "system/user/assistant/tool", "content": "..."}]}`                      |
| sharegpt | `{"conversations": [{"from": "system/human/gpt/function_call/observation", "value": "..."}]}`   |
| alpaca   | `{"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [[q, a]]}` |

The rules of a dialog, the same for every form: one system message at most, and it comes first; then a user begins; a
user is followed by an assistant; an assistant by a user or a tool; a tool by another tool or the assistant. A dialog to
learn from ends with an assistant, a prompt does not. An assistant never says nothing. Keys that a row has beside these
are left alone, since published sets carry all kinds.

Tool calls in OpenAI's form become the text that Llama 3.1 models write: `{"name": ..., "parameters": {...}}`. What a
dialog becomes in tokens is `tokenizer/chat_format.py`'s business; rows of preferences are `post/preference_rows.py`'s.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from puna.core.dialog import ROLES, Dialog, Message, Role
from puna.post.rows import Problems, Row, find_files, kind_of, read_rows

Form = Literal["auto", "openai", "sharegpt", "alpaca"]

_OPENAI_ROLES: dict[str, Role] = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_FOLLOWERS: dict[Role | None, tuple[Role, ...]] = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class RowError(Exception):
    """Why a row cannot be used; `read_each` adds where, and no caller ever sees it."""


@dataclass(frozen=True, slots=True)
class DialogRow:
    """A dialog to learn from.

    Attributes:
        dialog: Ends with an assistant.
        source: Where it came from, for the metrics: the row's `source`, or the file's name without suffixes.
        silent: Numbers of the messages that are not learned: those with `"weight": 0` or `"train": false`.
        weight: How much its tokens count: the row's `weight`.
        quality: The row's `quality`, where it has one; higher is better.
        difficulty: The row's `difficulty`, where it has one; higher is harder.
    """

    dialog: Dialog
    source: str
    silent: frozenset[int] = frozenset()
    weight: float = 1.0
    quality: float | None = None
    difficulty: float | None = None


def read_dialogs(paths: Sequence[Path | str], *, form: Form = "auto", max_problems: int = 20) -> list[DialogRow]:
    """Reads every dialog of some files.

    Args:
        paths: JSON lines (`.jsonl`, `.gz`, `.zst`), JSON lists, or folders of these.
        form: The form of the rows; `auto` looks at each row's keys.
        max_problems: Stop after this many unusable rows.

    Returns:
        The dialogs in order.

    Raises:
        MissingError: A file is not there.
        CorruptError: A compressed file is cut short or damaged.
        ConfigError: Rows that cannot be used, each with file, line, what was got and what is allowed.
    """

    def parse(row: Row) -> DialogRow:
        dialog = Dialog(_dialog_messages(row.value, form))
        check_turns(dialog.messages, ends_with=("assistant",))
        weight = number_of(row.value, "weight")
        if weight is not None and weight <= 0:
            raise RowError(f"'weight' is {weight:g}; it must be above 0, or leave the row out")
        return DialogRow(
            dialog,
            _source(row),
            silent=_silent(row.value),
            weight=1.0 if weight is None else weight,
            quality=number_of(row.value, "quality"),
            difficulty=number_of(row.value, "difficulty"),
        )

    return list(read_each(paths, parse, what="dialogs", max_problems=max_problems))


def read_prompts(paths: Sequence[Path | str], *, form: Form = "auto", max_problems: int = 20) -> list[Dialog]:
    """Reads dialogs to answer; a last answer, if there is one, is left out. Arguments and errors as `read_dialogs`."""

    def parse(row: Row) -> Dialog:
        value = row.value
        if form == "auto" and not {"prompt", "messages", "conversations", "instruction"} & value.keys():
            told = f"has the keys {keys_of(value)}; it must have a 'prompt', or be a dialog"
            raise RowError(f"{told}.{meant(value, 'prompt', 'messages')}".rstrip("."))
        if isinstance(value.get("prompt"), list):
            value = {"messages": value["prompt"]}
        elif isinstance(value.get("prompt"), str):
            value = {"messages": [{"role": "user", "content": value["prompt"]}]}
        messages = _dialog_messages(value, form)
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        check_turns(messages, ends_with=("user", "tool"))
        return Dialog(messages)

    return list(read_each(paths, parse, what="prompts", max_problems=max_problems))


_T = TypeVar("_T")


def read_each(paths: Sequence[Path | str], parse: Callable[[Row], _T], *, what: str, max_problems: int) -> Iterator[_T]:
    """Parses every row of some files; what `parse` refuses is collected and raised together.

    Args:
        paths: Files or folders.
        parse: Makes something of a row, or raises RowError.
        what: What the rows are, in the plural, for messages.
        max_problems: Stop after this many unusable rows.

    Yields:
        What `parse` made.

    Raises:
        MissingError: A file is not there.
        CorruptError: A compressed file is cut short or damaged.
        ConfigError: Rows that cannot be used.
    """
    problems = Problems(limit=max_problems, title=f"the {what} cannot be used")
    for path in find_files(paths):
        n_rows, n_problems = 0, problems.count
        for row in read_rows(path, problems):
            n_rows += 1
            try:
                yield parse(row)
            except RowError as refusal:
                problems.add(row.where, str(refusal))
        if n_rows == 0 and problems.count == n_problems:
            problems.add(str(path), f"holds no {what}")
    problems.finish()


def number_of(value: dict[str, Any], key: str) -> float | None:
    """A finite number of a row, or None where it has none.

    Raises:
        RowError: It is something else.
    """
    got = value.get(key)
    if got is None:
        return None
    if type(got) not in (int, float) or not math.isfinite(got):
        raise RowError(f"{key!r} is {got!r}; it must be a number")
    return float(got)


def _silent(value: dict[str, Any]) -> frozenset[int]:
    """Messages of the openai form that say they are not to be learned (`weight` 0, as OpenAI spells it, or `train`)."""
    messages = value.get("messages")
    if not isinstance(messages, list):
        return frozenset()
    silent = set()
    for number, message in enumerate(messages):
        weight, train = message.get("weight", 1), message.get("train", True)
        if weight not in (0, 1) or not isinstance(train, bool):
            raise RowError(
                f"message {number + 1} has weight {weight!r} and train {train!r}; allowed are 0 or 1, and true or false"
            )
        if weight == 0 or not train:
            silent.add(number)
    return frozenset(silent)


def _source(row: Row) -> str:
    source = row.value.get("source")
    return source if isinstance(source, str) and source else row.path.name.partition(".")[0]


def _dialog_messages(value: dict[str, Any], form: Form) -> tuple[Message, ...]:
    if form == "auto":
        form = _detect(value)
    if form == "openai":
        return openai_messages(_need(value, "messages", list, form))
    if form == "sharegpt":
        return _sharegpt(_need(value, "conversations", list, form), value.get("system"))
    return _alpaca(value)


def _detect(value: dict[str, Any]) -> Form:
    if "messages" in value:
        return "openai"
    if "conversations" in value:
        return "sharegpt"
    if "instruction" in value:
        return "alpaca"
    raise RowError(
        f"has the keys {keys_of(value)}; a dialog has 'messages' (openai), 'conversations' (sharegpt) or "
        f"'instruction' and 'output' (alpaca).{meant(value, 'messages', 'conversations', 'instruction')}".rstrip(".")
    )


def keys_of(value: dict[str, Any]) -> str:
    """The first keys of a row, for a message."""
    return ", ".join(repr(key) for key in list(value)[:8]) or "none"


def meant(value: dict[str, Any], *wanted: str) -> str:
    """A question about a key that is nearly one of those that are missing, or nothing."""
    others = [key for key in value if key not in wanted]
    for key in wanted:
        near = get_close_matches(key, others, n=1) if key not in value else []
        if near:
            return f" Did you mean {key!r} instead of {near[0]!r}?"
    return ""


def _need(value: dict[str, Any], key: str, kind: type, form: str) -> Any:
    if key not in value:
        raise RowError(f"has the keys {keys_of(value)}; a row in the {form} form must have {key!r}")
    if not isinstance(value[key], kind):
        raise RowError(f"{key!r} is {kind_of(value[key])}; it must be {kind_of(kind())}")
    return value[key]


def _list(value: dict[str, Any], key: str, name: str) -> list[Any]:
    got = value.get(key)
    if got is not None and not isinstance(got, list):
        raise RowError(f"{key!r} of {name} is {kind_of(got)}; it must be a list")
    return got or []


def text_of(value: Any, name: str) -> str:
    """The value, which must be text that UTF-8 can hold; `name` is what a message calls it."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}; it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half a character (a lone surrogate) at place {error.start + 1}") from None
    return value


def _role(value: Any, allowed: dict[str, Role], name: str) -> Role:
    role = allowed.get(value) if isinstance(value, str) else None
    if role is None:
        raise RowError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    return role


def openai_messages(messages: list[Any]) -> tuple[Message, ...]:
    """Reads OpenAI-style messages.

    Raises:
        RowError: One of them cannot be used.
    """
    parsed = []
    for number, message in enumerate(messages, start=1):
        name = f"message {number}"
        if not isinstance(message, dict):
            raise RowError(f"{name} is {kind_of(message)}; it must be an object with 'role' and 'content'")
        if "role" not in message:
            raise RowError(f"{name} has the keys {keys_of(message)}; it must have 'role' and 'content'")
        role = _role(message["role"], _OPENAI_ROLES, f"the role of {name}")
        parsed.append(Message(role, _openai_content(message, name)))
    return tuple(parsed)


def _openai_content(message: dict[str, Any], name: str) -> str:
    calls = [_tool_call(call, name) for call in _list(message, "tool_calls", name)]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, name) for part in content)
    if calls:
        return "\n".join(([text_of(content, f"the content of {name}")] if content else []) + calls)
    if content is None and "content" not in message:
        raise RowError(f"{name} has the keys {keys_of(message)}; it must have 'role' and 'content'")
    return text_of(content, f"the content of {name}")


def _part(part: Any, name: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return text_of(part.get("text"), f"a part of {name}")
    got = part.get("type") if isinstance(part, dict) else kind_of(part)
    raise RowError(f"a part of {name} is {got!r}; only parts of type 'text' can be used")


def _tool_call(call: Any, name: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"a tool call of {name} must be an object with function.name and function.arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise RowError(f"the arguments of tool call {function['name']!r} are not JSON: {error}") from None
    return text_of(json.dumps({"name": function["name"], "parameters": arguments}, ensure_ascii=False), "a tool call")


def _sharegpt(turns: list[Any], system: Any) -> tuple[Message, ...]:
    parsed = [Message("system", text_of(system, "'system'"))] if system else []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise RowError(f"turn {number} must be an object with 'from' and 'value'")
        role = _role(turn["from"], _SHAREGPT_ROLES, f"'from' of turn {number}")
        parsed.append(Message(role, text_of(turn["value"], f"'value' of turn {number}")))
    return tuple(parsed)


def _alpaca(value: dict[str, Any]) -> tuple[Message, ...]:
    messages = [Message("system", text_of(value["system"], "'system'"))] if value.get("system") else []
    for number, exchange in enumerate(_list(value, "history", "the row"), start=1):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError(f"exchange {number} of 'history' must be a list of a question and an answer")
        messages.append(Message("user", text_of(exchange[0], f"the question of exchange {number}")))
        messages.append(Message("assistant", text_of(exchange[1], f"the answer of exchange {number}")))
    question = text_of(_need(value, "instruction", str, "alpaca"), "'instruction'")
    if value.get("input"):
        question += "\n\n" + text_of(value["input"], "'input'")
    messages.append(Message("user", question))
    messages.append(Message("assistant", text_of(_need(value, "output", str, "alpaca"), "'output'")))
    return tuple(messages)


def check_turns(messages: Sequence[Message], *, ends_with: tuple[Role, ...], after: Role | None = None) -> None:
    """Refuses what the rules at the head of this file do not allow; `after` is the role spoken before the first."""
    if not messages:
        raise RowError("holds no message")
    previous = after
    for number, message in enumerate(messages, start=1):
        if message.role == "system":
            if number > 1 or after is not None:
                raise RowError(f"message {number} is a system message; there may be one, as the first")
            continue
        allowed = _FOLLOWERS[previous]
        if message.role not in allowed:
            follows = f"follows {previous}" if previous else "comes first"
            raise RowError(f"message {number} is {message.role} and {follows}; allowed there: {' or '.join(allowed)}")
        if message.role == "assistant" and not message.content.strip():
            raise RowError(f"message {number} is an empty assistant answer; there is nothing to learn from it")
        previous = message.role
    if messages[-1].role not in ends_with:
        raise RowError(f"the last message is {messages[-1].role}; it must be {' or '.join(ends_with)}")
