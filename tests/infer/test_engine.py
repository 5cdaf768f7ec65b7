"""The engine on a tiny random model: cached equals uncached, alone equals in company, stops stop, streams agree."""

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.checkpoint.format import save_model
from puna.core.dialog import Dialog
from puna.core.errors import PromptTooLongError, PunaError, UsageError
from puna.core.generator import Sampling
from puna.infer.engine import Engine
from puna.tokenizer import chat_format

PROMPTS = ["", "a", "the end", "x" * 40, "Ünï", "hello there", "ab" * 20, "?"]
GREEDY = Sampling(max_tokens=16, temperature=0, ignore_eos=True)
RANDOM = Sampling(max_tokens=16, temperature=1.0, seed=11, ignore_eos=True)


def same(one, other):
    """Equal in all but the last digits of the logprobs: a matrix product of more rows rounds otherwise."""
    return (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason) and (
        one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    )


def greedy_by_whole_forwards(engine, prompt, n):
    tokens = engine.prompt_tokens(prompt)
    start = len(tokens)
    with torch.inference_mode():
        for _ in range(n):
            tokens.append(int(engine.model(torch.tensor(tokens))[-1].argmax()))
    return tuple(tokens[start:])


def test_cached_decoding_equals_whole_forwards(engine):
    for prompt, found in zip(PROMPTS, engine.complete(PROMPTS, GREEDY), strict=True):
        assert found.tokens == greedy_by_whole_forwards(engine, prompt, 16)


@pytest.mark.parametrize(
    "sampling", [GREEDY, RANDOM, replace(RANDOM, top_p=0.8, temperature=0.7), replace(RANDOM, top_k=9)]
)
def test_an_answer_is_the_same_alone_and_in_company(engine, model, tokenizer, sampling):
    together = engine.complete(PROMPTS, sampling)
    wide, narrow = Engine(model, tokenizer, max_batch=8), Engine(model, tokenizer, max_batch=1)
    assert all(map(same, wide.complete(PROMPTS, sampling), together))
    assert all(map(same, narrow.complete(PROMPTS, sampling), together))
    assert same(list(engine.stream(PROMPTS[0], sampling))[-1].completion, together[0])


def test_seeds_decide_and_prompts_of_one_call_differ(engine):
    drawn = engine.complete(["a"] * 4, RANDOM)
    assert len({c.tokens for c in drawn}) == 4
    assert all(map(same, engine.complete(["a"] * 4, RANDOM), drawn))
    assert not any(map(same, engine.complete(["a"] * 4, replace(RANDOM, seed=12)), drawn))


def test_logprobs_are_those_of_the_untempered_model(engine):
    [found] = engine.complete(["the"], replace(RANDOM, temperature=0.3, top_k=3, top_logprobs=2))
    tokens = [*engine.prompt_tokens("the"), *found.tokens]
    with torch.inference_mode():
        whole = engine.model(torch.tensor(tokens)).log_softmax(-1)
    start = len(tokens) - len(found.tokens)
    for position, (token, logprob) in enumerate(zip(found.tokens, found.logprobs, strict=True)):
        row = whole[start + position - 1]
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [t for t, _ in found.top_logprobs[position]] == row.topk(2).indices.tolist()


def test_a_stream_is_the_completion_in_pieces(engine):
    for prompt in PROMPTS:
        pieces = list(engine.stream(prompt, RANDOM))
        [completion] = engine.complete([prompt], RANDOM)
        assert same(pieces[-1].completion, completion)
        assert all(p.completion is None for p in pieces[:-1])
        assert "".join(p.text for p in pieces) == completion.text


def test_the_text_of_a_completion_is_its_tokens_decoded(engine, tokenizer):
    for found in engine.complete(PROMPTS, RANDOM):
        assert found.text == tokenizer.decode(found.tokens, specials="skip")


def test_streams_share_the_batch_and_do_not_disturb_each_other(engine):
    alone = {p: list(engine.stream(p, RANDOM))[-1].completion for p in PROMPTS}
    streams = {p: engine.stream(p, RANDOM) for p in PROMPTS}  # twice as many as there are rows
    found = {}
    while streams:
        for prompt, stream in list(streams.items()):
            piece = next(stream)
            if piece.completion:
                found[prompt] = piece.completion
                del streams[prompt]
    assert all(same(found[prompt], alone[prompt]) for prompt in PROMPTS)


@pytest.mark.parametrize("closed_after", [0, 1, 5])
def test_a_closed_stream_frees_its_row_and_changes_nothing_for_others(engine, closed_after):
    expected = list(engine.stream("the end", RANDOM))[-1].completion
    doomed, kept = engine.stream("x" * 30, RANDOM), engine.stream("the end", RANDOM)
    for _ in range(closed_after):
        next(doomed), next(kept)
    doomed.close()
    assert same(list(kept)[-1].completion, expected)
    assert engine._scheduler.load == (0, 0)


def test_a_stream_that_was_never_read_costs_nothing(engine):
    engine.stream("a", RANDOM)
    assert engine._scheduler.load == (0, 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mix_of_arrivals_and_departures_gives_each_its_own_answer(model, tokenizer, data):
    engine = Engine(
        model, tokenizer, max_batch=data.draw(st.integers(1, 4)), cache_tokens=data.draw(st.integers(96, 300))
    )
    jobs = data.draw(
        st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=6)
    )
    samplings = [replace(RANDOM, max_tokens=n, seed=seed) for _, n, seed in jobs]
    expected = [
        list(Engine(model, tokenizer).stream(p, s))[-1].completion for (p, _, _), s in zip(jobs, samplings, strict=True)
    ]
    streams = {i: engine.stream(p, s) for i, ((p, _, _), s) in enumerate(zip(jobs, samplings, strict=True))}
    while streams:
        i = data.draw(st.sampled_from(sorted(streams)))
        if data.draw(st.integers(0, 30)) == 0:
            streams.pop(i).close()
            continue
        piece = next(streams[i])
        if piece.completion:
            assert piece.completion.tokens == expected[i].tokens
            assert piece.completion.text == expected[i].text
            del streams[i]
    assert engine._scheduler.load == (0, 0)


def test_a_stop_text_across_tokens_is_cut_off_everywhere(engine):
    [free] = engine.complete(["the end"], replace(RANDOM, max_tokens=40))
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    cut = free.text.index(stop)
    sampling = replace(RANDOM, max_tokens=40, stop=(stop, "never said"))
    [found] = engine.complete(["the end"], sampling)
    assert found.finish_reason == "stop"
    assert found.text == free.text[:cut]
    assert found.tokens == free.tokens[: len(found.tokens)] and len(found.tokens) < len(free.tokens)
    pieces = list(engine.stream("the end", sampling))
    assert "".join(p.text for p in pieces) == found.text


def test_what_only_looks_like_a_stop_text_is_shown_in_the_end(engine):
    [free] = engine.complete(["the end"], RANDOM)
    stop = free.text[-1] + "and this never comes"
    [found] = engine.complete(["the end"], replace(RANDOM, stop=(stop,)))
    assert found.text == free.text and found.finish_reason == "length"


def test_stop_tokens_end_an_answer_unless_they_are_ignored(engine, model, tokenizer):
    eot = tokenizer.specials.eot
    saved = model.head_weight.detach().clone()
    try:
        with torch.no_grad():  # make end-of-turn likely
            hidden = model.hidden(torch.tensor(engine.prompt_tokens("a")))[-1]
            model.head_weight[eot] = 50 * hidden / hidden.norm()
        [found] = engine.complete(["a"], replace(GREEDY, ignore_eos=False))
        assert (found.tokens, found.text, found.finish_reason) == ((eot,), "", "stop")
        [found] = engine.complete(["a"], GREEDY)
        assert found.tokens[0] == eot and len(found.tokens) == 16 and "<|eot_id|>" not in found.text
        [found] = engine.complete(["a"], replace(GREEDY, stop=("<|eot_id|>",)))
        assert found.tokens == (eot,) and found.finish_reason == "stop"
    finally:
        with torch.no_grad():
            model.head_weight.copy_(saved)


def test_a_dialog_is_rendered_with_an_open_assistant_turn(engine, tokenizer):
    dialog = Dialog.of(("system", "Be brief."), ("user", "Hi"))
    [found] = engine.complete([dialog], GREEDY)
    assert found.prompt_tokens == len(chat_format.prompt(tokenizer, dialog))
    assert found.tokens == greedy_by_whole_forwards(engine, dialog, 16)


def test_the_context_ends_an_answer(engine):
    [found] = engine.complete(["x" * 90], replace(GREEDY, max_tokens=1000))
    assert found.prompt_tokens == 91 and len(found.tokens) == 96 - 91 and found.finish_reason == "length"


def test_a_prompt_without_room_for_an_answer_is_refused_with_counts(engine):
    assert len(engine.complete(["x" * 94], GREEDY)[0].tokens) == 1
    with pytest.raises(PromptTooLongError, match=r"96 tokens.*holds 96"):
        engine.complete(["a", "x" * 95], GREEDY)
    with pytest.raises(PromptTooLongError):
        next(engine.stream("x" * 95, GREEDY))
    assert engine._scheduler.load == (0, 0)


def test_nonsense_sampling_is_refused(engine):
    with pytest.raises(UsageError, match="top_p"):
        engine.complete(["a"], Sampling(top_p=2))


def test_no_prompts_give_no_completions(engine):
    assert engine.complete([], GREEDY) == [] and engine.logprobs([], []) == []


def test_many_prompts_go_through_few_rows_and_little_memory(model, tokenizer):
    engine = Engine(model, tokenizer, max_batch=3, cache_tokens=130, prefill_tokens=50)
    prompts = [("ab" * n)[: 3 * n] for n in range(23)]
    expected = [c.tokens for c in Engine(model, tokenizer, max_batch=32).complete(prompts, RANDOM)]
    assert [c.tokens for c in engine.complete(prompts, RANDOM)] == expected
    cache = engine._scheduler._cache
    assert cache is not None and cache.batch * cache.max_len <= 130


def test_the_cache_is_kept_for_the_next_call(engine):
    engine.complete(PROMPTS, GREEDY)
    first = engine._scheduler._cache
    engine.complete(PROMPTS, GREEDY)
    assert engine._scheduler._cache is first


def test_logits_that_are_no_numbers_fail_their_request_with_a_message(engine, model):
    saved = model.norm.weight.detach().clone()
    try:
        with torch.no_grad():
            model.norm.weight.fill_(float("nan"))
        with pytest.raises(PunaError, match="not numbers"):
            engine.complete(["a"], RANDOM)
    finally:
        with torch.no_grad():
            model.norm.weight.copy_(saved)
    assert engine._scheduler.load == (0, 0)
    assert len(engine.complete(["a"], RANDOM)) == 1


def test_a_failing_step_fails_who_was_in_it_and_the_engine_goes_on(engine, model, monkeypatch):
    expected = engine.complete(["a"], RANDOM)
    stream = engine.stream("the", RANDOM)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(model, "next_logits", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.complete(["a"], RANDOM)
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert engine.complete(["a"], RANDOM) == expected


def test_threads_may_share_an_engine(engine):
    expected = engine.complete(PROMPTS, RANDOM)
    found = {}

    def work(number):
        found[number] = engine.complete(PROMPTS, RANDOM)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [[c.tokens for c in found[n]] for n in range(3)] == [[c.tokens for c in expected]] * 3


def test_a_saved_model_is_loaded_with_its_tokenizer_and_named_by_its_run(engine, model, tokenizer, tmp_path):
    folder = tmp_path / "assistant" / "model"
    folder.parent.mkdir()
    save_model(folder, model, model.config, tokenizer=tokenizer)
    loaded = Engine.load(folder)
    assert loaded.name == "assistant" and loaded.max_len == 96
    assert all(map(same, loaded.complete(PROMPTS, RANDOM), engine.complete(PROMPTS, RANDOM)))


# --- likelihoods


def naive_score(engine, prompt, continuation):
    head, tail = engine.prompt_tokens(prompt), engine.tokenizer.encode(continuation)
    with torch.inference_mode():
        rows = engine.model(torch.tensor(head + tail)).log_softmax(-1)
    places = [(rows[len(head) - 1 + i], token) for i, token in enumerate(tail)]
    return sum(float(row[t]) for row, t in places), len(tail), all(int(row.argmax()) == t for row, t in places)


@pytest.mark.parametrize("prefill_tokens", [1, 60, 4096])
def test_scores_equal_one_by_one_forwards(model, tokenizer, prefill_tokens):
    engine = Engine(model, tokenizer, prefill_tokens=prefill_tokens)
    continuations = [" b", "the", "", "x" * 30, "é", "END", "a", "hello"]
    for prompt, continuation, score in zip(
        PROMPTS, continuations, engine.logprobs(PROMPTS, continuations), strict=True
    ):
        logprob, n_tokens, is_greedy = naive_score(engine, prompt, continuation)
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert (score.n_tokens, score.is_greedy) == (n_tokens, is_greedy)


def test_a_greedy_answer_scores_as_greedy_and_as_its_own_logprobs(engine, tokenizer):
    for prompt in PROMPTS:
        [found] = engine.complete([prompt], GREEDY)
        if tokenizer.encode(found.text) != list(found.tokens):
            continue  # bytes that are no text come back as other tokens
        [score] = engine.logprobs([prompt], [found.text])
        assert score.is_greedy
        assert score.logprob == pytest.approx(sum(found.logprobs), abs=1e-3)


def test_a_continuation_that_does_not_fit_is_refused(engine):
    engine.logprobs(["a"], ["x" * 95])
    with pytest.raises(PromptTooLongError):
        engine.logprobs(["a"], ["x" * 96])
