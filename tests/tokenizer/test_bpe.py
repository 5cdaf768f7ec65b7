import pickle
import random
import time

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.tokenizer import engines
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.engines import open_engine
from puna.tokenizer.specials import COUNT, Specials
from puna.tokenizer.split import PATTERN
from tests.reference import bpe_naive
from tests.tokenizer import corpus

ALPHABET = st.one_of(
    st.sampled_from("\n\r\t\u00a0\u0085\x1c'sSſtKé中1²٣!_😀\u200d\ufe0f\x00กاßİⅣ\u0cdc\u0301"),
    st.sampled_from([" ", "  ", "LL", "ve", "e\u0301", "1234", "...", "<|eot_id|>"]),
)
TEXT = st.one_of(st.text(), st.lists(ALPHABET, max_size=20).map("".join))


@pytest.fixture(scope="module")
def reference(cl100k) -> tiktoken.Encoding:
    return tiktoken.Encoding("reference", pat_str=PATTERN, mergeable_ranks=cl100k.ranks, special_tokens={})


def official(reference, text):
    return [i for piece in bpe_naive.official_pieces(text) for i in reference.encode_ordinary(piece)]


@pytest.mark.parametrize(
    "texts", [corpus.udhr_texts, corpus.code_texts, lambda: corpus.TRICKY], ids=["udhr", "code", "tricky"]
)
def test_ids_equal_tiktoken_on_real_text_in_many_languages_and_code(cl100k, reference, texts):
    texts = texts()
    wanted = [official(reference, text) for text in texts]
    assert [cl100k.encode(text) for text in texts] == wanted
    assert [ids.tolist() for ids in cl100k.encode_batch(texts, threads=2)] == wanted


def test_ids_equal_tiktoken_around_every_unicode_character(cl100k, reference):
    assigned = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200), *range(0xF0000, 0xF0100)]
    points = [*assigned, 0x10FFFF]
    for start in range(0, len(points), 1024):
        text = "|".join(f"a{c}1 {c}'s 1{c}' {c}{c}\n{c}" for c in map(chr, points[start : start + 1024]))
        assert cl100k.encode(text) == reference.encode_ordinary(text), hex(points[start])
    letters_of_unicode_17 = [
        chr(p) for p in (0x088F, 0x0CDC, 0xA7F1, 0x10940, 0x16FF6, 0x1E6FF, 0x2B73A, 0x323B0, 0x33479)
    ]
    assert [cl100k.encode(f"{c}'s") for c in letters_of_unicode_17] == [
        reference.encode_ordinary(f"{c}'s") for c in letters_of_unicode_17
    ]


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_ids_equal_tiktoken_on_any_text(cl100k, reference, text):
    assert cl100k.encode(text) == reference.encode_ordinary(text)


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_ids_equal_the_naive_twin(small, text):
    assert small.encode(text) == bpe_naive.encode(small.ranks, text.encode("utf-8", "replace").decode())


@pytest.mark.parametrize("text", ["a" * 60_000 + " b", " " * 30_000 + "x", "\n" * 30_000, "!" * 26_000, "中" * 26_000])
def test_long_runs_give_the_official_ids_quickly(cl100k, reference, text):
    start = time.process_time()
    ids = cl100k.encode(text)
    assert time.process_time() - start < 5
    assert ids == official(reference, text)


def test_a_million_equal_characters_are_no_trap(cl100k):
    for text in ("a" * 1_000_000, " " * 1_000_000, "\r\n" * 500_000, "=-" * 500_000):
        start = time.process_time()
        assert cl100k.decode(cl100k.encode(text)) == text
        assert time.process_time() - start < 10


def test_renewing_the_engine_changes_no_id(small, monkeypatch):
    monkeypatch.setattr(engines, "RENEW_BYTES", 1000)
    engine = open_engine(small.ranks, name="gigatoken")
    texts = [text[:3000] for text in corpus.stdlib_texts(8)]
    assert [engine.encode(text).tolist() for text in texts] == [small.encode(text) for text in texts]
    many = engine.encode_many(texts, threads=2)
    assert [ids.tolist() for ids in many] == [small.encode(text) for text in texts]


def test_tokens_that_merges_never_reach_are_taken_whole_as_tiktoken_does(small):
    ranks = dict(small.ranks)
    for word in (" việc", "xqzjv", "नमस्ते", "hello😀"):
        ranks[word.encode()] = len(ranks)
    reference = tiktoken.Encoding("reference", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    text = "x việc xqzjv xqzjvx  नमस्ते việcs"
    assert Tokenizer(ranks).encode(text) == reference.encode_ordinary(text)
    assert len(small.ranks) in Tokenizer(ranks).encode(text)


def test_both_engines_agree_whatever_order_the_bytes_have(small):
    order = list(range(256))
    random.Random(0).shuffle(order)
    ranks = {token: order[rank] if rank < 256 else rank for token, rank in small.ranks.items()}
    fast, slow = open_engine(ranks, name="gigatoken"), open_engine(ranks, name="tiktoken")
    texts = [*corpus.stdlib_texts(5), *corpus.TRICKY]
    for threads in (1, 2):
        pairs = zip(fast.encode_many(texts, threads=threads), slow.encode_many(texts, threads=threads), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@given(TEXT)
@settings(deadline=None)
def test_decoding_gives_the_text_back(small, text):
    assert small.decode(small.encode(text)) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@given(TEXT)
@settings(deadline=None)
def test_no_text_ever_becomes_a_special_token(small, text):
    for name in ("<|eot_id|>", "<|begin_of_text|>", "<|reserved_special_token_7|>"):
        ids = small.encode(name + text + name)
        assert not any(i in small.specials for i in ids)


@given(st.lists(st.integers(0, 1023), max_size=30), st.sampled_from(["show", "skip"]))
@settings(deadline=None)
def test_streamed_text_joined_is_the_decoded_text(small, ids, specials):
    stream = small.stream_decoder(specials=specials)
    assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == small.decode(ids, specials=specials)


@given(TEXT.filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)))
@settings(deadline=None)
def test_a_stream_never_shows_half_a_character(small, text):
    stream = small.stream_decoder()
    shown = ""
    for byte in text.encode():
        shown += stream.push(small.ranks[bytes([byte])])
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_a_cut_character_ends_a_stream_as_a_replacement_and_the_decoder_starts_anew(small):
    stream = small.stream_decoder()
    first = "中".encode()[:2]
    assert "".join(stream.push(small.ranks[bytes([b])]) for b in first) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(small.ranks[b"a"]) == "a"


def test_specials_can_be_shown_or_skipped(small):
    ids = [small.specials.bos, *small.encode("hi"), small.specials.eot]
    assert small.decode(ids) == "<|begin_of_text|>hi<|eot_id|>"
    assert small.decode(ids, specials="skip") == "hi"
    assert small.decode_bytes(np.array(ids, dtype=np.uint32)) == b"<|begin_of_text|>hi<|eot_id|>"


@pytest.mark.parametrize("bad", [-1, 1024, 10**9])
def test_an_id_outside_the_vocabulary_is_a_clear_error(small, bad):
    with pytest.raises(UsageError, match="outside this vocabulary of 1024"):
        small.decode([5, bad])


def test_special_ids_are_those_of_llama_3():
    official = Specials.of(128_000)
    assert (official.bos, official.end_of_text, official.pad) == (128_000, 128_001, 128_004)
    assert (official.start_header, official.end_header, official.eom) == (128_006, 128_007, 128_008)
    assert (official.eot, official.python_tag) == (128_009, 128_010)
    assert official.name(128_255) == "<|reserved_special_token_247|>"
    april = Specials.of(128_000, layout="llama3")
    assert april.name(128_004) == "<|reserved_special_token_2|>"
    assert april.name(128_008) == "<|reserved_special_token_4|>"
    assert april.name(128_010) == "<|reserved_special_token_5|>"
    assert april.name(128_255) == "<|reserved_special_token_250|>"
    assert (april.eot, april.pad) == (official.eot, official.pad)


def test_specials_of_another_layout_are_refused():
    with pytest.raises(UsageError, match="begin_of_text"):
        Specials.of(10, [f"<|x{i}|>" for i in range(COUNT)])
    with pytest.raises(UsageError, match="256 different"):
        Specials.of(10, ["<|begin_of_text|>"])


def test_a_worker_that_is_sent_a_tokenizer_with_every_task_builds_its_engine_once(small):
    data = pickle.dumps(small)
    first = pickle.loads(data)
    first.encode("the engine is built")
    assert pickle.loads(data).engine is first.engine
    other = pickle.loads(pickle.dumps(Tokenizer({bytes([byte]): byte for byte in range(256)})))
    assert other.encode("é") == [0xC3, 0xA9]
    assert pickle.loads(data).encode("the") == small.encode("the")


def test_a_pickled_tokenizer_is_the_same(small):
    again = pickle.loads(pickle.dumps(small))
    assert again.fingerprint == small.fingerprint
    assert again.encode("hello") == small.encode("hello")


def test_the_fingerprint_depends_on_ranks_and_names(small):
    april = Tokenizer(small.ranks, Specials.of(len(small.ranks), layout="llama3"))
    assert april.fingerprint != small.fingerprint
    swapped = dict(small.ranks)
    swapped[b"a"], swapped[b"b"] = swapped[b"b"], swapped[b"a"]
    assert Tokenizer(swapped).fingerprint != small.fingerprint


def test_a_vocabulary_without_a_byte_or_with_a_hole_is_refused(small):
    with pytest.raises(CorruptError, match="0x61"):
        Tokenizer({token: i for i, token in enumerate(t for t in small.ranks if t != b"a")})
    with pytest.raises(CorruptError, match="not 0 to"):
        Tokenizer({token: rank + 1 for token, rank in small.ranks.items()})


def test_loading_what_is_no_tokenizer_says_what_it_is(tmp_path):
    with pytest.raises(MissingError, match="neither tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(MissingError, match="not there"):
        Tokenizer.load(tmp_path / "absent.tiktoken")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(UsageError, match="SentencePiece"):
        Tokenizer.load(tmp_path / "tokenizer.model")
    (tmp_path / "cut.tiktoken").write_bytes(b"IQ== 0\nIg== 1\nIw=")
    with pytest.raises(CorruptError, match="line 3"):
        Tokenizer.load(tmp_path / "cut.tiktoken")
