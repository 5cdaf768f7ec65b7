"""A generator without a model: it says what it is told to, one word at a time, and remembers what happened to it."""

import threading
import time
from collections.abc import Iterator, Sequence

from puna.core.dialog import Dialog
from puna.core.errors import PromptTooLongError
from puna.core.generator import Completion, Piece, Prompt, Sampling, Score


class FakeGenerator:
    """Answers with `words`; `endless` goes on until it is closed."""

    name = "fake"

    def __init__(self, words: Sequence[str] = ("Hello", " ", "world"), *, endless: bool = False, context: int = 1000):
        self.words, self.endless, self.context = list(words), endless, context
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []
        self.steps = 0
        self.closed = threading.Event()
        self.started = threading.Event()
        self.pause_seconds = 0.0
        self.failure: Exception | None = None

    def token_bytes(self, token: int) -> bytes:
        return self.words[token].encode()

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        text = prompt if isinstance(prompt, str) else "".join(m.content for m in prompt.messages)
        if len(text) >= self.context:
            raise PromptTooLongError(len(text), self.context)
        if self.failure is not None:
            raise self.failure
        try:
            tokens: list[int] = []
            self.started.set()
            while self.endless or len(tokens) < min(len(self.words), sampling.max_tokens):
                tokens.append(len(tokens) % len(self.words))
                self.steps += 1
                time.sleep(self.pause_seconds)
                yield Piece(self.words[tokens[-1]])
            yield Piece(
                "",
                Completion(
                    text="".join(self.words[t] for t in tokens),
                    tokens=tuple(tokens),
                    logprobs=tuple(-0.5 for _ in tokens),
                    finish_reason="stop" if len(tokens) == len(self.words) else "length",
                    prompt_tokens=len(text),
                    top_logprobs=tuple(((t, -0.5),) for t in tokens) if sampling.top_logprobs else (),
                ),
            )
        finally:
            self.closed.set()

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        return [list(self.stream(p, sampling))[-1].completion for p in prompts]  # type: ignore[misc]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        raise NotImplementedError


def hello() -> Dialog:
    return Dialog.of(("user", "Hi"))
