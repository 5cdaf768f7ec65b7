"""Whatever comes in, an error goes out in OpenAI's form, naming the field; and the server goes on."""

import base64
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.serve.app import create_app
from puna.serve.config import ServeConfig
from puna.serve.errors import ApiError
from puna.serve.protocol import parse_chat_request
from tests.serve.fake import FakeGenerator

JSON = {"content-type": "application/json"}
HI = [{"role": "user", "content": "Hi"}]
CONFIG = ServeConfig()


def ask(**fields):
    return json.dumps({"model": "fake", "messages": HI, **fields}).encode()


MALFORMED = [
    (b"", None, "not valid JSON"),
    (b"{", None, "not valid JSON"),
    (b"[]", None, "object"),
    (b"\xff\xfe", None, "not valid JSON"),
    (b'{"messages": NaN}', None, "NaN"),
    (b'{"seed": ' + b"9" * 5000 + b"}", None, "not valid JSON"),
    (b'{"messages": ' + b"[" * 100_000 + b"}", None, "not valid JSON"),
    (b"{}", "messages", "Missing"),
    (ask(messages=None), "messages", "Missing"),
    (ask(messages=[]), "messages", "at least 1"),
    (ask(messages="Hi"), "messages", "list"),
    (ask(messages=["Hi"]), "messages[0]", "ChatMessage"),
    (ask(messages=[{"content": "Hi"}]), "messages[0].role", "Missing"),
    (ask(messages=[{"role": "wizard", "content": "Hi"}]), "messages[0].role", "wizard"),
    (ask(messages=[{"role": "user", "content": 7}]), "messages[0].content", "string"),
    (ask(messages=[{"role": "user", "content": None}]), "messages[0].content", "string"),
    (ask(messages=[{"role": "user"}]), "messages[0].content", "string"),
    (ask(messages=[*HI, {"role": "user", "content": [{"type": "image_url"}]}]), "messages[1].content", "text"),
    (ask(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content", "surrogate"),
    (ask(messages=[{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls", "tools"),
    (ask(model=7), "model", "string"),
    (ask(temperature="hot"), "temperature", "number"),
    (ask(temperature=True), "temperature", "number"),
    (ask(temperature=-0.1), "temperature", "greater"),
    (ask(temperature=2.1), "temperature", "less"),
    (ask(top_p=1.5), "top_p", "less"),
    (ask(top_k=-2), "top_k", "greater"),
    (ask(top_k=1.5), "top_k", "integer"),
    (ask(max_tokens=0), "max_tokens", "greater"),
    (ask(max_tokens="many"), "max_tokens", "integer"),
    (ask(max_completion_tokens=-1), "max_completion_tokens", "greater"),
    (ask(seed=2**70), "seed", "less"),
    (ask(n=0), "n", "greater"),
    (ask(n=9), "n", "At most 8"),
    (ask(stop=7), "stop", "string"),
    (ask(stop=["a", 7]), "stop", "string"),
    (ask(stop=[""]), "stop", "empty"),
    (ask(stop=["x"] * 65), "stop", "64"),
    (ask(stream="yes"), "stream", "boolean"),
    (ask(stream_options=7), "stream_options", "StreamOptions"),
    (ask(stream_options={"include_usage": "x"}), "stream_options.include_usage", "boolean"),
    (ask(logprobs=3), "logprobs", "boolean"),
    (ask(logprobs=True, top_logprobs=21), "top_logprobs", "less"),
    (ask(top_logprobs=2), "top_logprobs", "logprobs"),
    (ask(tools=[{"type": "function"}]), "tools", "not supported"),
    (ask(tool_choice="required"), "tool_choice", "not supported"),
    (ask(response_format={"type": "json_object"}), "response_format", "not supported"),
    (ask(logit_bias={"5": 1}), "logit_bias", "not supported"),
    (ask(presence_penalty=0.5), "presence_penalty", "not supported"),
    (ask(frequency_penalty=False), "frequency_penalty", "not supported"),
    (ask(min_p=0.1), "min_p", "not supported"),
]


@pytest.fixture
def client():
    transport = httpx.ASGITransport(create_app(FakeGenerator()), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


def send(client, method, path, **kwargs):
    import anyio

    async def go():
        async with client:
            return await client.request(method, path, **kwargs)

    return anyio.run(go)


@pytest.mark.parametrize(
    ("body", "param", "hint"), MALFORMED, ids=[f"{p}-{i}" for i, (_, p, _) in enumerate(MALFORMED)]
)
def test_a_malformed_request_is_400_and_names_its_field(client, body, param, hint):
    reply = send(client, "POST", "/v1/chat/completions", content=body, headers=JSON)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert hint in error["message"]
    assert len(error["message"]) < 500


ACCEPTED = [
    {name: None}
    for name in [
        "model",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "user",
        "presence_penalty",
    ]
] + [
    {"tools": []},
    {"tool_choice": "auto"},
    {"response_format": {"type": "text"}},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
    {"stop": []},
    {"stop": "x"},
    {"top_k": -1},
    {"temperature": 0, "top_p": 0},
    {"some_field_of_tomorrow": {"a": 1}},
    {"user": "me", "metadata": {}, "store": False, "parallel_tool_calls": True},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda f: "-".join(f))
def test_null_harmless_and_unknown_fields_are_accepted(client, fields):
    reply = send(client, "POST", "/v1/chat/completions", content=ask(**fields), headers=JSON)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "Hello world"


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["messages", "temperature", "stop", "n", "stream_options", "seed", "tools", "top_k", "model"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=8), child, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_no_json_value_does_worse_than_an_api_error(values):
    try:
        parse_chat_request(json.dumps(values).encode(), CONFIG)
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body(), allow_nan=False)


def test_a_body_not_declared_as_json_is_415(client):
    reply = send(client, "POST", "/v1/chat/completions", content=ask(), headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    assert "application/json" in reply.json()["error"]["message"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_413(announced):
    config = ServeConfig(max_body_bytes=2000)
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(FakeGenerator(), config=config)), base_url="http://127.0.0.1"
    )

    async def parts():
        for _ in range(30):
            yield b" " * 100

    content = b" " * 3000 if announced else parts()
    assert send(client, "POST", "/v1/chat/completions", content=content, headers=JSON).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e%2fapp.py", 404),
        ("POST", "/health", 405),
        ("GET", "/docs", 404),
    ],
)
def test_wrong_paths_and_methods_have_the_same_form_of_error(client, method, path, status):
    reply = send(client, method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_loopback_server_answers_to_loopback_names_only(client):
    assert send(client, "GET", "/v1/models", headers={"host": "evil.example:8000"}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_loopback_names_are_many(client, host):
    assert send(client, "GET", "/v1/models", headers={"host": host}).status_code == 200


def keyed():
    app = create_app(FakeGenerator(), config=ServeConfig(api_key="key"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", ["/", "/v1/models", "/page/chat.js", "/v1/chat/completions", "/nothing", "//health/"])
def test_with_a_key_set_everything_needs_it(path):
    reply = send(keyed(), "GET", path)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Basic")


def test_health_needs_no_key():
    assert send(keyed(), "GET", "/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer key", 200),
        ("bearer key", 200),
        ("Basic " + base64.b64encode(b"any:key").decode(), 200),
        ("Bearer ke", 401),
        ("Bearer", 401),
        ("key", 401),
        ("Basic key", 401),
        ("Digest key", 401),
        ("Basic " + base64.b64encode(b"key:").decode(), 401),
    ],
)
def test_the_key_comes_as_bearer_or_as_basic_password(header, status):
    assert send(keyed(), "GET", "/v1/models", headers={"authorization": header}).status_code == status
