"""One prompt on its way to an answer: its tokens, its text so far, and whether it has ended.

It knows nothing of batches, caches or the model; `scheduler.py` moves it through those.
"""

from collections.abc import Collection

from puna.core.generator import Completion, FinishReason, Sampling
from puna.infer.stop_text import StopText
from puna.tokenizer.bpe import Tokenizer


class Request:
    """The life of one answer.

    Args:
        prompt: Token ids, at least one.
        sampling: How tokens are drawn and when drawing ends.
        index: Which prompt of its call it is: part of the seed.
        limit: Most new tokens: `max_tokens`, or what is left of the context.
        stop_tokens: Ids that end the answer.
        tokenizer: Turns ids into text.

    Attributes:
        error: Why the request failed, when it did.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        index: int,
        limit: int,
        stop_tokens: Collection[int],
        tokenizer: Tokenizer,
    ) -> None:
        self.prompt, self.sampling, self.index, self.limit = prompt, sampling, index, limit
        self.tokens: list[int] = []
        self.error: BaseException | None = None
        self._stop_tokens = stop_tokens
        self._n_text_tokens = tokenizer.specials.first_id
        self._decoder = tokenizer.stream_decoder()
        self._watch = StopText(sampling.stop)
        self._logprobs: list[float] = []
        self._top: list[tuple[tuple[int, float], ...]] = []
        self._text = ""
        self._unread = 0  # where the text begins that nobody has fetched yet
        self._reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._reason is not None or self.error is not None

    @property
    def room(self) -> int:
        """Tokens of context that the request can come to need."""
        return len(self.prompt) + self.limit

    def take(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        """Add a drawn token; the request may end with it."""
        self.tokens.append(token)
        self._logprobs.append(logprob)
        if self.sampling.top_logprobs:
            self._top.append(top)
        if token in self._stop_tokens:
            self._end("stop")
            return
        if token < self._n_text_tokens:  # special tokens are no text
            self._text += self._watch.push(self._decoder.push(token))
        if self._watch.found:
            self._end("stop")
        elif len(self.tokens) == self.limit:
            self._end("length")

    def _end(self, reason: FinishReason) -> None:
        if not self._watch.found:
            self._text += self._watch.push(self._decoder.finish())
            if self._watch.found:
                reason = "stop"
            else:
                self._text += self._watch.finish()
        self._reason = reason

    def read(self) -> str:
        """The text that came since the last call."""
        start, self._unread = self._unread, len(self._text)
        return self._text[start:]

    def completion(self) -> Completion:
        """The finished answer.

        Raises:
            Exception: What made the request fail.
        """
        if self.error is not None:
            raise self.error
        assert self._reason is not None, "the request has not ended yet"
        return Completion(
            text=self._text,
            tokens=tuple(self.tokens),
            logprobs=tuple(self._logprobs),
            finish_reason=self._reason,
            prompt_tokens=len(self.prompt),
            top_logprobs=tuple(self._top),
        )
