import os
import subprocess
import sys

import pytest

from puna.core.errors import MissingError, UsageError
from puna.tokenizer.train import Spill, train_bpe
from tests.reference import bpe_naive
from tests.tokenizer import corpus


def test_training_equals_the_naive_twin():
    texts = [*corpus.TRICKY[:-1], "low lower lowest newer newest wider 123 1234 " * 5, corpus.stdlib_texts(1)[0][:4000]]
    tokenizer = train_bpe(texts, vocab_size=256 + 256 + 120)
    assert tokenizer.ranks == bpe_naive.train(texts, 256 + 120)


def test_training_does_not_depend_on_the_order_of_documents():
    texts = corpus.stdlib_texts(12)
    assert train_bpe(texts, vocab_size=1200).fingerprint == train_bpe(texts[::-1], vocab_size=1200).fingerprint


def test_training_does_not_depend_on_the_number_of_threads():
    program = (
        "from tests.tokenizer import corpus; from puna.tokenizer.train import train_bpe; import sys;"
        "sys.stderr.write(train_bpe(corpus.stdlib_texts(12), vocab_size=1200).fingerprint)"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(corpus.ROOT)},
            cwd=corpus.ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for threads in ("1", "3")
    }
    assert prints == {train_bpe(corpus.stdlib_texts(12), vocab_size=1200).fingerprint}


def test_every_byte_can_be_encoded_even_when_the_text_never_had_it():
    tokenizer = train_bpe(["aaaa bbbb"] * 3, vocab_size=514)
    assert all(tokenizer.ranks[bytes([value])] == value for value in range(256))
    assert tokenizer.decode(tokenizer.encode("日本 \x00\xff")) == "日本 \x00\xff"


@pytest.mark.parametrize("vocab_size", [512, 513, 4096])
def test_small_vocabularies_have_exactly_the_size_asked_for(vocab_size):
    tokenizer = train_bpe(corpus.stdlib_texts(20), vocab_size=vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.specials.bos == vocab_size - 256


def test_text_that_runs_out_of_pairs_gives_a_smaller_vocabulary_and_says_so(capsys):
    tokenizer = train_bpe(["ab"], vocab_size=600)
    assert tokenizer.vocab_size == 256 + 1 + 256
    assert "513" in capsys.readouterr().err


@pytest.mark.parametrize("vocab_size", [0, 511, 128_257])
def test_a_vocabulary_out_of_range_is_refused(vocab_size):
    with pytest.raises(UsageError, match=str(vocab_size)):
        train_bpe(["text"], vocab_size=vocab_size)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error_and_no_tokenizer(texts):
    with pytest.raises(MissingError, match="no text"):
        train_bpe(texts, vocab_size=600)


def test_text_of_odd_kinds_trains():
    tokenizer = train_bpe(["half \ud83d surrogate", " " * 60_000 + "x", "a" * 60_000, "\r\n" * 30_000], vocab_size=540)
    assert tokenizer.decode(tokenizer.encode("x a\r\n")) == "x a\r\n"


def test_a_spill_holds_everything_below_its_bound():
    texts = [f"document {i}\n" for i in range(100)]
    with Spill(1 << 20) as spill:
        assert sum(spill.add(text) for text in texts) == spill.n_bytes
        assert list(spill) == texts
        assert spill.level == 0


def test_a_spill_beyond_its_bound_is_a_sample_that_depends_on_the_set_alone():
    texts = [f"document {i} " * 10 for i in range(2000)]

    def kept(some):
        with Spill(60_000) as spill:
            for text in some:
                spill.add(text)
            assert spill.n_bytes <= 60_000
            return set(spill), spill.level

    forward, level = kept(texts)
    assert (forward, level) == kept(texts[::-1])
    assert forward < set(texts)
    assert level == 3  # 280 kB into 60 kB: an eighth
    assert 150 < len(forward) < 350


def test_training_beyond_the_bound_still_gives_a_vocabulary():
    texts = corpus.stdlib_texts(60)
    assert train_bpe(texts, vocab_size=600, max_text_bytes=200_000).vocab_size == 600
