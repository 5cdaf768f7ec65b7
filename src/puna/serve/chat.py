"""One chat request from its checked form to its reply: jobs for the worker, the guard on both sides, the disconnect.

The event loop never generates and never judges: pieces come from the worker's thread through a queue, guards run in
threads of their own. However a request ends (answered, refused, failed, client gone), its jobs are cancelled; for jobs
that are finished this does nothing.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from puna.core.dialog import Dialog
from puna.core.generator import Completion, Generator, Piece, Sampling
from puna.serve.config import ServeConfig
from puna.serve.errors import ApiError, from_exception, unsupported
from puna.serve.guard import ALLOWED, Guard, GuardVerdict
from puna.serve.protocol import ChatRequest
from puna.serve.replies import DONE, PING, Envelope, TokenBytes, choice, event, token_logprobs, usage
from puna.serve.worker import Event, Job, Worker

_SEED_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: choices of one request draw from seeds far apart


class ClientGoneError(Exception):
    """The client hung up; nobody reads the reply any more."""


class Answers:
    """The `n` answers of one request while they are written.

    Args:
        generator: Who writes.
        worker: Whose thread it is done on.
        dialog: What is answered.
        sampling: How; answer `i` draws from a seed of its own.
        n: How many.

    Raises:
        ApiError: 429, the queue is full.
    """

    def __init__(self, generator: Generator, worker: Worker, dialog: Dialog, sampling: Sampling, n: int) -> None:
        loop = asyncio.get_running_loop()
        self.n = n
        self._worker = worker
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def job(index: int) -> Job:
            seed = (sampling.seed + index * _SEED_STRIDE) % 2**63 if index else sampling.seed
            own = dataclasses.replace(sampling, seed=seed)

            def emit(what: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (index, what))

            return Job(start=lambda: generator.stream(dialog, own), emit=emit)

        self._jobs = [job(index) for index in range(n)]
        worker.submit(self._jobs)

    async def next(self) -> tuple[int, Piece]:
        """The next piece of any answer.

        Raises:
            ApiError: The generator failed or refused the prompt.
        """
        index, what = await self._events.get()
        if isinstance(what, BaseException):
            raise from_exception(what) from what
        return index, what

    async def wait(self, seconds: float) -> bool:
        """Wait until there is a piece, at most so long; whether there is one."""
        try:
            first = await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return False
        rest = [self._events.get_nowait() for _ in range(self._events.qsize())]
        for item in [first, *rest]:
            self._events.put_nowait(item)
        return True

    def cancel(self, index: int | None = None) -> None:
        """Stop one answer, or all."""
        self._worker.cancel(self._jobs if index is None else [self._jobs[index]])


@dataclasses.dataclass(slots=True)
class _Choice:
    """What is known of one answer: its text so far, how much of it was shown, and how it ended."""

    text: str = ""
    shown: int = 0
    completion: Completion | None = None
    refusal: str | None = None

    @property
    def finish_reason(self) -> str | None:
        if self.refusal is not None:
            return "content_filter"
        return self.completion.finish_reason if self.completion else None


class Chat:
    """Answers chat requests.

    Args:
        generator: Who writes the answers.
        worker: The thread that it runs on.
        config: The server's settings.
        guard: Judges dialogs and answers, or None.
        token_bytes: Bytes of a token id; without it `logprobs` cannot be had.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        worker: Worker,
        config: ServeConfig,
        guard: Guard | None,
        token_bytes: TokenBytes | None,
    ) -> None:
        self._generator, self._worker, self._config = generator, worker, config
        self._guard, self._token_bytes = guard, token_bytes

    def _open(self, request: ChatRequest) -> Answers:
        return Answers(self._generator, self._worker, request.dialog(), request.sampling(self._config), request.n or 1)

    def _check(self, request: ChatRequest) -> None:
        if request.logprobs and self._token_bytes is None:
            raise unsupported("logprobs", "the model behind this server does not tell its tokens.")

    async def _judge_input(self, dialog: Dialog) -> GuardVerdict:
        return ALLOWED if self._guard is None else await asyncio.to_thread(self._guard.check_input, dialog)

    async def _judge_output(self, dialog: Dialog, text: str) -> GuardVerdict:
        return ALLOWED if self._guard is None else await asyncio.to_thread(self._guard.check_output, dialog, text)

    def _logprobs(self, request: ChatRequest, one: _Choice) -> dict[str, Any] | None:
        if not request.logprobs or self._token_bytes is None or one.completion is None or one.refusal is not None:
            return None
        return token_logprobs(one.completion, self._token_bytes)

    async def complete(
        self, request: ChatRequest, envelope: Envelope, disconnected: Callable[[], Awaitable[None]]
    ) -> dict[str, Any]:
        """The whole reply in one body.

        Args:
            request: What is asked.
            envelope: Id, time and model of the reply.
            disconnected: Returns when the client has gone.

        Raises:
            ApiError: The request cannot be answered.
            ClientGoneError: The client went first; the work was stopped.
        """
        self._check(request)
        work = asyncio.create_task(self._complete(request, envelope))
        gone = asyncio.create_task(_as_coroutine(disconnected()))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise ClientGoneError
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _complete(self, request: ChatRequest, envelope: Envelope) -> dict[str, Any]:
        dialog, n = request.dialog(), request.n or 1
        verdict = await self._judge_input(dialog)
        if not verdict.allowed:
            choices = [choice(i, "", "content_filter", refusal=verdict.reason) for i in range(n)]
            return envelope.completion(choices, usage([]))
        answers = self._open(request)
        found = [_Choice() for _ in range(n)]
        try:
            while any(one.completion is None for one in found):
                index, piece = await answers.next()
                found[index].text += piece.text
                found[index].completion = piece.completion
        finally:
            answers.cancel()
        choices = []
        for index, one in enumerate(found):
            verdict = await self._judge_output(dialog, one.text)
            one.refusal = None if verdict.allowed else verdict.reason
            text = one.text if verdict.allowed else ""
            reason = one.finish_reason or "stop"
            choices.append(choice(index, text, reason, refusal=one.refusal, logprobs=self._logprobs(request, one)))
        return envelope.completion(choices, usage([one.completion for one in found if one.completion]))

    async def stream(self, request: ChatRequest, envelope: Envelope) -> AsyncIterator[bytes]:
        """The reply as server-sent events.

        Returns after the first piece is there (or after a while without one), so that a prompt which cannot be answered
        is still an HTTP error and not an event.

        Raises:
            ApiError: The request cannot be answered.
        """
        self._check(request)
        verdict = await self._judge_input(request.dialog())
        if not verdict.allowed:
            return self._refused(request, envelope, verdict)
        answers = self._open(request)
        try:
            if not await answers.wait(self._config.ping_seconds):
                return self._events(request, envelope, answers, None)
            return self._events(request, envelope, answers, await answers.next())
        except BaseException:  # cancellation included: nobody would read these answers
            answers.cancel()
            raise

    async def _refused(self, request: ChatRequest, envelope: Envelope, verdict: GuardVerdict) -> AsyncIterator[bytes]:
        for index in range(request.n or 1):
            yield event(envelope.chunk(index, {"role": "assistant", "content": ""}))
            yield event(envelope.chunk(index, {"refusal": verdict.reason}))
            yield event(envelope.chunk(index, {}, finish_reason="content_filter"))
        if request.include_usage:
            yield event(envelope.usage_chunk(usage([])))
        yield DONE

    async def _events(
        self, request: ChatRequest, envelope: Envelope, answers: Answers, first: tuple[int, Piece] | None
    ) -> AsyncIterator[bytes]:
        dialog = request.dialog()
        found = [_Choice() for _ in range(answers.n)]
        try:
            for index in range(answers.n):
                yield event(envelope.chunk(index, {"role": "assistant", "content": ""}))
            while any(one.finish_reason is None for one in found):
                if first is None and not await answers.wait(self._config.ping_seconds):
                    yield PING
                    continue
                index, piece = first or await answers.next()
                first = None
                one = found[index]
                if one.finish_reason is not None:
                    continue  # a piece that was on its way when the guard said no
                one.text += piece.text
                one.completion = piece.completion
                async for delta in self._show(dialog, one):
                    yield event(envelope.chunk(index, delta))
                if one.finish_reason is not None:
                    answers.cancel(index)
                    logprobs = self._logprobs(request, one)
                    if logprobs is not None:
                        yield event(envelope.chunk(index, {"content": ""}, logprobs=logprobs))
                    yield event(envelope.chunk(index, {}, finish_reason=one.finish_reason))
            if request.include_usage:
                yield event(envelope.usage_chunk(usage([one.completion for one in found if one.completion])))
            yield DONE
        except ApiError as error:
            yield event(error.body())
        finally:
            answers.cancel()

    async def _show(self, dialog: Dialog, one: _Choice) -> AsyncIterator[dict[str, str]]:
        """The deltas that may be shown now; with a guard, text waits until it was judged."""
        hidden = len(one.text) - one.shown
        if self._guard is not None:
            if one.completion is None and hidden < self._config.guard_every_characters:
                return
            verdict = await self._judge_output(dialog, one.text)
            if not verdict.allowed:
                one.refusal = verdict.reason
                yield {"refusal": verdict.reason}
                return
        if hidden:
            start, one.shown = one.shown, len(one.text)
            yield {"content": one.text[start:]}


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
