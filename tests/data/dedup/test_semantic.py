import random

import numpy as np
import pytest

from puna.core.errors import MissingError, UsageError
from puna.data.dedup import tfidf
from puna.data.dedup.embed import Model2vec, open_embedder
from puna.data.dedup.kmeans import assign, fit_centroids
from puna.data.dedup.semantic import SEMANTIC, SemanticConfig
from tests.data.dedup.texts import documents
from tests.data.steps.barrier_bench import decide_on, kept


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    topics = [[f"t{t}w{i}" for i in range(150)] for t in range(12)]
    texts = [[rng.choice(topics[n % 12]) for _ in range(120)] for n in range(180)]
    copies = []
    for text in texts[:20]:
        some = [word for word in text if rng.random() > 0.1]
        rng.shuffle(some)
        copies.append(some)
    return documents([" ".join(text) for text in texts + copies])


@pytest.mark.parametrize("parts", [1, 5])
def test_shuffled_copies_with_words_left_out_are_found(corpus, parts):
    config = SemanticConfig(min_similarity=0.9, cluster_documents=40, sample_documents=200)
    decisions = decide_on(corpus, SEMANTIC, config, parts=parts)
    keep, twins = kept(decisions), [t for d in decisions for t in d.twins or ()]
    assert sum(keep[:180]) >= 178
    assert sum(twins[180 + i] == corpus[i].id for i in range(20)) >= 19


ALPHABETS = {"cyrillic": "абвгдежзиклмнопрст", "hangul": "가나다라마바사아자차카타", "greek": "αβγδεζηθικλμνξοπ"}


def _small_scripts():
    """Two hundred pages in Latin letters, four of each other script, and one copy in each with its words shuffled."""
    rng = random.Random(1)

    def word(letters):
        return "".join(rng.choices(letters, k=6))

    latin = [[f"t{t}w{i}" for i in range(150)] for t in range(20)]
    texts = [" ".join(rng.choices(latin[n % 20], k=120)) for n in range(200)]
    unlike, copies = [], []
    for letters in ALPHABETS.values():
        common = [word(letters) for _ in range(12)]
        mine = [[*rng.choices(common, k=60), *(word(letters) for _ in range(60))] for _ in range(4)]
        copies.append(rng.sample([w for w in mine[0] if rng.random() > 0.1], k=90))
        unlike += mine
    return documents(texts), documents(map(" ".join, unlike)), documents(map(" ".join, copies))


def test_texts_of_a_small_script_are_no_copies_of_each_other():
    latin, unlike, copies = _small_scripts()
    everything = [*latin, *unlike, *copies]
    config = SemanticConfig(cluster_documents=1000)
    trusting = kept(decide_on(everything, SEMANTIC, config.model_copy(update={"min_overlap": 0.0})))
    keep = kept(decide_on(everything, SEMANTIC, config))
    assert not all(trusting[len(latin) : -len(copies)])  # 128 directions do not tell them apart
    assert all(keep[: -len(copies)])
    assert not any(keep[-len(copies) :])


def test_whole_cosines_are_those_of_dense_vectors(corpus):
    buckets, counts = tfidf.terms_of([d.text for d in corpus[:30]] + [""])
    offsets = np.concatenate([[0], np.cumsum([len(b) for b in buckets])])
    terms = tfidf.Terms(np.concatenate(buckets), np.concatenate(counts), offsets)
    idf = tfidf.idf_of(np.bincount(terms.buckets, minlength=tfidf.BUCKETS), 30)
    dense = np.zeros((31, tfidf.BUCKETS), np.float32)
    for row in range(31):
        dense[row, buckets[row]] = (1 + np.log(counts[row].astype(np.float32))) * idf[buckets[row]]
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    first, second = (side.ravel() for side in np.indices((31, 31)))
    assert np.allclose(tfidf.cosines(terms, idf, first, second), (dense @ dense.T).ravel(), atol=1e-5)


def test_hard_keeps_what_is_farthest_from_the_middle(corpus):
    config = SemanticConfig(min_similarity=0.9, cluster_documents=40, keep="hard")
    keep = kept(decide_on(corpus, SEMANTIC, config))
    assert sum(keep) == sum(kept(decide_on(corpus, SEMANTIC, config.model_copy(update={"keep": "first"}))))


def test_short_documents_are_left_alone():
    assert all(kept(decide_on(documents(["a b c", "a b c", ""]), SEMANTIC, SemanticConfig())))


def test_the_projection_keeps_what_a_full_decomposition_keeps(corpus):
    buckets, counts = tfidf.terms_of([d.text for d in corpus[:100]])
    offsets = np.concatenate([[0], np.cumsum([len(b) for b in buckets])])
    terms = tfidf.Terms(np.concatenate(buckets), np.concatenate(counts), offsets)
    frequency = np.bincount(terms.buckets, minlength=tfidf.BUCKETS)
    idf = np.where(frequency > 1, tfidf.idf_of(frequency, 100), np.float32(0))
    got = tfidf.fit(terms, idf, width=12, seed=0).embed(terms)
    dense = np.zeros((100, tfidf.BUCKETS), np.float32)
    for row in range(100):
        dense[row, buckets[row]] = (1 + np.log(counts[row].astype(np.float32))) * idf[buckets[row]]
    dense = dense[:, dense.any(axis=0)]
    unit = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    best = np.linalg.svd(unit, full_matrices=False)[2][
        :12
    ]  # as many as there are topics: eight of twelve equal ones are any eight
    expected = dense @ best.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.corrcoef((got @ got.T).ravel(), (expected @ expected.T).ravel())[0, 1] > 0.97


def test_kmeans_finds_directions_and_is_deterministic():
    rng = np.random.default_rng(0)
    middles = np.eye(8, dtype=np.float32)[:5]
    rows = np.repeat(middles, 40, axis=0) + 0.05 * rng.standard_normal((200, 8), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centroids = fit_centroids(rows, 8, iterations=30, seed=3)
    assert np.array_equal(centroids, fit_centroids(rows, 8, iterations=30, seed=3))
    assert assign(middles, centroids)[1].min() > 0.9


def test_a_model2vec_folder_embeds_by_mean_vectors(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from safetensors.numpy import save_file

    vocabulary = {"[UNK]": 0, "cat": 1, "dog": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_file({"embeddings": np.array([[0, 0], [1, 0], [0, 1]], np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')
    embedder = open_embedder(tmp_path, "")
    assert isinstance(embedder, Model2vec)
    assert embedder.embed(["cat dog", "cat", ""]).tolist() == [[0.5, 0.5], [1, 0], [0, 0]]
    long = documents(["cat " * 30, "dog " * 30, "cat " * 31])
    assert kept(decide_on(long, SEMANTIC, SemanticConfig(model=tmp_path), parts=2)) == [True, True, False]


def test_a_folder_without_a_known_model_says_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="no opener"):
        open_embedder(tmp_path, "")
    with pytest.raises(MissingError, match="is not there"):
        open_embedder(tmp_path / "none", "")
