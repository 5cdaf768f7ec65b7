"""The whole way once: the openai client, the server, the engine and a tiny model."""

import threading

import openai
import pytest
import torch

from puna.core.dialog import Dialog
from puna.core.generator import Sampling
from puna.infer.engine import Engine
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer


@pytest.fixture
def engine():
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)})
    config = ModelConfig(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=tokenizer.vocab_size, max_seq_len=128
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Engine(init_weights(Transformer(config), seed=1), tokenizer, name="tiny", max_batch=4)
    torch.set_num_threads(before)


def ask(client, text, **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=12, temperature=1, top_p=1, **fields
    )


def test_what_the_client_reads_is_what_the_engine_says(start, engine):
    expected = list(engine.stream(Dialog.of(("user", "Hi")), Sampling(max_tokens=12, seed=3)))[-1].completion
    with openai.OpenAI(base_url=start(engine) + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        reply = ask(client, "Hi", seed=3, logprobs=True, top_logprobs=2)
        streamed = "".join(c.choices[0].delta.content or "" for c in ask(client, "Hi", seed=3, stream=True))
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "x" * 200)
    assert reply.choices[0].message.content == expected.text == streamed
    assert reply.usage.completion_tokens == len(expected.tokens)
    raw = b"".join(bytes(t.bytes) for t in reply.choices[0].logprobs.content)
    assert raw == engine.tokenizer.decode_bytes(expected.tokens)
    assert caught.value.code == "context_length_exceeded"


def test_readers_at_once_get_what_they_would_get_alone(start, engine):
    texts = [f"question {i}" for i in range(7)]
    expected = [
        list(engine.stream(Dialog.of(("user", t)), Sampling(max_tokens=12, seed=i)))[-1].completion
        for i, t in enumerate(texts)
    ]
    found = {}
    with openai.OpenAI(base_url=start(engine) + "/v1", api_key="none", max_retries=0, timeout=60) as client:

        def read(i):
            found[i] = ask(client, texts[i], seed=i).choices[0].message.content

        threads = [threading.Thread(target=read, args=(i,)) for i in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [found[i] for i in range(len(texts))] == [c.text for c in expected]
