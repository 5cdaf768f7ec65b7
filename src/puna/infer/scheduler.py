"""Which requests are in the model at one step: a waiting line, rows of a kv cache, and one method that moves them on.

    submit -> waiting -> prefill (a few prompts packed into one forward) -> a row of the cache, a token a step -> ended

A step first lets waiting requests in, as far as rows and memory allow, and draws their first token; then every older
row gets one more. A row that ends is free at once: the last row moves into its place, so rows in use adjoin and
decoding copies nothing. New requests enter between two steps, in the order they came.

The cache is one block of rows x capacity. It grows to what the requests in it can come to need, never beyond
`cache_tokens`, and is kept for the next requests (touching new memory is slow).

Several requests with one prompt that enter together, as the samples of rejection sampling and of policy gradients do,
share its computation; each has its own row afterwards.

T packed tokens, B rows, U different prompts, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from puna.core.errors import PunaError
from puna.infer.request import Request
from puna.infer.sampling import draw, uniform
from puna.model.kv_cache import KVCache
from puna.model.transformer import Transformer

_CAPACITY_STEP = 64  # capacities are multiples of this, so that the cache is not made anew for every prompt


class Scheduler:
    """Runs requests together. Not safe for several threads at once.

    Args:
        model: The transformer.
        max_batch: Rows.
        cache_tokens: Rows times capacity, at most; one request must fit.
        prefill_tokens: Prompt tokens in one forward; a longer prompt goes alone.
    """

    def __init__(self, model: Transformer, *, max_batch: int, cache_tokens: int, prefill_tokens: int) -> None:
        self._model = model
        self._max_batch, self._cache_tokens, self._prefill_tokens = max_batch, cache_tokens, prefill_tokens
        self._waiting: deque[Request] = deque()
        self._rows: list[Request] = []
        self._cache: KVCache | None = None
        self._cancelled: list[Request] = []
        self._stepping = False

    @property
    def load(self) -> tuple[int, int]:
        """Requests in rows, and waiting."""
        return len(self._rows), len(self._waiting)

    def submit(self, requests: Sequence[Request]) -> None:
        """Put requests at the end of the line."""
        for request in requests:
            assert request.room <= self._cache_tokens, "a request that never fits must be refused before"
        self._waiting.extend(requests)

    def cancel(self, request: Request) -> None:
        """Forget a request; its row is free at once.

        It may be called in the middle of a step, when the garbage collector closes a stream that somebody dropped: then
        the row is freed at the end of that step.
        """
        self._cancelled.append(request)
        if not self._stepping:
            self._forget_cancelled()

    @torch.inference_mode()
    def _forget_cancelled(self) -> None:
        while self._cancelled:
            request = self._cancelled.pop()
            if request in self._waiting:
                self._waiting.remove(request)
            elif request in self._rows:
                self._leave(self._rows.index(request))

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row; waiting requests enter first.

        Raises:
            Exception: The model failed. Every request that was in it has failed too, waiting ones have not.
        """
        self._stepping = True
        try:
            older = len(self._rows)
            entering = self._admit()
            if entering:
                self._prefill(entering)
            if older:
                self._decode(older)
        except BaseException as error:
            for request in self._rows:
                request.error = error
            self._rows.clear()
            if self._cache is not None:
                self._cache.lengths[:] = 0
            raise
        finally:
            self._stepping = False
        for row in reversed(range(len(self._rows))):
            if self._rows[row].ended:
                self._leave(row)
        self._forget_cancelled()

    def _admit(self) -> list[Request]:
        """The requests that enter now. A few at a time: a prefill of one costs about as much as of four."""
        worthwhile = min(len(self._waiting), max(1, self._max_batch // 8))
        if self._rows and self._max_batch - len(self._rows) < worthwhile:
            return []
        entering: list[Request] = []
        rooms = [request.room for request in self._rows]
        n_tokens = 0
        while self._waiting and len(rooms) < self._max_batch:
            request = self._waiting[0]
            widest = self._rounded(max([*rooms, request.room]))
            shared = bool(entering) and entering[-1].prompt == request.prompt
            n_tokens += 0 if shared else len(request.prompt)
            if rooms and (len(rooms) + 1) * widest > self._cache_tokens:
                break
            if entering and n_tokens > self._prefill_tokens:
                break
            rooms.append(request.room)
            entering.append(self._waiting.popleft())
        return entering

    def _rounded(self, room: int) -> int:
        return min(self._cache_tokens, math.ceil(room / _CAPACITY_STEP) * _CAPACITY_STEP)

    def _reserve(self, n_rows: int, capacity: int) -> KVCache:
        """The cache, grown when needed; what is in its rows stays."""
        old = self._cache
        if old is not None and old.batch >= n_rows and old.max_len >= capacity:
            return old
        if old is not None and n_rows * max(capacity, old.max_len) <= self._cache_tokens:
            capacity = max(capacity, old.max_len)
        n_rows = max(n_rows, min(self._max_batch, 2 * n_rows, self._cache_tokens // capacity))  # room for a few more
        head = self._model.head_weight
        cache = KVCache(self._model.config, batch=n_rows, max_len=capacity, dtype=head.dtype, device=head.device)
        for row, length in enumerate(old.lengths.tolist() if old is not None else []):
            if old is not None and length:
                cache.keys[:, row, :, :length] = old.keys[:, row, :, :length]
                cache.values[:, row, :, :length] = old.values[:, row, :, :length]
                cache.lengths[row] = length
        self._cache = cache
        return cache

    def _prefill(self, entering: list[Request]) -> None:
        """Compute the entering prompts, equal ones once: their other rows get copies of keys and values."""
        first = len(self._rows)
        self._rows.extend(entering)
        cache = self._reserve(len(self._rows), self._rounded(max(r.room for r in self._rows)))
        leaders: dict[tuple[int, ...], int] = {}
        for place, request in enumerate(entering):
            leaders.setdefault(tuple(request.prompt), place)
        places = list(leaders.values())
        step = cache.extend([len(entering[p].prompt) for p in places], [first + p for p in places])
        tokens = chain.from_iterable(entering[p].prompt for p in places)
        logits_UV = self._model.next_logits(torch.tensor(list(tokens), device=self._model.device), cache=step)
        number = {place: n for n, place in enumerate(places)}
        own = [leaders[tuple(request.prompt)] for request in entering]
        for place, leader in enumerate(own):
            if place != leader:
                cache.move(first + leader, first + place)
        self._draw(entering, logits_UV if len(places) == len(own) else logits_UV[[number[leader] for leader in own]])

    def _decode(self, n_rows: int) -> None:
        assert self._cache is not None, "rows in use have a cache"
        requests = self._rows[:n_rows]
        step = self._cache.extend([1] * n_rows)
        tokens_B = torch.tensor([r.tokens[-1] for r in requests], device=self._model.device)
        self._draw(requests, self._model.next_logits(tokens_B, cache=step))

    def _draw(self, requests: list[Request], logits_BV: Float[Tensor, "B V"]) -> None:
        uniforms = [uniform(r.sampling.seed, r.index, len(r.tokens)) for r in requests]
        drawn = draw(logits_BV, [r.sampling for r in requests], uniforms)
        for request, token, logprob, top in zip(requests, drawn.tokens, drawn.logprobs, drawn.top, strict=True):
            if math.isnan(logprob):
                request.error = PunaError("the model's logits are not numbers (NaN). Its weights may be damaged.")
            else:
                request.take(token, logprob, top)

    def _leave(self, row: int) -> None:
        """Free a row; the last one moves into its place."""
        cache, last = self._cache, len(self._rows) - 1
        assert cache is not None, "rows in use have a cache"
        if row != last:
            cache.move(last, row)
            self._rows[row] = self._rows[last]
        self._rows.pop()
        cache.truncate(last)
