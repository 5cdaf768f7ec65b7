import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.data.word_hashes import batches, compose, ngrams, words_of

TEXTS = ["The end, of the END.", "", "a", "日本語と English mixed ไทย", "x" * 500, "e\u0301 \ud800 😀 ok", "\n\n"]


def _spans(text):
    unspaced = "\u0e00-\u0eff\u3040-\u30ff\u4e00-\u9fff"
    return [m.span() for m in re.finditer(rf"[{unspaced}]|(?:(?![{unspaced}])[^\W_])+[\u0300-\u036f]*", text)]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_where_a_regular_expression_finds_them(text):
    words = words_of([text])
    assert list(zip(words.starts.tolist(), words.stops.tolist(), strict=True)) == _spans(text)


def test_equal_words_have_equal_hashes_wherever_they_stand():
    words = words_of(["The end the END", "other The"])
    one, end, two, again, other, three = words.hashes.tolist()
    assert one == two == three
    assert end == again
    assert len({one, end, other}) == 3


@given(st.lists(st.text(max_size=30), max_size=6))
def test_a_text_has_the_same_words_in_any_batch(texts):
    together = words_of(texts) if texts else None
    for index, text in enumerate(texts):
        assert together is not None
        low, high = together.first[index : index + 2]
        alone = words_of([text])
        assert np.array_equal(together.hashes[low:high], alone.hashes)
        assert np.array_equal(together.starts[low:high], alone.starts)


def test_runs_stay_in_their_text_and_short_texts_give_one():
    words = words_of(["a b c d", "a b", "", "b c d"])
    runs, first = ngrams(words, 3)
    assert np.diff(first).tolist() == [2, 1, 0, 1]
    assert runs[1] == runs[3]
    assert np.diff(ngrams(words, 3, short=False)[1]).tolist() == [2, 0, 0, 1]


def test_gaps_tell_punctuation_apart():
    gaps = words_of(["a, b. c, d!", "a"], gaps=True).gaps
    assert gaps[0] == gaps[2] != gaps[1]
    assert len(gaps) == 5


def test_batches_lose_nothing():
    texts = ["x" * n for n in (70_000, 1, 2, 90_000, 3)]
    assert [t for batch in batches(texts) for t in batch] == texts
    assert compose("e\u0301") == "\u00e9"
