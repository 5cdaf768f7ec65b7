"""Looking at copies: `puna data clusters` on a corpus whose copies are known."""

import json

import pytest

from puna.cli import main
from puna.core.errors import MissingError, UsageError
from puna.data.clusters import clusters
from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate
from puna.stages.page.clusters import sections

WORDS = [f"word{i}" for i in range(120)]


def _curate(path, texts, steps, **more):
    path.mkdir()
    rows = [json.dumps({"text": text, "url": f"http://x/{i}"}) for i, text in enumerate(texts)]
    (path / "a.jsonl").write_text("\n".join(rows))
    source = {"kind": "jsonl", "name": "pages", "path": path / "a.jsonl", "url_field": "url"}
    config = CurateConfig.model_validate({"sources": [source], "steps": steps} | more)
    return curate(config, path / "corpus", workers=1)


def _text(begin, *changes):
    words = [f"{begin}{word}" for word in WORDS]
    for change in changes:
        words[change] = "changed"
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    texts = [_text("a"), _text("b"), _text("a", 3), _text("a", 119), _text("b", 60), _text("c")]
    return _curate(tmp_path_factory.mktemp("c") / "c", texts, [{"kind": "minhash"}])


def test_the_largest_cluster_comes_first_and_its_least_similar_member_too(corpus):
    first, second = clusters(corpus)
    assert (first.step, first.size, second.size) == ("01-minhash", 3, 2)
    assert first.kept.url == "http://x/0" and first.kept.text == _text("a")
    assert [member.url for member in first.gone] == ["http://x/2", "http://x/3"]
    assert first.gone[0].similarity < first.gone[1].similarity < 1
    assert first.gone[0].text == _text("a", 3)
    (only,) = clusters(corpus, "minhash", count=1, members=1)
    assert (only.size, len(only.gone)) == (3, 1)


def test_the_weakest_pair_comes_first_when_asked_for(corpus):
    least = [cluster.gone[0].similarity for cluster in clusters(corpus, order="weakest")]
    assert least == sorted(least)


def test_a_text_that_the_corpus_does_not_hold_is_left_empty(tmp_path):
    corpus = _curate(tmp_path / "c", [_text("a")] + [_text("a", i) for i in range(60)], [{"kind": "minhash"}])
    (cluster,) = clusters(corpus, members=100)
    assert cluster.size == len(cluster.gone) + 1 == 61
    texts = {member.text for member in cluster.gone}
    assert "" in texts and len(texts) > 1


def test_a_corpus_without_clusters_and_a_wrong_step_are_told(corpus, tmp_path):
    with pytest.raises(UsageError, match=r"no clusters of a step 'semantc'; it has them of 01-minhash"):
        clusters(corpus, "semantc")
    plain = _curate(tmp_path / "p", ["a text"], [{"kind": "exact"}])
    with pytest.raises(MissingError, match="none of its steps"):
        clusters(plain)
    unlike = _curate(tmp_path / "u", [_text("a"), _text("b")], [{"kind": "minhash"}])
    assert clusters(unlike) == []


def test_the_verb_prints_clusters_and_ends_with_the_right_code(corpus, tmp_path, capfd):
    assert main.run(["data", "clusters", str(corpus.path), "--members", "1", "--characters", "20"]) == 0
    told = capfd.readouterr().out
    assert "01-minhash: 3 documents" in told
    assert "stays   " in told and "http://x/0" in told and "and 1 more" in told
    assert "aword0 aword1 aword2..." in told
    assert main.run(["data", "clusters", str(corpus.path), "semantic"]) == 2
    assert main.run(["data", "clusters", str(tmp_path)]) == 3
    assert "not a finished corpus" in capfd.readouterr().err
    assert Corpus.open(corpus.path).sources == ["pages"]


def test_the_page_shows_groups_and_pairs_with_their_texts_escaped(tmp_path):
    texts = ["<b>" + _text("a"), "<b>" + _text("a", 3), "<b>" + _text("a", 50), _text("b")]
    corpus = _curate(tmp_path / "c", texts, [{"kind": "minhash"}])
    (section,) = sections(corpus)
    assert section.title == "Copies that 01-minhash put together"
    assert "Largest: 3 documents" in section.body and "Weakest" not in section.body
    assert "&lt;b&gt;aword0" in section.body and "<b>" not in section.body
    assert sections(_curate(tmp_path / "u", [_text("a")], [{"kind": "minhash"}])) == []
