"""A real server on a free port of the loopback address, in a thread, for as long as a test lasts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn

from puna.core.generator import Generator
from puna.serve.app import create_app
from puna.serve.config import ServeConfig
from puna.serve.server import listen


@contextmanager
def running(generator: Generator, config: ServeConfig | None = None, **settings: Any) -> Iterator[str]:
    config = config or ServeConfig(port=0)
    listener = listen(config)
    app = create_app(generator, config=config, **settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.socket]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield listener.url
    finally:
        server.should_exit = True
        thread.join(20)
        listener.socket.close()
        assert not thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(running(*args, **settings))
