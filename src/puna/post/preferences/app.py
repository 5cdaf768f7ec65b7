"""The annotation page over HTTP: who I am, my next task, my answer; and the page itself.

A token comes as `Authorization: Bearer TOKEN`. What goes out names no model, no item and no test question: a task is
its assignment number, the conversation and two texts, left and right. Left and right become a and b here and nowhere
else. Host names, body sizes and content types are checked as in `serve/gate.py`.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from puna.post.preferences.collection import Collection
from puna.post.preferences.records import Label, Side
from puna.post.preferences.task import MAX_TEXT, Annotator, Judgement, RefusedError, Task
from puna.serve.config import ServeConfig
from puna.serve.edge import CSS, HTML, JAVASCRIPT, SVG, add_error_handlers, add_page
from puna.serve.errors import ApiError, from_validation
from puna.serve.gate import Gate, read_body

PAGE_FILES = {
    "index.html": HTML,
    "style.css": CSS,
    "annotate.js": JAVASCRIPT,
    "outbox.js": JAVASCRIPT,
    "icon.svg": SVG,
}
_STATUS = {"paused": 403, "conflict": 409, "invalid": 400, "unknown": 404}
LARGEST_NUMBER = 2**31 - 1
"""Of an assignment or a revision: what an INTEGER column of PostgreSQL holds."""
_T = TypeVar("_T")


class LabelBody(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid")
    assignment: int = Field(ge=0, le=LARGEST_NUMBER)
    revision: int = Field(ge=0, le=LARGEST_NUMBER)
    submission: str = Field(min_length=8, max_length=100)
    action: Literal["prefer", "skip", "flag"]
    choice: Literal["left", "right"] | None = None
    strength: int | None = Field(default=None, ge=1, le=4)
    seconds: float = Field(default=0.0, ge=0, lt=1e6)
    edit: str | None = Field(default=None, max_length=MAX_TEXT)
    reasons: list[str] = []
    note: str = Field(default="", max_length=MAX_TEXT)

    def judgement(self, left: Side) -> Judgement:
        """The answer in terms of a and b."""
        value = None
        if self.action == "prefer":
            if self.choice is None or self.strength is None:
                raise ApiError(400, "A preference needs 'choice' and 'strength'.", param="choice")
            value = self.strength if (self.choice == "left") == (left == "a") else -self.strength
        edit = self.edit if self.edit and self.edit.strip() else None
        return Judgement(self.action, value, self.seconds, edit, tuple(self.reasons), self.note.strip())


def create_app(collection: Collection, *, config: ServeConfig | None = None) -> FastAPI:
    """Build the application.

    Args:
        collection: An open collection.
        config: Where it listens and how large a body may be.

    Returns:
        An ASGI application.
    """
    config = config or ServeConfig()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, config=config)
    add_error_handlers(app)

    async def who(request: Request) -> Annotator:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        person = None
        if scheme.lower() == "bearer" and token.strip():
            person = await run_in_threadpool(collection.enter, token.strip())
        if person is None:
            raise ApiError(401, "This token is not known. Ask for an invitation.", code="invalid_token")
        return person

    async def call(function: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return await run_in_threadpool(function, *arguments)
        except RefusedError as refusal:
            raise ApiError(_STATUS[refusal.reason], str(refusal), code=refusal.reason) from None

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/me")
    async def me(request: Request) -> dict[str, Any]:
        person = await who(request)
        return {
            "name": person.name,
            "role": person.role,
            "title": collection.title,
            "guideline": collection.guideline,
            "reasons": list(collection.settings.reasons),
            "allow_edit": collection.settings.allow_edit,
        }

    @app.get("/api/task")
    async def task(request: Request) -> dict[str, Any]:
        person = await who(request)
        found = await call(collection.next_task, person.name)
        return {"task": None if found is None else _shown(found), "progress": await _progress(person)}

    @app.get("/api/last")
    async def last(request: Request) -> dict[str, Any]:
        person = await who(request)
        found = await call(collection.last_task, person.name)
        return {"task": None if found is None else _shown(found), "progress": await _progress(person)}

    @app.post("/api/labels")
    async def labels(request: Request) -> dict[str, Any]:
        person = await who(request)
        raw = await read_body(request.receive, dict(request.scope["headers"]), config)
        try:
            body = LabelBody.model_validate_json(raw)
        except ValidationError as error:
            raise from_validation(error) from None
        left = await call(collection.left_of, person.name, body.assignment)
        judgement = body.judgement(left)
        new = await call(collection.submit, person.name, body.assignment, body.revision, body.submission, judgement)
        return {"recorded": True, "again": not new, "progress": await _progress(person)}

    async def _progress(person: Annotator) -> dict[str, int]:
        progress = await run_in_threadpool(collection.progress, person.name)
        return {"mine": progress.mine, "labels": progress.labels, "wanted": progress.wanted}

    add_page(app, files("puna.post.preferences") / "page", PAGE_FILES)
    return app


def _shown(task: Task) -> dict[str, Any]:
    right: Side = "b" if task.left == "a" else "a"
    return {
        "assignment": task.assignment,
        "revision": task.revision,
        "prompt": task.item.prompt.as_messages(),
        "left": task.item.answer(task.left),
        "right": task.item.answer(right),
        "previous": None if task.previous is None else _sided(task.previous, task.left),
        "others": [_sided(label, task.left) for label in task.others],
    }


def _sided(label: Label, left: Side) -> dict[str, Any]:
    """A label in terms of left and right, without its author."""
    choice = None if label.winner is None else "left" if label.winner == left else "right"
    return {
        "action": label.action,
        "choice": choice,
        "strength": abs(label.value) if label.value else None,
        "edit": label.edit,
        "reasons": list(label.reasons),
        "note": label.note,
    }
