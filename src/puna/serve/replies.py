"""The bodies that go back: whole completions, stream chunks, token logprobs, usage. Dictionaries in OpenAI's form.

A stream is: a chunk with the role; chunks with text; a chunk of its own with the finish reason; when asked for, one
with the usage and no choices; `[DONE]`. Clients break when the finish reason rides on the last piece of text, or is
missing, so a golden test holds the order. Token logprobs come in one chunk of their own after the text.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from puna.core.generator import Completion

TokenBytes = Callable[[int], bytes]
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_LOWEST_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event. ASCII only: some clients take U+2028 or U+0085 for the end of a line."""
    return b"data: " + json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every body of one request carries.

    Attributes:
        id: `chatcmpl-...`.
        created: Unix seconds.
        model: Name of the model.
    """

    id: str
    created: int
    model: str

    def completion(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """A whole answer."""
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(
        self, index: int, delta: dict[str, Any], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        """A part of choice `index`."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}


def choice(
    index: int, content: str, finish_reason: str, *, refusal: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    """One answer of a whole completion."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Token counts over all choices of a request; the prompt counts once."""
    prompt = max((c.prompt_tokens for c in completions), default=0)
    answer = sum(len(c.tokens) for c in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def token_logprobs(completion: Completion, token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a choice: one entry a token, with its bytes, since a token may be part of a character."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(token)
        text = raw.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": list(raw)}

    content = []
    for position, (token, logprob) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
        likely = completion.top_logprobs[position] if completion.top_logprobs else ()
        content.append({**entry(token, logprob), "top_logprobs": [entry(t, p) for t, p in likely]})
    return {"content": content, "refusal": None}
