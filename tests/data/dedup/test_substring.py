import json
import random

import numpy as np
import pytest

from puna.data.dedup.substring import SUBSTRING, SubstringConfig, run_hashes
from puna.data.document import Document
from tests.data.dedup.texts import VOCABULARY, documents
from tests.data.steps.barrier_bench import decide_on
from tests.reference.substring_naive import repeated_words


def _left(document, cuts):
    text, at = [], 0
    for start, stop in [] if cuts is None else cuts.tolist():
        text.append(document.text[at:start])
        at = stop
    return "".join([*text, document.text[at:]])


def _after(corpus, parts=3, **settings):
    decisions = decide_on(corpus, SUBSTRING, SubstringConfig.model_validate(settings), parts=parts)
    cuts = [c for d in decisions for c in d.cuts or ()]
    return [_left(d, c) for d, c in zip(corpus, cuts, strict=True)]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_left_equals_the_dictionary_of_all_windows(seed):
    rng = random.Random(seed)
    texts = [rng.choices(VOCABULARY[: rng.choice([2, 3000])], k=rng.randint(0, 260)) for _ in range(16)]
    span = rng.choices(VOCABULARY, k=rng.randint(48, 70))
    for _ in range(4):
        text = rng.choice(texts)
        place = rng.randint(0, len(text))
        text[place:place] = span
    joined = [" ".join(text) for text in texts]
    expected = [
        [word for word, mark in zip(text.split(), marks, strict=True) if not mark]
        for text, marks in zip(joined, repeated_words(joined, 50), strict=True)
    ]
    for parts in (1, 4):
        assert [text.split() for text in _after(documents(joined), parts)] == expected


def test_a_passage_of_exactly_the_length_is_found_and_one_word_less_is_not():
    rng = random.Random(3)
    span = " ".join(rng.choices(VOCABULARY, k=50))
    short = span.rpartition(" ")[0]
    corpus = documents([f"a b {span} c.", f"d e {span}. End", f"f g {short} h"])
    assert _after(corpus) == [corpus[0].text, "d e End", corpus[2].text]


def test_scripts_without_spaces_count_characters_and_offsets_are_those_of_the_text():
    passage = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    corpus = [Document(f"前文。{passage}后文", "s", "a"), Document(f"e\u0301 😀 {passage}。尾", "s", "b")]
    assert _after(corpus) == [corpus[0].text, "e\u0301 😀 尾"]


def test_an_earlier_corpus_counts_as_the_first_occurrence(tmp_path):
    rng = random.Random(4)
    span = " ".join(rng.choices(VOCABULARY, k=60))
    old = documents([f"old {span}"])
    decide_on(old, SUBSTRING, SubstringConfig(save_index=True), report=tmp_path / "reports/substring", parts=1)
    assert _after([Document(f"new {span} text", "t", "x")], 1, against=tmp_path) == ["new text"]


def test_the_report_counts_what_was_cut(tmp_path):
    text = " ".join(random.Random(5).choices(VOCABULARY, k=55))
    decide_on(documents([text, text]), SUBSTRING, SubstringConfig(), report=tmp_path)
    rows = dict(json.loads((tmp_path / "summary.json").read_text())["rows"])
    assert rows == {"documents with a repeated passage": 1, "passages cut": 1, "characters cut": len(text)}


def test_run_hashes_depend_on_the_words_alone():
    words = np.random.default_rng(0).integers(0, 2**32, 300, dtype=np.uint64).astype(np.uint32)
    assert np.array_equal(run_hashes(words, 7)[40:60], run_hashes(words[40:66], 7))
