r"""Llama 3's chat format, straight to tokens.

A message is `<|start_header_id|>ROLE<|end_header_id|>`, two line ends, its content without space around it, and
`<|eot_id|>`; a dialog opens with `<|begin_of_text|>`. The role `tool` is spelt `ipython`, as Llama 3.1 does.

Text never goes through a template: headers are placed as ids, content is encoded as ordinary text, so nothing that a
user writes can close a turn or open another. `render` says which tokens a model is trained on: what the assistant says
and the `<|eot_id|>` with which it stops. `prompt` is a prefix of the `render` of the same dialog with an answer, so a
model meets in use exactly what it was trained on.

Differs: the jinja template of `tokenizer_config.json`, for other tools, gives the same tokens except where content
spells a special token: there the template's text turns into that token, here it does not.

Source: `ChatFormat` of the official Llama 3 code (behaviour); Llama 3.1 prompt format.
"""

from dataclasses import dataclass

from puna.core.dialog import Dialog, Role
from puna.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    """A dialog as tokens.

    Attributes:
        tokens: Ids, opening with begin-of-text.
        supervised: For each token, whether training should predict it: the assistant's content and its end of turn.
        turns: For each token the message whose content or end of turn it is; -1 in headers and at the beginning.
    """

    tokens: list[int]
    supervised: list[bool]
    turns: list[int]


def render(tokenizer: Tokenizer, dialog: Dialog) -> Rendered:
    """A whole dialog for training.

    Args:
        tokenizer: Gives the ids.
        dialog: Messages in order.

    Returns:
        Tokens and, of the same length, which of them are supervised.
    """
    tokens = [tokenizer.specials.bos]
    supervised, turns = [False], [-1]
    for number, message in enumerate(dialog.messages):
        head = _header(tokenizer, message.role)
        body = [*tokenizer.encode(message.content.strip()), tokenizer.specials.eot]
        tokens += head + body
        supervised += [False] * len(head) + [message.role == "assistant"] * len(body)
        turns += [-1] * len(head) + [number] * len(body)
    return Rendered(tokens, supervised, turns)


def prompt(tokenizer: Tokenizer, dialog: Dialog) -> list[int]:
    """A dialog for the model to go on with: its messages and the header of an assistant's turn."""
    return render(tokenizer, dialog).tokens + _header(tokenizer, "assistant")


def stop_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: end of turn, end of message, end of text."""
    return frozenset({tokenizer.specials.eot, tokenizer.specials.eom, tokenizer.specials.end_of_text})


def _header(tokenizer: Tokenizer, role: Role) -> list[int]:
    name = "ipython" if role == "tool" else role
    specials = tokenizer.specials
    return [specials.start_header, *tokenizer.encode(name), specials.end_header, *tokenizer.encode("\n\n")]
