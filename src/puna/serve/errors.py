"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` and a status.

The official client retries 408, 409, 429 and every 5xx twice, unless `x-should-retry: false` says that it would only
fail again.
"""

from typing import Any

from pydantic import ValidationError

from puna.core.errors import PromptTooLongError, UsageError

_NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: What failed, the value got, what is allowed.
        kind: OpenAI's `type`.
        param: The field of the request at fault.
        code: OpenAI's `code`.
        headers: More HTTP headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, hint: str) -> ApiError:
    """A 400 for a field that OpenAI knows and this server does not."""
    return bad_request(f"{param!r} is not supported here: {hint}", param=param, code="unsupported_parameter")


def model_not_found(wanted: str, name: str) -> ApiError:
    """A 404 for another model than the one that is loaded."""
    message = f"The model {wanted[:200]!r} does not exist. This server has {name!r}."
    return ApiError(404, message, param="model", code="model_not_found")


def too_busy(retry_after_seconds: int) -> ApiError:
    """A 429: the queue is full."""
    message = f"The queue is full. Try again in {retry_after_seconds} s."
    headers = {"Retry-After": str(retry_after_seconds)}
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)


def from_exception(error: BaseException) -> ApiError:
    """What a client is told about a failure while generating."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return bad_request(str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UsageError):
        return bad_request(str(error))
    message = "The server failed while writing this answer; its log says more."
    return ApiError(500, message, kind="server_error", code="internal_error", headers=_NO_RETRY)


def from_validation(error: ValidationError) -> ApiError:
    """The first problem of a request that does not have the right shape, with the field that it is in."""
    detail = error.errors(include_url=False)[0]
    parts = [part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("union:"))]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    if detail["type"] == "missing":
        return bad_request(f"Missing required parameter: {param!r}.", param=param, code="missing_required_parameter")
    message = detail["msg"].removeprefix("Value error, ")
    got = repr(detail["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    return bad_request(f"Invalid value for {param!r}: {got}. {message}.", param=param, code="invalid_value")
