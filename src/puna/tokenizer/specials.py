"""Llama 3's 256 special tokens: ids that follow the ranks, never reachable from text.

The *ids* have been the same since April 2024; some *names* changed with 3.1 (a padding token, end of message, the
python tag). So code asks for a meaning (`specials.eot`), which is an offset from the first special id, and files keep
the names they were written with.

Source: the special token tables of Llama 3 (April 2024) and of the Llama 3.1 release.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from puna.core.errors import UsageError

COUNT = 256
Layout = Literal["llama3", "llama3.1"]

_FIXED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_RENAMED_IN_3_1 = {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}


def layout_names(layout: Layout) -> tuple[str, ...]:
    """The 256 names of a release, in the order of their ids."""
    named = dict(_FIXED) if layout == "llama3" else {**_FIXED, **_RENAMED_IN_3_1}
    reserved = iter(range(COUNT))
    return tuple(named.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(COUNT))


@dataclass(frozen=True)
class Specials:
    """The special tokens of one tokenizer.

    Attributes:
        first_id: Id of `<|begin_of_text|>`: the number of ranks.
        names: The 256 names in the order of their ids.
    """

    first_id: int
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != COUNT or len(set(self.names)) != COUNT:
            raise UsageError(
                f"a Llama 3 tokenizer has {COUNT} different special tokens, this one has {len(set(self.names))}. "
                "Convert it with its own tools, or train one with `puna tokenize`."
            )
        for offset, name in _FIXED.items():
            if self.names[offset] != name:
                raise UsageError(
                    f"special token {self.first_id + offset} is {self.names[offset]!r}, in Llama 3 it is {name!r}. "
                    "This tokenizer has another layout and cannot be used here."
                )

    @classmethod
    def of(cls, first_id: int, names: Sequence[str] | None = None, *, layout: Layout = "llama3.1") -> "Specials":
        """Specials after `first_id` ranks, named by a file or by a release's layout."""
        return cls(first_id, tuple(names) if names is not None else layout_names(layout))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each name."""
        return {name: self.first_id + offset for offset, name in enumerate(self.names)}

    def name(self, token_id: int) -> str:
        """Name of a special id."""
        assert token_id in self, f"{token_id} is not a special id"
        return self.names[token_id - self.first_id]

    def __contains__(self, token_id: int) -> bool:
        return self.first_id <= token_id < self.first_id + COUNT

    @property
    def bos(self) -> int:
        """`<|begin_of_text|>`: opens every document and every dialog."""
        return self.first_id

    @property
    def end_of_text(self) -> int:
        """`<|end_of_text|>`: closes a document."""
        return self.first_id + 1

    @property
    def pad(self) -> int:
        """`<|finetune_right_pad_id|>` (3.1; reserved before)."""
        return self.first_id + 4

    @property
    def start_header(self) -> int:
        """`<|start_header_id|>`: opens the name of who speaks."""
        return self.first_id + 6

    @property
    def end_header(self) -> int:
        """`<|end_header_id|>`: closes the name of who speaks."""
        return self.first_id + 7

    @property
    def eom(self) -> int:
        """`<|eom_id|>`: end of a message that expects a tool's answer (3.1; reserved before)."""
        return self.first_id + 8

    @property
    def eot(self) -> int:
        """`<|eot_id|>`: end of turn."""
        return self.first_id + 9

    @property
    def python_tag(self) -> int:
        """`<|python_tag|>`: opens a tool call (3.1; reserved before)."""
        return self.first_id + 10
