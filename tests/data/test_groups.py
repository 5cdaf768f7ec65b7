"""A source packed by language and topic: a mix weighs its parts, and the loader gives what was asked."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from puna.core.errors import ConfigError, MissingError, PunaError
from puna.core.files import verify
from puna.data import groups, megatron
from puna.data.curate import CurateConfig, curate
from puna.data.document import Document
from puna.data.groups import group_of
from puna.data.lines import read_records
from puna.data.loader import PackedLoader
from puna.data.mix import MixConfig, resolve_mix
from puna.data.shard_writer import ShardsConfig, build_shards
from tests.data.test_shards import _Bytes

COUNTS = {"en": 300, "de": 60, "sw": 12, "": 3}
ROW = 64


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A crawl whose records say their languages, in mixed order, over several tasks; and a small source beside it."""
    root, rng = tmp_path_factory.mktemp("records"), random.Random(0)
    languages = [language for language, n in COUNTS.items() for _ in range(n)]
    rng.shuffle(languages)
    rows = [
        {
            "text": f"{i} {language} " + "word " * rng.randint(1, 30),
            "url": f"u{i}",
            "language": language,
            "topic": ["arts", "science"][i % 2],
        }
        for i, language in enumerate(languages)
    ]
    for part in range(3):
        lines = [json.dumps(row) + "\n" for row in rows[part::3]]
        (root / f"{part}.jsonl").write_text("".join(lines))
    (root / "books.txt").write_text("a book " * 200)
    crawl = {"kind": "jsonl", "name": "crawl", "path": root, "task_bytes": 9000, "metadata_fields": ["topic"]}
    books = {"kind": "folder", "name": "books", "path": root / "books.txt", "language": "en"}
    return curate(CurateConfig.model_validate({"sources": [crawl, books]}), tmp_path_factory.mktemp("c"), workers=1)


@pytest.fixture(scope="module")
def grouped(corpus, tmp_path_factory):
    return build_shards(corpus, _Bytes(), tmp_path_factory.mktemp("g"), ShardsConfig(group_by=("language",)))


def _texts(shards, source):
    """The texts of a token source, by its spans."""
    shard, start, stop = source.spans(np.arange(source.n_documents))
    return [
        bytes(source.tokens[s][a + 1 : b - 1].astype(np.uint8)).decode()
        for s, a, b in zip(shard, start, stop, strict=True)
    ]


def test_every_language_is_a_source_with_its_documents_and_no_more_files(corpus, grouped, tmp_path):
    sources = grouped.sources()
    assert set(sources) == {"crawl/en", "crawl/de", "crawl/sw", "crawl/unknown", "books/en"}
    by_language = {}
    for document in corpus.documents(["crawl"]):
        by_language.setdefault(document.language or "unknown", []).append(document.text)
    for language, texts in by_language.items():
        source = sources[f"crawl/{language}"]
        assert _texts(grouped, source) == texts
        assert source.n_tokens == sum(len(text.encode()) + 2 for text in texts)
    plain = build_shards(corpus, _Bytes(), tmp_path / "plain")
    assert len(list(plain.path.iterdir())) == len(list(grouped.path.iterdir()))
    assert {n: c["tokens"] for n, c in plain.manifest["sources"].items()} == {
        n: c["tokens"] for n, c in grouped.manifest["sources"].items()
    }
    assert grouped.manifest["groups"]["crawl/sw"]["documents"] == COUNTS["sw"]
    assert plain.sources()["crawl"].fingerprint != grouped.sources()["crawl/en"].fingerprint
    assert len({source.fingerprint for source in sources.values()}) == len(sources)


def test_a_token_of_a_group_leads_back_to_its_document(grouped):
    for _, part in grouped.parts():
        found = grouped.trace(part.shard.name, part.start)
        assert found.index == part.first and found.start == part.start
    name, part = next((n, p) for n, p in grouped.parts() if n == "crawl/sw")
    last = part.start + part.n_tokens - 1
    assert grouped.trace(part.shard.name, last).document["language"] == name.partition("/")[2]


def test_fields_of_records_group_too_and_names_can_stand_in_a_pattern(corpus, tmp_path):
    config = ShardsConfig(group_by=("metadata.topic", "language"))
    names = set(build_shards(corpus, _Bytes(), tmp_path, config).sources())
    assert {"crawl/arts/en", "crawl/science/en", "crawl/science/de", "books/unknown/en"} <= names
    document = Document("t", "s", "u", language="C++", metadata={"x": "Arts & [Crafts]/*", "n": 3, "none": None})
    assert group_of(document, ["language"]) == "c++"
    assert group_of(document, ["metadata.x", "metadata.n"]) == "arts-crafts/3"
    assert group_of(document, ["metadata.none", "metadata.absent", "licence"]) == "unknown/unknown/unknown"


def test_a_field_that_no_document_has_is_said(corpus, tmp_path, capfd):
    build_shards(corpus, _Bytes(), tmp_path, ShardsConfig(group_by=("language", "metadata.tpoic")))
    said = capfd.readouterr().err
    assert "no document has metadata.tpoic" in said and "has language" not in said


def _mix(grouped, rows, **config):
    sizes = {name: source.n_tokens for name, source in grouped.sources().items()}
    return resolve_mix(MixConfig.model_validate(config), sizes, rows=rows, row_tokens=ROW)


def _loader(grouped, mixed, rows=4, **more):
    more = {"weights": mixed.weights, "later": mixed.later, "sequence_length": ROW, "seed": 1, "window_rows": 8} | more
    return PackedLoader([grouped], rows=rows, **more)


def _drawn(loader, batches):
    drawn = Counter()
    for _ in range(batches):
        drawn.update(loader.next_batch().sources)
    return drawn


def test_the_loader_draws_the_shares_that_were_asked_to_within_a_row(grouped):
    config = {
        "groups": {"other": ["crawl/*", "!*/en"], "english": ["*/en"]},
        "shares": {"english": 0.6, "crawl/sw": 0.1},
        "temperature": 3,
        "max_epochs": 1000,
    }
    rows = 400
    mixed = _mix(grouped, rows, **config)
    assert mixed.weights["crawl/en"] + mixed.weights["books/en"] == pytest.approx(0.6)
    assert mixed.weights["crawl/sw"] == pytest.approx(0.1)
    drawn = _drawn(_loader(grouped, mixed), rows // 4)
    for name, share in mixed.weights.items():
        assert abs(drawn[name] / ROW - share * rows) < 1.0001, name


def test_a_floor_keeps_the_other_languages_from_drowning(grouped):
    config = {"groups": {"other": ["crawl/*", "!crawl/en"]}, "floors": {"other": 0.4}, "max_epochs": 1000}
    mixed = _mix(grouped, 400, **config)
    others = sum(mixed.weights[name] for name in ("crawl/de", "crawl/sw", "crawl/unknown"))
    assert others == pytest.approx(0.4) and others > 2 * sum(
        _mix(grouped, 400, max_epochs=1000).weights[n] for n in ("crawl/de", "crawl/sw", "crawl/unknown")
    )
    config["groups"]["other"] = ["!*/en"]  # of everything
    assert _mix(grouped, 400, **config).weights == mixed.weights
    drawn = _drawn(_loader(grouped, mixed), 100)
    other = sum(n for name, n in drawn.items() if name not in ("crawl/en", "books/en"))
    assert other / drawn.total() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("max_epochs", [1, 2.5, 4])
@pytest.mark.parametrize("phases", [[], [{"start": 0.7, "shares": {"crawl/sw": 0.5}}]])
def test_no_group_is_read_more_often_than_its_cap_to_the_token(grouped, max_epochs, phases):
    sizes = {name: source.n_tokens for name, source in grouped.sources().items()}
    rows = int(0.8 * max_epochs * sum(sizes.values()) / ROW) // 4 * 4
    shares = {"crawl/sw": 0.3, "crawl/unknown": 0.2}
    mixed = _mix(grouped, rows, shares=shares, max_epochs=max_epochs, phases=phases)
    assert "crawl/sw" in mixed.capped
    drawn = _drawn(_loader(grouped, mixed), rows // 4)
    assert drawn.total() == rows * ROW
    for name, size in sizes.items():
        assert drawn[name] <= max_epochs * size, name
    assert drawn["crawl/sw"] > max_epochs * sizes["crawl/sw"] - 2 * ROW


def test_a_group_smaller_than_a_row_is_left_out_where_the_cap_forbids_the_row(grouped):
    size = grouped.sources()["crawl/unknown"].n_tokens
    mixed = resolve_mix(
        MixConfig(max_epochs=2),
        {name: source.n_tokens for name, source in grouped.sources().items()},
        rows=10,
        row_tokens=2 * size + 1,
    )
    assert mixed.weights["crawl/unknown"] == 0 and "crawl/unknown" in mixed.capped


def test_a_run_over_groups_resumes_exactly_on_any_number_of_ranks(grouped):
    mixed = _mix(
        grouped, 160, shares={"crawl/de": 0.4}, max_epochs=9, phases=[{"start": 0.5, "shares": {"books": 0.3}}]
    )
    one = _loader(grouped, mixed)
    for _ in range(15):
        one.next_batch()
    state = json.loads(json.dumps(one.state()))
    rest = [one.next_batch() for _ in range(25)]
    ranks = [_loader(grouped, mixed, rank=rank, world=2) for rank in range(2)]
    for other in ranks:
        other.restore(state)
    for batch in rest:
        assert np.array_equal(np.concatenate([other.next_batch().tokens for other in ranks]), batch.tokens)


def test_a_sources_name_stands_for_its_groups(grouped):
    weights = PackedLoader(
        [grouped], weights={"crawl": 0.8, "crawl/sw": 0.2}, rows=1, sequence_length=ROW, seed=0
    ).weights
    sizes = {name: source.n_tokens for name, source in grouped.sources().items()}
    assert weights["crawl/sw"] == pytest.approx(0.2)
    assert weights["crawl/en"] / weights["crawl/de"] == pytest.approx(sizes["crawl/en"] / sizes["crawl/de"])
    assert sum(weights.values()) == pytest.approx(1) and "books/en" not in weights
    assert sum(_mix(grouped, 50, shares={"crawl": 0.9}).weights[n] for n in sizes if n[0] == "c") == pytest.approx(0.9)
    mixed = _mix(grouped, 50, shares={"crawl": 0.8, "crawl/sw": 0.2}, max_epochs=1000)
    assert {name: mixed.weights[name] for name in weights} == pytest.approx(weights)
    with pytest.raises(ConfigError, match="Did you mean 'crawl/de'"):
        PackedLoader([grouped], weights={"crawl/d": 1}, rows=1, sequence_length=ROW, seed=0)
    held_out = PackedLoader([grouped], weights={"crawl": 1}, rows=1, sequence_length=ROW, seed=0)
    assert held_out.next_batch().sources


def test_held_out_documents_keep_their_groups(corpus, tmp_path):
    config = ShardsConfig(group_by=("language",), held_out_fraction=0.3)
    shards = build_shards(corpus, _Bytes(), tmp_path, config)
    train, held = shards.sources("train"), shards.sources("held_out")
    assert train["crawl/en"].n_documents + held["crawl/en"].n_documents == COUNTS["en"]
    batch = PackedLoader(
        [shards], weights={"crawl": 1}, rows=2, sequence_length=ROW, seed=0, split="held_out"
    ).next_batch()
    assert set(batch.sources) <= set(held)


def test_many_small_shards_hold_the_same_groups_and_a_stopped_run_ends_with_the_same_bytes(corpus, tmp_path):
    config = ShardsConfig(group_by=("language",), shard_tokens=2000)
    whole = build_shards(corpus, _Bytes(), tmp_path / "whole", config)
    assert len(whole.shards) > 8
    assert whole.sources()["crawl/sw"].n_documents == COUNTS["sw"]
    with pytest.raises(KeyboardInterrupt):
        build_shards(corpus, _Bytes(fail_at=3), tmp_path / "killed", config, workers=1)
    assert verify(build_shards(corpus, _Bytes(), tmp_path / "killed", config).path) == verify(whole.path)


def test_megatron_takes_one_language(grouped, tmp_path):
    n = megatron.export(grouped, tmp_path / "sw", sources=["crawl/sw"])
    assert n == COUNTS["sw"]
    lines = [json.loads(line) for line in read_records(tmp_path / "sw.documents.jsonl.zst")]
    assert [line["language"] for line in lines] == ["sw"] * n
    tokens = np.fromfile(tmp_path / "sw.bin", "<u2")
    assert len(tokens) == grouped.sources()["crawl/sw"].n_tokens
    texts = bytes(tokens[tokens < 256].astype(np.uint8)).decode()
    assert texts == "".join(_texts(grouped, grouped.sources()["crawl/sw"]))
    assert megatron.export(grouped, tmp_path / "all", sources=["crawl"]) == sum(COUNTS.values())
    with pytest.raises(MissingError, match=r"of crawl/xx; there are: .*crawl/sw"):
        megatron.export(grouped, tmp_path / "x", sources=["crawl/xx"])


def test_what_cannot_group_is_refused(corpus, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"language, domain, licence and metadata\.NAME"):
        ShardsConfig(group_by=("langauge",))
    monkeypatch.setattr(groups, "MOST_GROUPS", 2)
    with pytest.raises(PunaError, match="more than 2 groups of the source 'crawl'"):
        build_shards(corpus, _Bytes(), tmp_path / "s", ShardsConfig(group_by=("language",)), workers=1)
    assert not list((tmp_path / "s").glob("*.bin"))
