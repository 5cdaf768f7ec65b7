"""Tokens in the funnel: counted, counted on a sample, or estimated and said to be so."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest

from puna.cli import main
from puna.core.errors import MissingError
from puna.core.files import verify
from puna.data.card import card
from puna.data.curate import CurateConfig, curate, curate_part, plan
from puna.data.document import Size
from puna.data.documents import read_table
from puna.data.funnel import as_json, columns, funnel, totals
from puna.data.shard_writer import build_shards
from puna.data.tally import Tally
from puna.data.token_counts import TokenCounter, tokens_in
from puna.stages.page import curation
from puna.tokenizer.bpe import Tokenizer

SAID = ["of", "and", "to", "that", "have", "with", "river", "house", "the", "small", "winter", "garden"]
PAIRS = [b" " + word.encode()[:1] for word in SAID]
FOOTER = "Home | About | Contact us today please"
STEPS = [
    {"kind": "pii"},
    {"kind": "length", "min_characters": 60},
    {"kind": "gopher_quality", "min_words": 12},
    {"kind": "exact"},
    {"kind": "line_dedup", "max_copies": 6},
    {"kind": "length", "min_characters": 80, "domains": ["prose"]},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer of all bytes and some pairs."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = [bytes([byte]) for byte in range(256)] + list(dict.fromkeys(PAIRS))
    Tokenizer({token: rank for rank, token in enumerate(tokens)}).save(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    for i in range(80):
        lines = [" ".join(rng.choices(SAID, k=rng.randint(3, 20))) + "." for _ in range(rng.randint(1, 6))]
        lines += [FOOTER] * (i % 3 == 0) + [f"write to a{i}@b.org"] * (i % 10 == 0)
        (root / f"{i:03d}.txt").write_text("\n".join(lines) if i % 17 else "the same of all and to that have " * 5)
    return root


def _config(texts, **changes) -> CurateConfig:
    source = {"kind": "folder", "name": "texts", "path": texts, "task_bytes": 2500, "language": "en"}
    return CurateConfig.model_validate({"sources": [source], "steps": STEPS} | changes)


@pytest.fixture(scope="module")
def counted(texts, tokenizer, tmp_path_factory):
    return curate(_config(texts, tokenizer=tokenizer), tmp_path_factory.mktemp("counted"), workers=1)


def test_every_step_counts_what_encoding_its_documents_gives(counted, texts, tokenizer, tmp_path):
    encode = Tokenizer.load(tokenizer).encode
    total = totals(counted.manifest)
    assert total["read"]["tokens"] == sum(len(encode(path.read_text())) for path in texts.iterdir())
    steps = list(total["steps"].values())
    assert total["read"] == steps[0]["in"]
    for before, after in pairwise(steps):
        assert before["out"] == after["in"]
    pii, cut = total["steps"]["01-pii"], total["steps"]["05-line_dedup"]
    assert pii["out"]["tokens"] != pii["in"]["tokens"] and cut["out"]["tokens"] < cut["in"]["tokens"]
    for step in (total["steps"]["02-length"], total["steps"]["04-exact"]):
        gone = sum(n["tokens"] for n in step["dropped"].values())
        assert step["in"]["tokens"] == step["out"]["tokens"] + gone and gone
    kept = sum(len(encode(document.text)) for document in counted.documents())
    assert total["kept"]["tokens"] == kept == total["languages"]["en"]["tokens"]
    shards = build_shards(counted, Tokenizer.load(tokenizer), tmp_path, workers=1)
    assert shards.manifest["sources"]["texts"]["tokens"] == kept + 2 * total["kept"]["documents"]
    for step, upto in (("02-length", STEPS[:2]), ("05-line_dedup", STEPS[:5])):
        short = curate(_config(texts, steps=upto), tmp_path / step, workers=1)
        assert total["steps"][step]["out"]["tokens"] == sum(len(encode(d.text)) for d in short.documents())


def test_the_ledger_holds_the_tokens_of_every_document(counted):
    rows = [row for path in counted.ledgers() for row in read_table(path).to_pylist()]
    assert sum(row["tokens.read"] for row in rows) == totals(counted.manifest)["read"]["tokens"]
    kept = sum(row["tokens.left"] for row in rows if row["step"] == 0)
    assert kept == totals(counted.manifest)["kept"]["tokens"]


def test_counting_changes_no_document(counted, texts, tmp_path):
    plain = curate(_config(texts), tmp_path / "plain", workers=1)
    for path in plain.files("texts"):
        assert path.read_bytes() == (counted.path / "documents" / path.name).read_bytes()
    names = {name for path in plain.ledgers() for name in read_table(path).schema.names}
    assert not any(name.startswith("tokens") for name in names)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_workers_parts_and_a_second_run_give_the_same_bytes(texts, tokenizer, tmp_path, fraction):
    config = _config(texts, tokenizer=tokenizer, token_fraction=fraction)
    one = curate(config, tmp_path / "one", workers=1)
    assert verify(curate(config, tmp_path / "two", workers=2).path) == verify(one.path)
    for part in range(3):
        curate_part(config, tmp_path / "parts", index=0, part=part, parts=3)
    assert verify(curate(config, tmp_path / "parts", workers=1).path) == verify(one.path)
    assert verify(curate(config, tmp_path / "one", workers=1).path) == verify(one.path)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_thresholds_judged_anew_count_what_a_fresh_run_counts(texts, tokenizer, tmp_path, fraction):
    more = {"tokenizer": tokenizer, "token_fraction": fraction, "keep": "all"}
    first = curate(_config(texts, **more), tmp_path / "first", workers=1)
    steps = [dict(step) for step in STEPS]
    steps[1]["min_characters"] = 120
    again = curate(_config(texts, steps=steps, **more), tmp_path / "again", workers=1, reuse=first.path)
    fresh = curate(_config(texts, steps=steps, **more), tmp_path / "fresh", workers=1)
    assert totals(again.manifest) == totals(fresh.manifest) != totals(first.manifest)


def test_another_tokenizer_counts_anew(counted, texts, tmp_path):
    Tokenizer({bytes([byte]): byte for byte in range(256)}).save(tmp_path / "bytes")
    config = _config(texts, tokenizer=tmp_path / "bytes")
    other = curate(config, tmp_path / "c", workers=1)
    kept = totals(other.manifest)["kept"]
    assert kept["tokens"] == kept["bytes"] > totals(counted.manifest)["kept"]["tokens"]
    assert other.token_count != counted.token_count


def test_a_sample_comes_near_and_says_how_near(counted, texts, tokenizer, tmp_path):
    sampled = curate(_config(texts, tokenizer=tokenizer, token_fraction=0.5), tmp_path / "c", workers=1)
    exact, near = totals(counted.manifest), totals(sampled.manifest)
    for name in exact["steps"]:
        right = tokens_in(exact["steps"][name]["out"], counted.token_count)
        found = tokens_in(near["steps"][name]["out"], sampled.token_count)
        assert right.error == 0 and found.error > 0
        assert abs(found.n - right.n) < 4 * found.error
        assert found.error < 0.05 * right.n
    n = near["read"]["sampled_documents"]
    assert 0.3 * 80 < n < 0.7 * 80
    assert "±" in funnel(sampled)[0][3] and columns(sampled)[3] == "tokens ± error"
    assert "standard error" in card(sampled.manifest)


def test_the_standard_error_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(7, 1, 400).astype(int) + 1
    tokens = (sizes / rng.normal(4.4, 0.5, 400)).astype(int)
    how = {"how": "sampled", "fraction": 0.25, "tokenizer": "x"}
    estimates, errors = [], []
    for _ in range(300):
        tally = Tally(TokenCounter(path=None, fingerprint="x", fraction=0.25))
        chosen = rng.random(400) < 0.25
        for size, n, taken in zip(sizes.tolist(), tokens.tolist(), chosen, strict=True):
            tally.count(tally.read, Size(size, n if taken else None))
        found = tokens_in(tally.read, how)
        estimates.append(found.n)
        errors.append(found.error)
    assert np.mean(estimates) == pytest.approx(tokens.sum(), rel=0.005)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)
    inside = np.abs(np.array(estimates) - tokens.sum()) < 2 * np.array(errors)
    assert inside.mean() > 0.9


def test_a_sample_of_nobody_or_of_one_claims_no_error():
    how = {"how": "sampled", "fraction": 0.1, "tokenizer": "x"}
    tally = Tally(TokenCounter(path=None, fingerprint="x", fraction=0.1))
    assert tokens_in({"documents": 0, "bytes": 0}, how).n == 0
    tally.count(tally.read, Size(440))
    assert (tokens_in(tally.read, how).n, tokens_in(tally.read, how).error) == (100, None)
    tally.count(tally.read, Size(440, 220))
    assert (tokens_in(tally.read, how).n, tokens_in(tally.read, how).error) == (440, None)
    assert str(tokens_in(tally.read, how)) == "~440"
    empty = Tally(TokenCounter(path=None, fingerprint="x", fraction=0.1))
    empty.count(empty.read, Size(0, 0))
    assert tokens_in(empty.read, how).n == 0


def test_without_a_tokenizer_every_figure_says_that_it_is_estimated(texts, tmp_path, capfd):
    corpus = curate(_config(texts), tmp_path / "c", workers=1)
    assert columns(corpus)[3] == "tokens, estimated"
    assert funnel(corpus)[0][3].startswith("~")
    assert "tokens, estimated" in curation.page(corpus) and "not counted: bytes / 4.4" in curation.page(corpus)
    assert "tokens, estimated" in card(corpus.manifest) and "not counted: bytes / 4.4" in card(corpus.manifest)
    assert main.run(["data", "stats", str(corpus.path), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)["funnel"]
    assert said["token_count"] == {"how": "estimated", "bytes_per_token": 4.4}
    kept = said["kept"]
    assert kept["tokens"] == round(kept["bytes"] / 4.4) and kept["tokens_error"] is None


def test_counted_figures_reach_table_page_card_and_json(counted, capfd):
    kept = totals(counted.manifest)["kept"]["tokens"]
    assert columns(counted)[3] == "tokens"
    assert as_json(counted)["kept"]["tokens"] == kept and as_json(counted)["kept"]["tokens_error"] == 0
    for page in (curation.page(counted), card(counted.manifest)):
        assert "estimated" not in page and "Tokens are counted by the tokenizer" in page
    assert main.run(["data", "stats", str(counted.path)]) == 0
    assert "estimated" not in capfd.readouterr().out


def test_what_cannot_count_is_refused(texts, tmp_path):
    with pytest.raises(MissingError):
        plan(_config(texts, tokenizer=tmp_path / "nothing"))
    with pytest.raises(ValueError, match="no tokenizer counts"):
        _config(texts, token_fraction=0.5)
    with pytest.raises(ValueError, match="token_fraction"):
        _config(texts, tokenizer=tmp_path, token_fraction=0)


def test_the_recipe_names_the_tokenizer_as_an_input(texts, tokenizer, tmp_path, capfd):
    recipe = tmp_path / "c.toml"
    lines = [f"out = {str(tmp_path / 'c')!r}", f"tokenizer = {str(tokenizer)!r}", "[[sources]]", 'kind = "folder"']
    recipe.write_text("\n".join([*lines, 'name = "texts"', f"path = {str(texts)!r}"]) + "\n")
    assert main.run(["curate", str(recipe)]) == 0
    assert json.loads((tmp_path / "c" / "lineage.json").read_text())["inputs"]["tokenizer"]
    assert main.run(["curate", str(recipe), "tokenizer=" + str(tmp_path / "none"), "--dry-run"]) == 3
    assert "none" in capfd.readouterr().err
