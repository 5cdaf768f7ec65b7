"""The engine: a transformer and a tokenizer as a `Generator`.

`complete` runs any number of prompts of any lengths together; `stream` hands out one answer as it grows. All open
streams share the rows of one cache: asking any of them moves all of them on, so one thread that asks each in turn
(`serve/worker.py`) serves many readers for little more than the price of one.

An answer depends on its prompt and its seed alone, not on what else is running, up to the rounding of matrix products
of another size (none of it seen in float32 by the tests).

Not here yet: paged cache, shared prefixes, quantization, several GPUs.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from puna.checkpoint import format as checkpoint
from puna.core.dialog import Dialog
from puna.core.errors import PromptTooLongError, UsageError
from puna.core.generator import Completion, Piece, Prompt, Sampling, Score
from puna.infer.request import Request
from puna.infer.sampling import check_sampling
from puna.infer.scheduler import Scheduler
from puna.infer.scoring import Pair, score_pairs
from puna.model.config import ModelConfig
from puna.model.transformer import Transformer
from puna.tokenizer import chat_format
from puna.tokenizer.bpe import Tokenizer

_CACHE_SHARE = 0.25  # of the memory that is free when the engine is made


class Engine:
    """Generates and scores. Safe to use from several threads; the work itself is one thing at a time.

    Args:
        model: The transformer, on its device and in its dtype.
        tokenizer: The one it was trained with.
        name: For reports and `/v1/models`.
        max_batch: Most answers written together.
        max_len: Context in tokens, prompt and answer together; by default the model's.
        cache_tokens: Room of the kv cache over all rows; by default what a quarter of the free memory holds.
        prefill_tokens: Prompt tokens of one forward.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        name: str = "puna",
        max_batch: int = 32,
        max_len: int | None = None,
        cache_tokens: int | None = None,
        prefill_tokens: int = 4096,
    ) -> None:
        assert tokenizer.vocab_size <= model.config.vocab_size, "the tokenizer has tokens that the model does not know"
        self._model, self._tokenizer, self._name = model.eval(), tokenizer, name
        self._max_len = max_len or model.config.max_seq_len
        self._prefill_tokens = prefill_tokens
        if cache_tokens is None:
            cache_tokens = int(_CACHE_SHARE * _free_bytes(model.device)) // _bytes_per_token(model.config, model)
        self._scheduler = Scheduler(
            model,
            max_batch=max_batch,
            cache_tokens=max(self._max_len, min(cache_tokens, max_batch * self._max_len)),
            prefill_tokens=prefill_tokens,
        )
        self._stop_tokens = frozenset(chat_format.stop_tokens(tokenizer))
        self._lock = threading.RLock()

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        max_batch: int = 32,
        max_len: int | None = None,
        cache_tokens: int | None = None,
        base: Path | str | None = None,
    ) -> "Engine":
        """Load a checkpoint folder, or the model of a run folder.

        Args:
            path: Hugging Face folder, run folder, Meta's layout, or an adapter, which is merged into its base.
            dtype: By default float32 on a CPU and bfloat16 on a GPU.
            device: By default the GPU when there is one.
            max_batch: Most answers written together.
            max_len: Context in tokens; by default the model's.
            cache_tokens: Room of the kv cache over all rows; by default what a quarter of the free memory holds.
            base: Of an adapter, where it is not found by what the adapter says.

        Raises:
            MissingError: There is no model.
            CorruptError: A file of it is damaged.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        model, shape = checkpoint.load_model(path, dtype=dtype, device=device, base=base)
        if shape.head == "score":
            raise UsageError(f"{path} is a reward model: it scores text and writes none. Name a language model.")
        tokenizer = checkpoint.load_tokenizer(path, base=base)
        folder = Path(path).resolve()
        name = folder.parent.name if folder.name == "model" else folder.name
        return cls(model, tokenizer, name=name, max_batch=max_batch, max_len=max_len, cache_tokens=cache_tokens)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._name

    @property
    def max_len(self) -> int:
        """Context in tokens, prompt and answer together."""
        return self._max_len

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer

    @property
    def model(self) -> Transformer:
        """The transformer."""
        return self._model

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token id, for showing log-probabilities."""
        return self._tokenizer.token_bytes(token)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The ids that the model reads for a prompt."""
        if isinstance(prompt, Dialog):
            return chat_format.prompt(self._tokenizer, prompt)
        return [self._tokenizer.specials.bos, *self._tokenizer.encode(prompt)]

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Continue every prompt.

        Args:
            prompts: In any number; those that do not fit into the batch wait inside.
            sampling: For all of them; prompt `i` draws from `(seed, i)`.

        Returns:
            Completions in the order of the prompts.

        Raises:
            PromptTooLongError: A prompt leaves no room for an answer. Then none was run.
            UsageError: The sampling means nothing.
        """
        requests = [self._request(prompt, sampling, index) for index, prompt in enumerate(prompts)]
        by_length = sorted(requests, key=lambda r: -r.room)  # like lengths together: less of a cache row is waste
        with self._lock:
            self._scheduler.submit(by_length)
        try:
            while not all(r.ended for r in requests):
                with self._lock:
                    self._scheduler.step()
        finally:
            self._forget(requests)
        return [r.completion() for r in requests]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """Continue one prompt piece by piece.

        Each piece is one step of the batch; its text is empty where a character or a stop text may still be
        incomplete. Closing the iterator frees the row.

        Raises:
            PromptTooLongError: The prompt leaves no room for an answer.
            UsageError: The sampling means nothing.
        """
        request = self._request(prompt, sampling, 0)
        with self._lock:
            self._scheduler.submit([request])
        try:
            while True:
                with self._lock:
                    text = request.read()
                    if not text and not request.ended:
                        self._scheduler.step()
                        text = request.read()
                    ended = request.ended
                if ended:
                    yield Piece(text, request.completion())
                    return
                yield Piece(text)
        finally:
            self._forget([request])

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Score `continuations[i]` after `prompts[i]`.

        Raises:
            PromptTooLongError: A prompt and its continuation do not fit into the context.
        """
        pairs = [
            Pair(self.prompt_tokens(prompt), self._tokenizer.encode(continuation))
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]
        for pair in pairs:
            if pair.n_inputs > self._max_len:
                raise PromptTooLongError(pair.n_inputs, self._max_len)
        with self._lock:
            return score_pairs(self._model, pairs, tokens_at_once=self._prefill_tokens)

    def _request(self, prompt: Prompt, sampling: Sampling, index: int) -> Request:
        check_sampling(sampling)
        tokens = self.prompt_tokens(prompt)
        room = self._max_len - len(tokens)
        if room < 1:
            raise PromptTooLongError(len(tokens), self._max_len)
        # clients send "<|eot_id|>" as a stop text; special tokens are no text, so it must stop at the token
        specials = self._tokenizer.specials.ids
        named = {specials[stop] for stop in sampling.stop if stop in specials}
        return Request(
            tokens,
            sampling,
            index=index,
            limit=min(sampling.max_tokens, room),
            stop_tokens=(frozenset() if sampling.ignore_eos else self._stop_tokens) | named,
            tokenizer=self._tokenizer,
        )

    def _forget(self, requests: Sequence[Request]) -> None:
        with self._lock:
            for request in requests:
                if not request.ended:
                    self._scheduler.cancel(request)


def _bytes_per_token(config: ModelConfig, model: Transformer) -> int:
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * model.head_weight.element_size()


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return 4 * 2**30  # systems without /proc: a careful guess
