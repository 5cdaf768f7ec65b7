"""Any OpenAI-compatible endpoint as a `Generator`: another model labels, judges or answers as if it were loaded here.

The endpoint renders its own chat format, so a dialog goes out as messages and a raw text as a user message. Such
servers do not score given continuations, so `logprobs` is refused. Requests run a few at a time, are tried again with
growing pauses when the server cannot be reached or says 429 or 5xx, and end in an error that names the address.

What is sent where depends on the arguments alone: proxies of the environment are not looked at, and a redirect is an
error, since it would take the key to another address.

Source: the OpenAI API reference, "Create chat completion".
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from puna.core.dialog import Dialog
from puna.core.errors import PromptTooLongError, PunaError, UsageError
from puna.core.generator import Completion, Piece, Prompt, Sampling, Score

_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30
_TOO_LONG = ("context_length_exceeded", "maximum context length")  # ours and OpenAI's; vLLM's


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """A model behind HTTP.

    Args:
        url: Base address, `http://127.0.0.1:8000/v1`.
        model: Name that the server knows.
        key: Sent with every request, as `Authorization: Bearer KEY`; empty sends none.
        proxy: Address of a proxy; empty connects directly.
        concurrency: Requests at a time.
        timeout_seconds: For one request.

    Raises:
        UsageError: An address is none, or a header cannot carry the key.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        proxy: str = "",
        concurrency: int = 8,
        timeout_seconds: float = 120,
    ) -> None:
        for what, address in (("endpoint", url), ("proxy", proxy or url)):
            if not _is_address(address):
                raise UsageError(f"the {what} is {address!r}; an address like http://127.0.0.1:8000/v1 is needed")
        if not (key.isascii() and key.isprintable()):
            raise UsageError("the key of the endpoint has characters that no HTTP header can carry")
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirect)
        self._concurrency, self._timeout = concurrency, timeout_seconds

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._model

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Continue every prompt; prompt `i` asks with seed `seed + i`.

        Raises:
            PromptTooLongError: The endpoint says that a prompt does not fit.
            PunaError: The endpoint cannot be reached, refuses, or answers something else.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            answers = [pool.submit(self._one, prompt, sampling, i) for i, prompt in enumerate(prompts)]
            try:
                return [answer.result() for answer in answers]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what one request could not do, the others need not try
                raise

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """The whole answer in one piece."""
        completion = self.complete([prompt], sampling)[0]
        yield Piece(completion.text, completion)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        """Refused.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{self._url} cannot score given continuations; use method=answer, or a local checkpoint")

    def _one(self, prompt: Prompt, sampling: Sampling, index: int) -> Completion:
        messages = prompt.as_messages() if isinstance(prompt, Dialog) else [{"role": "user", "content": prompt}]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (sampling.seed + index) % 2**31,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        record = self._post(json.dumps(body).encode())
        try:
            choice = record["choices"][0]
            text = choice["message"]["content"] or ""
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
            n_prompt = int((record.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            text, finish, n_prompt = None, "stop", 0
        if not isinstance(text, str):
            raise PunaError(f"{self._url} answered something else than a chat completion: {record!r:.200}")
        return Completion(text, (), (), finish, n_prompt)

    def _post(self, data: bytes) -> Any:
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            request = urllib.request.Request(self._url, data=data, headers=self._headers)
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return _parsed(self._url, answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    detail = error.read(400).decode("utf-8", "replace").strip()
                    wait = error.headers.get("Retry-After", "")
                if error.code == 400 and any(words in detail for words in _TOO_LONG):
                    raise _too_long(detail) from None
                if (error.code != 429 and error.code < 500) or attempt == _TRIES:
                    raise PunaError(f"{self._url} answered {error.code}: {detail}{_advice(error.code)}") from None
                pause = max(pause, float(wait)) if wait.replace(".", "", 1).isdecimal() else pause
            except (OSError, http.client.HTTPException) as error:
                if attempt == _TRIES:
                    why = getattr(error, "reason", error)
                    raise PunaError(f"{self._url} cannot be reached: {why}. Is the server running?") from error
            time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
            pause *= 2
        raise AssertionError("the last try raises")


def _is_address(address: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _too_long(detail: str) -> PromptTooLongError:
    sizes = [int(size) for size in re.findall(r"(?:has|length is|holds|requested) (\d+)", detail)]
    return PromptTooLongError(max(sizes, default=0), min(sizes, default=0))


def _parsed(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError as error:
        start = answer[:80].decode("utf-8", "replace")
        raise PunaError(f"{url} answered no JSON but {start!r}. Is the address right, with its /v1?") from error


def _advice(code: int) -> str:
    if code in (401, 403):
        return ". The key is wrong or missing: set endpoint.key_file to a file with the right one"
    return ". Is the address right, with its /v1, and the name of the model?" if code == 404 else ""
