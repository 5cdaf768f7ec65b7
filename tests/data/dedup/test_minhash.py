import gzip
import json
import os
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from puna.core.errors import MissingError, UsageError
from puna.data.dedup import pairs
from puna.data.dedup.minhash import MINHASH, MinhashConfig, band_keys, shingle_sets
from puna.data.document import Document
from puna.data.documents import read_table
from tests.data.dedup.texts import changed, documents, random_text
from tests.data.steps.barrier_bench import decide_on, kept


def _config(**changes) -> MinhashConfig:
    return MinhashConfig.model_validate(changes)


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    texts = [random_text(rng, rng.randint(60, 300)) for _ in range(60)]
    texts += [changed(texts[i], rng, 0.005) for i in range(20)]
    texts += ["", "", "short", "short text", "short", "日本語の文章はここにある。" * 3, "日本語の文章はここにある!" * 3]
    return documents(texts)


def _naive(corpus, threshold):
    """Greedy over all pairs by sets of word tuples or characters; characters for Japanese."""
    sets = []
    for document in corpus:
        words = document.text.split() if document.text.isascii() else [c for c in document.text if c.isalnum()]
        n = min(5, len(words))
        sets.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set())
    keep = [True] * len(corpus)
    for i, j in sorted(combinations(range(len(corpus)), 2), key=lambda pair: pair[1]):
        union = len(sets[i] | sets[j])
        if keep[i] and keep[j] and union and len(sets[i] & sets[j]) / union >= threshold:
            keep[j] = False
    return keep


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_decisions_equal_those_of_all_pairs_in_any_number_of_parts(corpus, parts):
    decisions = decide_on(corpus, MINHASH, _config(bands=64, rows=4), parts=parts)
    assert kept(decisions) == _naive(corpus, 0.8)


def test_every_removal_names_a_document_that_stays_and_their_true_similarity(corpus):
    decisions = decide_on(corpus, MINHASH, _config(bands=64, rows=4))
    keep = dict(zip([d.id for d in corpus], kept(decisions), strict=True))
    by_id = {d.id: d for d in corpus}
    twins = [t for d in decisions for t in d.twins or ()]
    values = [v for d in decisions for v in d.values]
    gone = [(d, t, v) for d, t, v in zip(corpus, twins, values, strict=True) if not keep[d.id]]
    assert len(gone) >= 10
    for document, twin, value in gone:
        assert keep[twin] or twin == document.id  # equal texts of one address share an id
        one, other = shingle_sets([document.text, by_id[twin].text], 5)
        assert value == pytest.approx(len(set(one) & set(other)) / len(set(one) | set(other)), abs=1e-6)


def test_candidates_come_as_often_as_the_formula_says():
    rng = np.random.default_rng(0)
    for size, slack in ((2000, 0.06), (60, 0.12)):
        for wanted in (0.6, 0.8):
            n, hits = 300, 0
            for _ in range(n):
                common = round(2 * size * wanted / (1 + wanted))
                pool = np.unique(rng.integers(0, 2**32, 3 * size, dtype=np.uint64).astype(np.uint32))
                pool = rng.permutation(pool)[: 2 * size - common]
                sets = [np.sort(pool[:size]), np.sort(pool[size - common :])]
                keys = band_keys(sets, bands=14, rows=8, seed=1)
                hits += bool((keys[0] == keys[1]).any())
            similarity = common / (2 * size - common)
            assert hits / n == pytest.approx(1 - (1 - similarity**8) ** 14, abs=slack), (size, wanted)


def test_short_and_empty_texts_do_not_all_look_the_same():
    texts = documents(["", " ", "one", "two", "one two", "one two three", "..."])
    assert all(kept(decide_on(texts, MINHASH, _config(), parts=2)))


def test_keys_do_not_depend_on_who_else_is_in_the_batch(corpus):
    sets = shingle_sets([d.text for d in corpus], 5)
    alone = np.concatenate([band_keys([s], bands=8, rows=4, seed=1) for s in sets])
    assert np.array_equal(alone, band_keys(sets, bands=8, rows=4, seed=1))


def test_case_and_punctuation_and_unicode_form_do_not_matter():
    one, other = shingle_sets(["Caf\u00e9, the end of the day", "cafe\u0301 THE end of - the day!"], 5)
    assert np.array_equal(one, other)


def test_the_newest_or_longest_copy_can_stay():
    text = random_text(random.Random(1), 200)
    corpus = [
        Document(text, "s", "a", date="2020-01-01T00:00:00Z"),
        Document(text + " more of it", "s", "b", date="2019-05-05"),
        Document(text, "s", "c", date="2021-01-01T00:00:00Z"),
    ]
    assert kept(decide_on(corpus, MINHASH, _config(keep="first"))) == [True, False, False]
    assert kept(decide_on(corpus, MINHASH, _config(keep="newest"))) == [False, False, True]
    assert kept(decide_on(corpus, MINHASH, _config(keep="longest"))) == [False, True, False]


def test_what_an_earlier_corpus_holds_is_not_kept_again(corpus, tmp_path):
    decide_on(corpus[:30], MINHASH, _config(save_index=True), report=tmp_path / "old/reports/minhash")
    fresh = random_text(random.Random(9), 100)
    new = [Document(d.text, "other", d.url) for d in corpus[:5]] + [Document(fresh, "other", "new")]
    decisions = decide_on(new, MINHASH, _config(against=tmp_path / "old"), parts=2)
    assert kept(decisions) == [False] * 5 + [True]
    assert [r for d in decisions for r in d.reasons][:5] == ["minhash: seen before"] * 5
    assert next(t for d in decisions for t in d.twins or ()) == corpus[0].id
    with pytest.raises(UsageError, match="ngram is 5, here 4"):
        decide_on(new, MINHASH, _config(against=tmp_path / "old", ngram=4))
    with pytest.raises(MissingError, match="no minhash index"):
        decide_on(new, MINHASH, _config(against=tmp_path / "nowhere"))


def test_buckets_change_memory_and_nothing_else(corpus, monkeypatch):
    whole = kept(decide_on(corpus, MINHASH, _config()))
    monkeypatch.setattr(pairs, "_BYTES_PER_KEY", 1 << 16)
    monkeypatch.setattr(pairs, "_BYTES_PER_PAIR", 1 << 16)
    assert kept(decide_on(corpus, MINHASH, _config(memory_mib=1))) == whole


def test_clusters_are_written_down(corpus, tmp_path):
    decisions = decide_on(corpus, MINHASH, _config(), report=tmp_path)
    rows = read_table(tmp_path / "clusters.parquet").to_pylist()
    assert len(rows) == sum(not k for k in kept(decisions))
    summary = dict(json.loads((tmp_path / "summary.json").read_text())["rows"])
    assert summary["documents that go"] == len(rows)


def test_many_documents_under_one_key_are_paired_with_the_first_and_their_neighbours():
    found = pairs.pairs_by_key(np.zeros(40, np.uint64), np.arange(40), neighbours=3)
    assert {tuple(p) for p in found.tolist()} == {
        (i, j) for i in range(40) for j in range(i + 1, 40) if j - i <= 3 or i == 0
    }


def test_planted_plagiarism_is_found_and_nothing_else():
    root = Path(os.environ.get("PUNA_TEST_DATA", Path(__file__).parents[4] / "shared/data")) / "corpus/neardup"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    lines = gzip.decompress((root / "articles_1000.train.gz").read_bytes()).decode().splitlines()
    articles = [Document(text, "articles", key) for key, _, text in (line.partition(" ") for line in lines)]
    truth = {frozenset(line.split()) for line in (root / "articles_1000.truth").read_text().splitlines()}
    decisions = decide_on(articles, MINHASH, _config())
    twins = [t for d in decisions for t in d.twins or ()]
    by_id = {d.id: d.url for d in articles}
    assert {frozenset((d.url, by_id[t])) for d, t in zip(articles, twins, strict=True) if t} == truth
