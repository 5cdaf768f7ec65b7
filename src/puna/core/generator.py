"""The hinge of the house: what it means to generate, as a Protocol.

`evaluate`, `human_eval`, `safety`, `serve` and `post.rejection` see only this. `stages` and `cli` hand in the engine
(`infer/engine.py`) or a client of any OpenAI-compatible endpoint. So those rooms need no torch, are tested with a fake
generator, and judge any model.

A prompt is a `Dialog`, which the generator renders in its own chat format with an assistant header at the end, or a
`str`, which is raw text after `<|begin_of_text|>`. User text can never become a special token in either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from puna.core.dialog import Dialog

Prompt = Dialog | str
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, and when drawing ends.

    Attributes:
        max_tokens: Upper bound of new tokens.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_p: Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: Keep this many most likely tokens; 0 keeps all.
        seed: The draws of a request depend on its seed alone, not on its batch mates. In `complete`, prompt number i
            of the call draws from `(seed, i)`.
        stop: Texts that end the answer; the text itself is cut off.
        ignore_eos: Go on after end-of-text and end-of-turn tokens.
        top_logprobs: How many alternatives to report for each token; 0 reports none.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        text: Decoded text, without the stop text.
        tokens: The sampled token ids, stop token included when one was drawn: nobody needs to encode the text again.
        logprobs: Natural log-probability of each token under the untempered model, in float32.
        finish_reason: `stop` (stop token or text) or `length` (max_tokens or the context ended).
        prompt_tokens: Length of the prompt in tokens.
        top_logprobs: For each token its likeliest alternatives as `(token id, logprob)`, when asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Likelihood of a continuation given its prompt.

    Attributes:
        logprob: Sum over the continuation's tokens, natural log.
        n_tokens: Tokens of the continuation.
        is_greedy: Every token was the most likely one.
    """

    logprob: float
    n_tokens: int
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer; the last one carries the whole completion.

    Attributes:
        text: New text, never half a character.
        completion: Set on the last piece only.
    """

    text: str
    completion: Completion | None = None


class Generator(Protocol):
    """Anything that continues prompts and scores continuations."""

    @property
    def name(self) -> str:
        """Short name of the model, for reports and `/v1/models`."""
        ...

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Continue every prompt. Results keep the order of the prompts."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """Continue one prompt piece by piece. Closing the iterator stops the work."""
        ...

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Score `continuations[i]` after `prompts[i]`. An empty prompt conditions on `<|begin_of_text|>` alone."""
        ...
