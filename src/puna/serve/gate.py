"""What every HTTP request passes before it reaches a handler: its host, its key, and the size of its body.

Plain ASGI, so that streaming and disconnects pass through untouched.

- A server on a loopback address answers only to loopback names: otherwise a web page could reach it by DNS rebinding.
- With a key set, everything but /health needs it, as `Bearer KEY` or as the password of HTTP Basic, which is how a
  browser asks for it on the chat page. Keys are compared in constant time.
- A body is counted while it arrives; a length that is announced too large is refused unread.
"""

import base64
import binascii
import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from puna.serve.config import ServeConfig
from puna.serve.errors import ApiError


def as_response(error: ApiError) -> JSONResponse:
    """The error as an HTTP response."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(headers: dict[bytes, bytes], config: ServeConfig) -> None:
    """Refuse names that a loopback server does not have.

    Raises:
        ApiError: 403.
    """
    if not is_loopback(config.host):
        return
    try:
        name = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise ApiError(
            403,
            f"This server listens on {config.host} and does not answer to the name {name[:100]!r}. "
            "Use http://127.0.0.1, or start it with another --host.",
            code="host_not_allowed",
        )


def check_key(headers: dict[bytes, bytes], config: ServeConfig) -> None:
    """Refuse requests without the key, when there is one.

    Raises:
        ApiError: 401.
    """
    if config.api_key is None:
        return
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    given = value.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode("utf-8", errors="replace").partition(":")[2]
        except (binascii.Error, ValueError):
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    if not hmac.compare_digest(given.encode(), config.api_key.encode()):
        raise ApiError(
            401,
            "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="puna: any name, the API key as password", charset="UTF-8"'},
        )


class Gate:
    """ASGI middleware.

    Args:
        app: What lies behind.
        config: The server's settings.
    """

    def __init__(self, app: Any, config: ServeConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request pass, or answer it with its refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        while "//" in scope["path"]:  # ".../v1/" + "/models" is how many clients build addresses
            scope["path"] = scope["path"].replace("//", "/")
        scope["raw_path"] = scope["path"].encode()
        headers = dict(scope["headers"])
        try:
            check_host(headers, self._config)
            if scope["path"] != "/health":
                check_key(headers, self._config)
        except ApiError as error:
            await as_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def read_body(receive: Any, headers: dict[bytes, bytes], config: ServeConfig) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: 413 too large, 415 not declared as JSON (a form or a text body is what another web page could send
            without being asked), or 400 when the client left in the middle.
    """
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type is {kind[:100]!r}. Send 'Content-Type: application/json'.")
    limit = config.max_body_bytes
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The client left before its request was whole.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
