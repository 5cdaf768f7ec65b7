"""The bytes of a stream, exactly, and what a guard does to them."""

import json

import anyio
import httpx
import pytest

from puna.serve.app import create_app
from puna.serve.config import ServeConfig
from puna.serve.guard import GuardVerdict
from puna.serve.replies import event
from tests.serve.fake import FakeGenerator

HEAD = (
    '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"fake","system_fingerprint":null'
)


def golden(delta: str, reason: str = "null") -> str:
    return f'data: {{{HEAD},"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]}}\n\n'


def post(generator, *, guard=None, config=None, **fields) -> httpx.Response:
    app = create_app(generator, guard=guard, config=config, now=lambda: 1.7e9, new_id=lambda: "chatcmpl-1")
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], **fields}

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=body, timeout=20)

    return anyio.run(go)


def test_a_stream_is_these_bytes():
    reply = post(FakeGenerator(["Hé", "llo"]), stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    usage = '"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4}'
    assert reply.text == (
        golden('{"role":"assistant","content":""}')
        + golden('{"content":"H\\u00e9"}')
        + golden('{"content":"llo"}')
        + golden("{}", '"stop"')
        + f'data: {{{HEAD},"choices":[],{usage}}}\n\n'
        + "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\r", "\n", "\x0b"])
def test_no_text_can_end_an_event_early(separator):
    raw = event({"text": f"a{separator}b"})
    assert len(raw.decode().splitlines()) == 2 and raw.endswith(b"\n\n")
    assert json.loads(raw[6:])["text"] == f"a{separator}b"


class Guard:
    """Refuses dialogs with `bad` in them and answers with `evil` in them."""

    def __init__(self):
        self.outputs = []

    def check_input(self, dialog):
        bad = any("bad" in m.content for m in dialog.messages)
        return GuardVerdict(not bad, "I cannot help with that." if bad else "", "S1" if bad else "")

    def check_output(self, dialog, answer):
        self.outputs.append(answer)
        evil = "evil" in answer
        return GuardVerdict(not evil, "The answer was withheld." if evil else "")


BAD = [{"role": "user", "content": "bad question"}]


def test_a_refused_dialog_is_never_generated_from():
    generator = FakeGenerator()
    reply = post(generator, guard=Guard(), messages=BAD, n=2).json()
    assert [c["finish_reason"] for c in reply["choices"]] == ["content_filter"] * 2
    assert reply["choices"][0]["message"] == {
        "role": "assistant",
        "content": "",
        "refusal": "I cannot help with that.",
    }
    assert generator.prompts == []


def test_a_refused_dialog_streams_its_refusal():
    generator = FakeGenerator()
    reply = post(generator, guard=Guard(), messages=BAD, stream=True)
    assert reply.text == (
        golden('{"role":"assistant","content":""}')
        + golden('{"refusal":"I cannot help with that."}')
        + golden("{}", '"content_filter"')
        + "data: [DONE]\n\n"
    )
    assert generator.prompts == []


def test_a_refused_answer_is_not_shown():
    reply = post(FakeGenerator(["pure ", "evil"]), guard=Guard(), logprobs=True).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == "" and choice["message"]["refusal"] == "The answer was withheld."
    assert choice["logprobs"] is None


def test_a_streamed_answer_is_judged_before_it_is_shown_and_stops_when_refused():
    generator = FakeGenerator(["fine ", "evil ", "more "] * 50)
    reply = post(generator, guard=Guard(), stream=True, config=ServeConfig(guard_every_characters=5))
    assert "fine" in reply.text
    assert "evil" not in reply.text and "more" not in reply.text
    assert '"finish_reason":"content_filter"' in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


def test_an_answer_that_passes_is_whole():
    guard = Guard()
    reply = post(
        FakeGenerator(["a", "b", "c", "d", "e"]), guard=guard, stream=True, config=ServeConfig(guard_every_characters=2)
    )
    assert guard.outputs == ["ab", "abcd", "abcde"]
    deltas = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "".join(d["choices"][0]["delta"].get("content", "") for d in deltas) == "abcde"
