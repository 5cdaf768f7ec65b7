"""Another model behind HTTP: our own server as the other side, and a server of canned answers for what goes wrong."""

import http.server
import json
import threading
import time
from contextlib import contextmanager

import pytest

from puna.core.errors import MissingError, PromptTooLongError, PunaError, UsageError
from puna.core.generator import Generator, Sampling
from puna.serve import endpoint as module
from puna.serve.config import ServeConfig
from puna.serve.endpoint import Endpoint
from puna.serve.keys import read_key
from tests.serve.fake import FakeGenerator, hello

GREEDY = Sampling(temperature=0, max_tokens=16)
GOOD = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 4}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.001)


@contextmanager
def canned(*answers):
    """A server that gives each answer once, and the last one from then on; answers are (status, body, headers)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer, headers = answers[min(len(seen), len(answers) - 1)]
            seen.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(status)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_our_own_server_answers_as_a_generator(start):
    there = FakeGenerator()
    generator: Generator = Endpoint(start(there) + "/v1", "fake", concurrency=2)
    first, second = generator.complete(
        [hello(), "raw text"], Sampling(temperature=0.5, top_p=0.9, max_tokens=2, seed=7, stop=("END",))
    )
    assert (first.text, first.finish_reason, first.prompt_tokens) == ("Hello ", "length", 2)
    assert second.text == "Hello "
    assert {p.as_messages()[-1]["content"] for p in there.prompts} == {"Hi", "raw text"}
    assert {s.seed for s in there.samplings} == {7, 8}
    assert {(s.temperature, s.top_p, s.max_tokens, s.stop) for s in there.samplings} == {(0.5, 0.9, 2, ("END",))}
    pieces = list(generator.stream(hello(), GREEDY))
    assert "".join(piece.text for piece in pieces) == "Hello world"
    assert pieces[-1].completion.finish_reason == "stop"
    with pytest.raises(UsageError, match="method=answer"):
        generator.logprobs([hello()], ["x"])


def test_answers_come_in_the_order_of_the_prompts(start):
    class Echo(FakeGenerator):
        def stream(self, prompt, sampling):
            self.words = [prompt.as_messages()[-1]["content"]]
            return super().stream(prompt, sampling)

    prompts = [f"prompt {i}" for i in range(6)]
    answers = Endpoint(start(Echo()) + "/v1", "fake", concurrency=1).complete(prompts, GREEDY)
    assert [answer.text for answer in answers] == prompts


def test_a_prompt_that_does_not_fit_is_told_so_that_it_can_be_cut(start):
    with pytest.raises(PromptTooLongError) as caught:
        Endpoint(start(FakeGenerator(context=100)) + "/v1", "fake").complete(["x" * 500], GREEDY)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (500, 100)


def test_the_key_comes_from_a_file_and_a_wrong_one_is_told_at_once(start, tmp_path):
    there = FakeGenerator()
    url = start(there, ServeConfig(port=0, api_key="sesame")) + "/v1"
    (tmp_path / "key.txt").write_text("sesame\n")
    key = read_key(tmp_path / "key.txt")
    assert Endpoint(url, "fake", key=key).complete([hello()], GREEDY)[0].text == "Hello world"
    for wrong in ("", "guess"):
        with pytest.raises(PunaError, match=r"answered 401.*key_file"):
            Endpoint(url, "fake", key=wrong).complete([hello()] * 20, GREEDY)
    assert len(there.prompts) == 1


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (None, MissingError, "is not there"),
        (b" \n", UsageError, "is empty"),
        (b"a\nb", UsageError, "more than one line"),
        (b"\xff\xfe", UsageError, "cannot be read"),
    ],
)
def test_a_key_file_without_a_key_is_refused(tmp_path, content, error, told):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(error, match=told):
        read_key(tmp_path / "key")


def test_the_environment_changes_nothing(start, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with canned((200, GOOD, {})) as (url, seen):
        assert Endpoint(url, "m").complete(["x"], GREEDY)[0].text == "fine"
    assert "Authorization" not in seen[0][1]


def test_a_proxy_is_used_where_it_is_named():
    with canned((200, GOOD, {})) as (proxy, seen):
        there = Endpoint("http://models.example/v1", "m", proxy=proxy.removesuffix("/v1"))
        assert there.complete(["x"], GREEDY)[0].text == "fine"
    assert seen[0][0] == "http://models.example/v1/chat/completions"


def test_a_redirect_does_not_take_the_key_elsewhere():
    with (
        canned((200, GOOD, {})) as (other, seen),
        canned((302, b"", {"Location": other})) as (url, _),
        pytest.raises(PunaError, match="answered 302"),
    ):
        Endpoint(url, "m", key="secret").complete(["x"], GREEDY)
    assert seen == []


def test_a_busy_server_is_asked_again_after_the_time_that_it_names():
    busy = (429, {"error": "slow down"}, {"Retry-After": "0.3"})
    with canned(busy, (503, b"", {}), (200, GOOD, {})) as (url, seen):
        begun = time.monotonic()
        assert Endpoint(url, "m").complete(["x"], GREEDY)[0].prompt_tokens == 4
        assert time.monotonic() - begun >= 0.3
    assert len(seen) == 3


def test_a_server_that_stays_busy_ends_in_its_own_words():
    with canned((429, {"error": "quota is used up"}, {})) as (url, seen):
        with pytest.raises(PunaError, match=r"answered 429.*quota is used up"):
            Endpoint(url, "m").complete(["x"], GREEDY)
        assert len(seen) == 6


def test_what_cannot_be_reached_is_told_with_its_address():
    with canned((200, GOOD, {})) as (url, _):
        pass
    with pytest.raises(PunaError, match=f"{url}/chat/completions cannot be reached.*Is the server running"):
        Endpoint(url, "m").complete(["x"] * 50, GREEDY)


def test_an_answer_that_is_cut_off_is_asked_for_again():
    short = (200, b'{"choices"', {"Content-Length": "1000"})
    with canned(short, (200, GOOD, {})) as (url, seen):
        assert Endpoint(url, "m").complete(["x"], GREEDY)[0].text == "fine"
    assert len(seen) == 2


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"", b'{"choices": [', b"\xff"])
def test_malformed_json_is_shown_and_not_asked_for_again(body):
    with canned((200, body, {})) as (url, seen):
        with pytest.raises(PunaError, match="answered no JSON"):
            Endpoint(url, "m").complete(["x"], GREEDY)
        assert len(seen) == 1


@pytest.mark.parametrize(
    "answer",
    [[], {}, "text", {"choices": []}, {"choices": [{"message": None}]}, {"choices": [{"message": {"content": 3}}]}],
)
def test_json_that_is_no_chat_completion_is_shown(answer):
    with canned((200, answer, {})) as (url, _), pytest.raises(PunaError, match="something else than a chat"):
        Endpoint(url, "m").complete(["x"], GREEDY)


def test_vllms_words_for_a_long_prompt_are_understood():
    told = {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."}
    with canned((400, told, {})) as (url, _), pytest.raises(PromptTooLongError, match="5000 tokens"):
        Endpoint(url, "m").complete(["x"], GREEDY)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[x/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="an address like http"):
        Endpoint(url, "m")


def test_a_key_that_no_header_can_carry_is_refused():
    with pytest.raises(UsageError, match="no HTTP header"):
        Endpoint("http://host/v1", "m", key="a\nb")
