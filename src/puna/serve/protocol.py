"""What a chat request may say, checked field by field, and what it means for the generator.

The rules: `null` is the same as absent; a field of the wrong type or range is a 400 that names it; a field that OpenAI
knows and that would change the answer, but that is not built here, is a 400 too, because ignoring it would be a lie;
anything unknown is ignored. `top_k` is an extension that clients send through `extra_body`.

Source: the OpenAI API reference, "Create chat completion".
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
)

from puna.core.dialog import Dialog, Message, Role
from puna.core.generator import Sampling
from puna.serve.config import ServeConfig
from puna.serve.errors import ApiError, bad_request, from_validation, unsupported

MAX_TOP_LOGPROBS = 20  # OpenAI's limit
_LARGEST_INT = 2**63 - 1


def _is_number(value: Any) -> Any:
    if isinstance(value, bool) or (value is not None and not isinstance(value, (int, float))):
        raise ValueError("Expected a number")
    return value


def _is_integer(value: Any) -> Any:
    if isinstance(value, bool) or (value is not None and not isinstance(value, int)):
        raise ValueError("Expected an integer")
    return value


def _is_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("Expected a string")
    return value


def _is_unicode(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        raise ValueError("The text holds half a surrogate pair, which is no character") from None
    return value


def _flat_content(value: Any) -> Any:
    """Content as plain text: a string, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("Expected a string or a list of text parts")
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type") != "text":
            raise ValueError('Each part must be {"type": "text", "text": "..."}; other kinds are not supported')
    return "".join(part["text"] for part in value)


def _content_of(value: Any, info: ValidationInfo) -> Any:
    """Content of a message; only what an assistant said may be null or absent, where it called tools instead."""
    if value is None and info.data.get("role") == "assistant":
        return ""
    return _flat_content(value)


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if value is not None and (not isinstance(value, list) or not all(isinstance(v, str) for v in value)):
        raise ValueError("Expected a string or a list of strings")
    return value


Number = Annotated[float, BeforeValidator(_is_number)]
Integer = Annotated[int, BeforeValidator(_is_integer)]
Text = Annotated[str, BeforeValidator(_is_text), AfterValidator(_is_unicode)]
TokenCount = Annotated[Integer, Field(ge=1, le=_LARGEST_INT)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class ChatMessage(_Lenient):
    """One message; `content` arrives here as plain text already."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_content_of), AfterValidator(_is_unicode)] = Field(
        default=None,  # pyright: ignore[reportArgumentType] - absent is null, which the validator judges
        validate_default=True,
    )


class StreamOptions(_Lenient):
    """`stream_options`."""

    include_usage: StrictBool | None = None


class ChatRequest(_Lenient):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Text | None = None
    n: Annotated[Integer, Field(ge=1)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, le=_LARGEST_INT)] | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), le=_LARGEST_INT)] | None = None
    stop: Annotated[list[Text] | None, BeforeValidator(_listed)] = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    def dialog(self) -> Dialog:
        """The messages in our type; `developer` is the newer name of `system`."""
        return Dialog(tuple(Message(_role(m.role), m.content) for m in self.messages))

    def sampling(self, config: ServeConfig) -> Sampling:
        """How to draw; what the request leaves open comes from the server's settings or, for the seed, from chance."""
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or config.max_tokens,
            temperature=config.temperature if self.temperature is None else self.temperature,
            top_p=config.top_p if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            seed=secrets.randbits(48) if self.seed is None else self.seed,
            stop=tuple(self.stop or ()),
            top_logprobs=self.top_logprobs or 0,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _role(name: str) -> Role:
    return "system" if name == "developer" else name  # type: ignore[return-value]


# Fields of OpenAI's that would change the answer: the values that mean "not used", and what to say otherwise.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "this server does not call tools; leave it out."),
    "tool_choice": (("none", "auto"), "this server does not call tools; leave it out."),
    "functions": (([],), "this server does not call functions; leave it out."),
    "function_call": (("none", "auto"), "this server does not call functions; leave it out."),
    "response_format": (({"type": "text"},), 'only {"type": "text"} can be had.'),
    "logit_bias": (({},), "leave it out."),
    "presence_penalty": ((0,), "only 0 can be had."),
    "frequency_penalty": ((0,), "only 0 can be had."),
    "repetition_penalty": ((1,), "only 1 can be had."),
    "min_p": ((0,), "only 0 can be had; use top_p or top_k."),
    "modalities": ((["text"], []), 'only ["text"] can be had.'),
    "audio": ((), "this server writes text only."),
    "prediction": ((), "leave it out."),
    "web_search_options": ((), "this server reads no web pages."),
    "continue_final_message": ((False,), "the answer is always a new message."),
}


def parse_chat_request(body: bytes, config: ServeConfig) -> ChatRequest:
    """Read and check a request body.

    Raises:
        ApiError: 400, naming the field at fault.
    """
    values = _parse_json(body)
    if not isinstance(values, dict):
        raise bad_request("The body must be a JSON object.")
    values = {key: value for key, value in values.items() if value is not None}
    for name, (harmless, hint) in _UNSUPPORTED.items():
        if name in values and not any(_same(values[name], value) for value in harmless):
            raise unsupported(name, hint)
    for index, message in enumerate(values["messages"] if isinstance(values.get("messages"), list) else []):
        if isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call")):
            raise unsupported(f"messages[{index}].tool_calls", "this server does not call tools.")
    try:
        request = ChatRequest.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None
    _check_limits(request, config)
    return request


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _parse_json(body: bytes) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise bad_request(f"The body is not valid JSON: {reason}.", code="invalid_json") from None


def _check_limits(request: ChatRequest, config: ServeConfig) -> None:
    problem: ApiError | None = None
    if request.n is not None and request.n > config.max_choices:
        problem = bad_request(
            f"Invalid value for 'n': {request.n}. At most {config.max_choices}.", param="n", code="invalid_value"
        )
    elif request.stop is not None and (len(request.stop) > config.max_stop_texts or not all(request.stop)):
        problem = bad_request(
            f"Invalid value for 'stop': at most {config.max_stop_texts} texts, none of them empty.",
            param="stop",
            code="invalid_value",
        )
    elif request.top_logprobs and not request.logprobs:
        problem = bad_request("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    if problem is not None:
        raise problem
