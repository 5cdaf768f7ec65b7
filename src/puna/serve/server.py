"""Listening, running and stopping: everything between `puna serve` and the application.

`listen` comes first, before a model is loaded: a port in use is found in a millisecond and not after a minute. On
SIGTERM or Ctrl-C no new connection is taken, running answers get `drain_seconds` to end, and the process exits with 0;
a second signal ends them at once.
"""

import asyncio
import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from puna.core import console
from puna.core.errors import UsageError, need
from puna.core.generator import Generator
from puna.serve.config import ServeConfig
from puna.serve.guard import Guard


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket.

    Attributes:
        socket: Bound and listening.
        url: Where a browser on this machine finds it.
    """

    socket: socket.socket
    url: str


def listen(config: ServeConfig) -> Listener:
    """Take the port.

    Also checks that the packages of the `serve` extra are there, so that both are known before any slow work.

    Raises:
        UsageError: The port is in use or not allowed, or the host is no address of this machine.
        MissingError: The `serve` extra is not installed.
    """
    need("fastapi", extra="serve")
    need("uvicorn", extra="serve")
    where = f"{config.host}:{config.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"host {config.host!r} is no address: {error}. Use 127.0.0.1 for this machine only.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {where}: {_reason(error, config)}") from None
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    shown = f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
    return Listener(listener, f"http://{shown}:{port}")


def _reason(error: OSError, config: ServeConfig) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use. Choose another one, for example --port {config.port % 65535 + 1}, or 0 for any."
    if error.errno == errno.EACCES:
        return "ports below 1024 need more rights. Choose --port 8000."
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address. Use 127.0.0.1, or 0.0.0.0 for all addresses."
    return f"{error.strerror}."


def serve(
    generator: Generator, *, listener: Listener, config: ServeConfig | None = None, guard: Guard | None = None
) -> None:
    """Serve until a signal comes.

    Args:
        generator: Who writes the answers.
        listener: From `listen`.
        config: The settings that were given to `listen`.
        guard: Judges what comes in and goes out.
    """
    from puna.serve.app import create_app

    config = config or ServeConfig()
    app = create_app(generator, config=config, guard=guard)
    console.say(f"chat page   {listener.url}/")
    console.say(f"OpenAI API  {listener.url}/v1   model {generator.name}")
    if config.api_key is not None:
        console.say("The API key is needed: as the bearer token, or as the password that the browser asks for.")
    run_app(app, listener, drain_seconds=config.drain_seconds)


def run_app(app: object, listener: Listener, *, drain_seconds: int) -> None:
    """Run any ASGI application until a signal comes.

    Args:
        app: The application.
        listener: From `listen`.
        drain_seconds: How long running requests may still take after the first signal.
    """
    uvicorn = need("uvicorn", extra="serve")
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = uvicorn.Server(settings)
    server.capture_signals = _no_signals  # uvicorn raises a signal again after its shutdown; ours ends with exit code 0
    console.say("Ctrl-C stops.")
    asyncio.run(_until_signal(server, listener))


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


async def _until_signal(server: "object", listener: Listener) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:  # type: ignore[attr-defined]
            server.force_exit = True  # type: ignore[attr-defined]
        else:
            server.should_exit = True  # type: ignore[attr-defined]
            console.say("Stopping: running answers may end. Once more to stop at once.")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener.socket])  # type: ignore[attr-defined]
