"""The HTTP surface: `/v1/chat/completions`, `/v1/models`, `/health` and the chat page, over any `Generator`.

`create_app` builds a FastAPI application that owns one worker thread. Bodies are parsed by `protocol.py` and not by
FastAPI, because every error must have OpenAI's form. The interactive API pages of FastAPI are off: they load scripts
from elsewhere.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from puna.core.generator import Generator
from puna.serve.chat import Chat, ClientGoneError
from puna.serve.config import ServeConfig
from puna.serve.edge import CSS, HTML, JAVASCRIPT, SVG, add_error_handlers, add_page
from puna.serve.errors import model_not_found
from puna.serve.gate import Gate, read_body
from puna.serve.guard import Guard
from puna.serve.protocol import parse_chat_request
from puna.serve.replies import Envelope, TokenBytes
from puna.serve.worker import Worker

PAGE_FILES = {
    "index.html": HTML,
    "style.css": CSS,
    "chat.js": JAVASCRIPT,
    "conversation.js": JAVASCRIPT,
    "stream.js": JAVASCRIPT,
    "icon.svg": SVG,
}
_CLIENT_GONE_STATUS = 499  # nginx's number for it; nobody reads it but the access log


def new_completion_id() -> str:
    """A fresh `chatcmpl-...`."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def create_app(
    generator: Generator,
    *,
    config: ServeConfig | None = None,
    guard: Guard | None = None,
    token_bytes: TokenBytes | None = None,
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = new_completion_id,
) -> FastAPI:
    """Build the application.

    Args:
        generator: Who writes the answers; its `name` is the model's id.
        config: Limits and defaults.
        guard: Judges what comes in and goes out; none by default.
        token_bytes: Bytes of a token id, for `logprobs`; by default the generator's own method of this name, if any.
        now: The clock, for `created`.
        new_id: Makes the ids.

    Returns:
        An ASGI application. Its lifespan ends the worker thread.
    """
    config = config or ServeConfig()
    worker = Worker(max_running=config.max_running, max_waiting=config.max_waiting)
    token_bytes = token_bytes or getattr(generator, "token_bytes", None)
    chat = Chat(generator, worker=worker, config=config, guard=guard, token_bytes=token_bytes)
    created = int(now())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, config=config)
    add_error_handlers(app)
    model = {"id": generator.name, "object": "model", "created": created, "owned_by": "puna"}

    @app.get("/health")
    async def health() -> Response:
        running, waiting = worker.load
        body = {"status": "ok" if worker.alive else "failed", "running": running, "waiting": waiting}
        return JSONResponse(body, status_code=200 if worker.alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != generator.name:
            raise model_not_found(name, generator.name)
        return model

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request.receive, dict(request.scope["headers"]), config)
        wanted = parse_chat_request(body, config)
        if wanted.model is not None and wanted.model != generator.name:
            raise model_not_found(wanted.model, generator.name)
        envelope = Envelope(new_id(), int(now()), generator.name)
        if wanted.stream:
            events = await chat.stream(wanted, envelope)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        try:
            return JSONResponse(await chat.complete(wanted, envelope, lambda: _disconnected(request)))
        except ClientGoneError:
            return Response(status_code=_CLIENT_GONE_STATUS)

    add_page(app, files("puna.serve") / "page", PAGE_FILES)
    return app


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
