"""Holds the extracting process: asks, waits no longer than allowed, kills and starts anew."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from puna.data.extract.child import ANSWER, REQUEST
from puna.data.extract.html import ExtractionConfig


class ExtractionError(Exception):
    """A page that could not be extracted; the message says why."""


class Guard:
    """A killable extractor. Use it as a context manager; it starts its process when it is first asked.

    Args:
        config: Extractor and limits.
    """

    def __init__(self, config: ExtractionConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop()

    def extract(self, page: bytes, charset: str = "") -> dict[str, Any]:
        """Text and declared rights of a page, as `html.extract` gives them.

        Raises:
            ExtractionError: It took too long, needed too much memory, or the extractor failed.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        settings = json.dumps({"charset": charset, "extractor": self._config.extractor}).encode()
        try:
            process.stdin.write(REQUEST.pack(len(settings), len(page)) + settings)
            process.stdin.write(page)
            process.stdin.flush()
            deadline = time.monotonic() + self._config.timeout_seconds
            (length,) = ANSWER.unpack(self._read(ANSWER.size, deadline))
            result = json.loads(self._read(length, deadline))
        except TimeoutError:
            self._stop()
            raise ExtractionError(f"took longer than {self._config.timeout_seconds:g} s") from None
        except (EOFError, BrokenPipeError):
            self._stop()
            raise ExtractionError("the extractor died, most likely out of memory") from None
        if "error" in result:
            raise ExtractionError(result["error"])
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "puna.data.extract.child", str(self._config.memory_mib)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=-1)
        return self._process

    def _read(self, n: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        handle = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < n:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            block = os.read(handle, n - len(data))
            if not block:
                raise EOFError
            data += block
        return bytes(data)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait()
