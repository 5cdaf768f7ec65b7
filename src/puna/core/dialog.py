"""One dialog type for data, training, inference, evaluation and serving: a tuple of messages, immutable and hashable.

The canonical outside form is OpenAI's: `{"messages": [{"role": ..., "content": ...}]}`. How a dialog becomes tokens is
the tokenizer's business (`tokenizer/chat_format.py`); which roles may follow each other is the reader's
(`post/dialogs.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and what is said."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        assert self.role in ROLES, f"role is {self.role!r}, allowed are {ROLES}"


@dataclass(frozen=True, slots=True)
class Dialog:
    """A conversation: messages in order."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, *turns: tuple[Role, str]) -> "Dialog":
        """Build a dialog from `(role, content)` pairs: `Dialog.of(("user", "Hi"))`."""
        return cls(tuple(Message(role, content) for role, content in turns))

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, str]]) -> "Dialog":
        """Build a dialog from OpenAI-style message dictionaries that are known to be valid."""
        return cls(tuple(Message(m["role"], m["content"]) for m in messages))  # type: ignore[arg-type]

    def as_messages(self) -> list[dict[str, str]]:
        """The dialog as OpenAI-style message dictionaries."""
        return [{"role": m.role, "content": m.content} for m in self.messages]

    def plus(self, role: Role, content: str) -> "Dialog":
        """A new dialog with one more message at its end."""
        return Dialog((*self.messages, Message(role, content)))
