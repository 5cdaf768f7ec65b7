"""Any OpenAI-compatible endpoint as a `Generator`: another model labels, judges or answers as if it were loaded here.

The endpoint renders its own chat format, so a dialog goes out as messages and a raw text as a user message. Such
servers do not score given continuations, so `logprobs` is refused. Requests run a few at a time, are tried again after
429 and 5xx with growing pauses, and end in an error that names the address. The key is read from the environment
variable that the caller names and goes nowhere else.

Source: the OpenAI API reference, "Create chat completion".
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from puna.core.dialog import Dialog
from puna.core.errors import PunaError, UsageError
from puna.core.generator import Completion, Piece, Prompt, Sampling, Score

_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.5


class Endpoint:
    """A model behind HTTP.

    Args:
        url: Base address, `http://127.0.0.1:8000/v1`.
        model: Name that the server knows.
        key_variable: Environment variable with the key; empty sends none.
        concurrency: Requests at a time.
        timeout_seconds: For one request.
    """

    def __init__(
        self, url: str, model: str, *, key_variable: str = "", concurrency: int = 8, timeout_seconds: float = 120
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"the endpoint is {url!r}; an address like http://127.0.0.1:8000/v1 is needed")
        key = os.environ.get(key_variable, "") if key_variable else ""
        if key_variable and not key:
            raise UsageError(f"the environment variable {key_variable} should hold the endpoint's key and is not set")
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._concurrency, self._timeout = concurrency, timeout_seconds

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._model

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Continue every prompt; prompt `i` asks with seed `seed + i`.

        Raises:
            PunaError: The endpoint cannot be reached, refuses, or answers something else.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(lambda pair: self._one(pair[1], sampling, pair[0]), enumerate(prompts)))

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
        record = self._post(body)
        try:
            choice = record["choices"][0]
            text = choice["message"]["content"] or ""
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
            n_prompt = int((record.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, IndexError, TypeError) as error:
            raise PunaError(f"{self._url} answered something else than a chat completion: {record!r:.200}") from error
        return Completion(text, (), (), finish, n_prompt)

    def _post(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            request = urllib.request.Request(self._url, data=data, headers=self._headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    detail = error.read(400).decode("utf-8", "replace")
                    wait = error.headers.get("Retry-After", "")
                if (error.code != 429 and error.code < 500) or attempt == _TRIES:
                    raise PunaError(f"{self._url} answered {error.code}: {detail}") from None
                pause = max(pause, float(wait)) if wait.replace(".", "", 1).isdigit() else pause
            except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
                if attempt == _TRIES:
                    raise PunaError(f"{self._url} cannot be used: {error}. Is the server running?") from error
            time.sleep(min(pause, 30))
            pause *= 2
        raise AssertionError("the last try raises")
