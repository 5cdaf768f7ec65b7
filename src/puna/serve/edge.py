"""What every page of this project answers alike over HTTP: its own files with strict headers, and errors in one form.

A page loads nothing from elsewhere and runs no inline script, so an answer of a model cannot do anything in it.
"""

from collections.abc import Mapping
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from puna.serve.errors import ApiError, from_exception
from puna.serve.gate import as_response

HTML, CSS = "text/html; charset=utf-8", "text/css; charset=utf-8"
JAVASCRIPT, SVG = "text/javascript; charset=utf-8", "image/svg+xml"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, folder: Traversable, kinds: Mapping[str, str]) -> None:
    """Serve a page: `index.html` at `/`, its parts at `/page/NAME`.

    Args:
        app: The application.
        folder: Holds the files; they are read once.
        kinds: Content type of each file that may be served.
    """
    contents = {name: (folder / name).read_bytes() for name in kinds}

    def page_file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=kinds[name], headers=_HEADERS)

    @app.get("/")
    async def page() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        return page_file(name)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's form, without a trace of the inside."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return as_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path[:200], request.method
        message = f"There is no {method} {path} here." if error.status_code in (404, 405) else str(error.detail)
        return as_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def any_error(request: Request, error: Exception) -> Response:
        return as_response(from_exception(error))
