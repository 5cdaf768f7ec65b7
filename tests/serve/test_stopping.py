"""Stop means stop: a client that leaves, a full queue, a signal, a port in use."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from puna.core.errors import UsageError
from puna.serve.config import ServeConfig
from puna.serve.server import listen
from tests.serve.fake import FakeGenerator

ASK = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


def endless():
    generator = FakeGenerator(["word "], endless=True)
    generator.pause_seconds = 0.005
    return generator


def test_a_reader_who_leaves_a_stream_stops_the_work(start):
    generator = endless()
    url = start(generator)
    with httpx.stream("POST", url + "/v1/chat/completions", json={**ASK, "stream": True}, timeout=20) as reply:
        for number, _ in enumerate(reply.iter_lines()):
            if number > 10:
                break
    assert generator.closed.wait(5)
    steps = generator.steps
    time.sleep(0.1)
    assert generator.steps == steps


def test_a_reader_who_leaves_a_plain_request_stops_the_work(start):
    generator = endless()
    url = start(generator)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url + "/v1/chat/completions", json=ASK, timeout=0.5)
    assert generator.closed.wait(5)


def test_a_full_queue_is_429_with_a_time_and_empties_again(start):
    generator = endless()
    url = start(generator, ServeConfig(port=0, max_running=1, max_waiting=0))
    with httpx.stream("POST", url + "/v1/chat/completions", json={**ASK, "stream": True}, timeout=20) as reply:
        lines = reply.iter_lines()  # kept: httpx closes the connection when this is dropped
        next(lines)
        refused = httpx.post(url + "/v1/chat/completions", json=ASK, timeout=20)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert generator.closed.wait(5)
    generator.endless = False
    deadline = time.monotonic() + 5
    while httpx.get(url + "/health").json()["running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert httpx.post(url + "/v1/chat/completions", json=ASK, timeout=20).status_code == 200


def test_a_waiting_reader_is_served_when_another_ends(start):
    generator = FakeGenerator(["a"] * 20)
    generator.pause_seconds = 0.01
    url = start(generator, ServeConfig(port=0, max_running=1, max_waiting=4))
    with httpx.stream("POST", url + "/v1/chat/completions", json={**ASK, "stream": True}, timeout=20) as reply:
        lines = reply.iter_lines()
        next(lines)
        second = httpx.post(url + "/v1/chat/completions", json=ASK, timeout=20)
        assert second.json()["choices"][0]["message"]["content"] == "a" * 20


def test_two_streams_advance_together(start):
    generator = endless()
    url = start(generator)
    ask = {**ASK, "stream": True}
    with (
        httpx.stream("POST", url + "/v1/chat/completions", json=ask, timeout=20) as first,
        httpx.stream("POST", url + "/v1/chat/completions", json=ask, timeout=20) as second,
    ):
        lines = [first.iter_lines(), second.iter_lines()]
        for _ in range(20):
            for reader in lines:
                assert next(reader) is not None


def test_a_silent_stream_is_kept_open_by_pings(start):
    generator = FakeGenerator(["slow"])
    generator.pause_seconds = 0.5
    url = start(generator, ServeConfig(port=0, ping_seconds=0.1))
    reply = httpx.post(url + "/v1/chat/completions", json={**ASK, "stream": True}, timeout=20)
    assert ": ping\n\n" in reply.text
    assert '"content":"slow"' in reply.text and reply.text.endswith("data: [DONE]\n\n")


def test_a_port_in_use_is_said_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: the port is in use.*--port") as caught:
            listen(ServeConfig(port=port))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7"])
def test_a_host_that_is_not_ours_is_a_usage_error(host):
    with pytest.raises(UsageError):
        listen(ServeConfig(host=host, port=0))


SERVER = """
import sys
sys.path.insert(0, {root!r})
from tests.serve.fake import FakeGenerator
from puna.serve.config import ServeConfig
from puna.serve.server import listen, serve
generator = FakeGenerator(["word "] * 30)
generator.pause_seconds = 0.05
config = ServeConfig(port=0)
listener = listen(config)
print(listener.url, flush=True)
serve(generator, listener=listener, config=config)
assert "torch" not in sys.modules
"""


def test_a_signal_lets_the_running_answer_end_and_exits_with_0(tmp_path):
    code = SERVER.format(root=str(Path(__file__).parents[2]))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        while True:
            try:
                httpx.get(url + "/health", timeout=20)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        with httpx.stream("POST", url + "/v1/chat/completions", json={**ASK, "stream": True}, timeout=20) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = "\n".join(lines)
        assert "[DONE]" in rest and rest.count("word ") >= 29
        assert process.wait(20) == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
