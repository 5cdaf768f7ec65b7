"""The unmodified openai client against a real server."""

import openai
import pytest

from puna.serve.config import ServeConfig
from tests.serve.fake import FakeGenerator

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def generator():
    return FakeGenerator()


@pytest.fixture
def client(start, generator):
    with openai.OpenAI(base_url=start(generator) + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def test_a_whole_answer_has_text_reason_and_usage(client):
    reply = client.chat.completions.create(model="fake", messages=HI)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == "Hello world"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (2, 3, 5)


def test_a_stream_gives_the_same_text_and_ends_with_usage(client):
    chunks = list(
        client.chat.completions.create(model="fake", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 5
    assert all(c.usage is None for c in chunks[:-1])


def test_sampling_parameters_reach_the_generator(client, generator):
    client.chat.completions.create(
        model="fake",
        messages=HI,
        temperature=0,
        top_p=0.5,
        seed=-7,
        max_tokens=2,
        stop=["END", "\n"],
        extra_body={"top_k": 40},
    )
    sampling = generator.samplings[-1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 40, -7)
    assert (sampling.max_tokens, sampling.stop) == (2, ("END", "\n"))


def test_max_completion_tokens_wins_and_length_is_told(client, generator):
    reply = client.chat.completions.create(model="fake", messages=HI, max_tokens=50, max_completion_tokens=1)
    assert generator.samplings[-1].max_tokens == 1
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == "Hello"


def test_an_open_seed_differs_from_request_to_request(client, generator):
    for _ in range(2):
        client.chat.completions.create(model="fake", messages=HI)
    assert generator.samplings[0].seed != generator.samplings[1].seed


def test_n_answers_have_seeds_of_their_own(client, generator):
    reply = client.chat.completions.create(model="fake", messages=HI, n=3, seed=5)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert len({s.seed for s in generator.samplings}) == 3
    assert 5 in {s.seed for s in generator.samplings}
    assert reply.usage.completion_tokens == 9 and reply.usage.prompt_tokens == 2


def test_n_answers_stream_side_by_side(client):
    text = {0: "", 1: ""}
    reasons = {}
    for chunk in client.chat.completions.create(model="fake", messages=HI, n=2, stream=True):
        choice = chunk.choices[0]
        text[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert text == {0: "Hello world", 1: "Hello world"}
    assert reasons == {0: "stop", 1: "stop"}


def test_logprobs_have_bytes_and_alternatives(client):
    reply = client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=1)
    first = reply.choices[0].logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("Hello", -0.5, list(b"Hello"))
    assert first.top_logprobs[0].token == "Hello"
    assert len(reply.choices[0].logprobs.content) == reply.usage.completion_tokens


def test_streamed_logprobs_cover_every_token(client):
    chunks = client.chat.completions.create(model="fake", messages=HI, logprobs=True, stream=True)
    tokens = [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert tokens == ["Hello", " ", "world"]


def test_every_role_and_form_of_content_is_read(client, generator):
    client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None},
            {"role": "tool", "content": "42", "tool_call_id": "x"},
        ],
    )
    assert generator.prompts[-1].as_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "42"},
    ]


def test_models_are_listed_and_found(client):
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_400_with_counts(client, stream):
    with pytest.raises(openai.BadRequestError, match="5000 tokens") as caught:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 5000}], stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_a_failure_is_500_that_is_not_retried(start, generator):
    generator.failure = RuntimeError("secret detail")
    with (
        openai.OpenAI(base_url=start(generator) + "/v1", api_key="none", max_retries=2, timeout=20) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=HI)
    assert "secret" not in str(caught.value)
    assert len(generator.prompts) == 1


def test_a_failure_in_mid_stream_reaches_the_client_as_an_error(start):
    class Breaks(FakeGenerator):
        def stream(self, prompt, sampling):
            yield next(iter(super().stream(prompt, sampling)))
            raise RuntimeError("secret detail")

    with openai.OpenAI(base_url=start(Breaks()) + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        seen = []
        with pytest.raises(openai.APIError, match="failed while writing"):
            seen.extend(
                c.choices[0].delta.content
                for c in client.chat.completions.create(model="fake", messages=HI, stream=True)
            )


def test_the_key_opens_what_is_closed_without_it(start, generator):
    url = start(generator, ServeConfig(port=0, api_key="sésame"))
    with openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0, timeout=20) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="fake", messages=HI)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert generator.prompts == []


def test_a_doubled_slash_in_the_address_is_forgiven(start, generator):
    with openai.OpenAI(base_url=start(generator) + "//v1/", api_key="none", max_retries=0, timeout=20) as client:
        assert client.chat.completions.create(model="fake", messages=HI).choices[0].message.content == "Hello world"
