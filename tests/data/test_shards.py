import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.core.files import verify
from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate
from puna.data.shard_writer import ShardsConfig, build_shards
from puna.data.shards import ShardSet
from tests.data.shard_sets import BOS, END, make_set


@dataclass(frozen=True)
class _Specials:
    bos: int = 256
    end_of_text: int = 257


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    fingerprint = "bytes"
    vocab_size = 258
    specials = _Specials()

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def encode_batch(self, texts, threads=1):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    root = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (root / f"{i:02d}.txt").write_text(f"Document {i} says: " + "zyx" * i)
    sources = [
        {"kind": "folder", "name": "words", "path": root, "task_bytes": 700, "licence": "CC0-1.0", "language": "en"}
    ]
    return curate(CurateConfig.model_validate({"sources": sources}), tmp_path_factory.mktemp("corpus"), workers=1)


def test_shards_hold_every_document_between_its_special_tokens(corpus, tmp_path):
    shards = build_shards(corpus, _Bytes(), tmp_path)
    texts = []
    for shard in shards.shards.values():
        for document in np.split(shard.tokens, shard.ends[:-1].astype(int)):
            assert document[0] == 256
            assert document[-1] == 257
            texts.append(bytes(document[1:-1].astype(np.uint8)).decode())
    assert texts == list(corpus.texts())
    assert shards.manifest["sources"]["words"]["documents"] == 40
    assert verify(tmp_path)


def test_a_token_leads_back_to_its_document(corpus, tmp_path):
    shards = build_shards(corpus, _Bytes(), tmp_path)
    name, shard = next(iter(shards.shards.items()))
    for index, document in enumerate(corpus.documents()):
        if index >= shard.n_documents:
            break
        start = int(shard.ends[index - 1]) if index else 0
        for offset in (start, int(shard.ends[index]) - 1):
            found = shards.trace(name, offset)
            assert found.document == document.provenance()
            assert (found.start, found.stop) == (start, int(shard.ends[index]))
    assert found.document["licence"] == "CC0-1.0"
    with pytest.raises(UsageError, match=f"not {shard.n_tokens}"):
        shards.trace(name, shard.n_tokens)
    with pytest.raises(UsageError, match="no shard 'nothing'"):
        shards.trace("nothing", 0)


def test_held_out_documents_are_never_trained_on_and_none_is_lost(corpus, tmp_path):
    shards = build_shards(corpus, _Bytes(), tmp_path, ShardsConfig(held_out_fraction=0.3, shard_tokens=300))
    train, held = shards.sources()["words"], shards.sources("held_out")["words"]
    assert train.n_documents + held.n_documents == 40
    assert 3 <= held.n_documents <= 22
    assert train.n_tokens + held.n_tokens == sum(d.n_bytes + 2 for d in corpus.documents())
    assert all(shard.n_tokens < 300 + 140 for shard in shards.shards.values())


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(corpus, tmp_path):
    build_shards(corpus, _Bytes(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build_shards(corpus, _Bytes(fail_at=3), tmp_path / "killed")
    tokenizer = _Bytes()
    build_shards(corpus, tokenizer, tmp_path / "killed")
    assert verify(tmp_path / "killed") == verify(tmp_path / "whole")
    assert tokenizer.calls == len(corpus.files("words")) - 2
    again = _Bytes()
    build_shards(corpus, again, tmp_path / "killed")
    assert again.calls == 0


@pytest.mark.parametrize("suffix", [".tokens.bin", ".ends.bin", ".documents.jsonl.zst"])
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path, suffix):
    make_set(tmp_path, {"code": [20, 30]})
    path = tmp_path / f"code-0{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=path.name):
        ShardSet.open(tmp_path)


def test_a_shard_cut_short_is_found_without_reading_it(tmp_path):
    make_set(tmp_path, {"code": [20, 30]})
    path = tmp_path / "code-0.tokens.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptError, match="has 212 bytes"):
        ShardSet.open(tmp_path, verify="sizes")


def test_an_unfinished_set_is_missing(tmp_path):
    with pytest.raises(MissingError, match="not a finished shard set"):
        ShardSet.open(tmp_path)


def test_spans_of_documents_are_right_across_shards(tmp_path):
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    source = make_set(tmp_path, {"code": lengths}, documents_per_shard=3).sources()["code"]
    shards, starts, stops = source.spans(np.array([7, 0, 3, 2]))
    assert shards.tolist() == [2, 0, 1, 0]
    assert (stops - starts).tolist() == [8, 5, 3, 6]
    for shard, start, stop in zip(shards, starts, stops, strict=True):
        tokens = source.tokens[shard][start:stop]
        assert tokens[0] == BOS
        assert tokens[-1] == END


def test_a_damaged_corpus_file_is_named(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.path, copy)
    path = Corpus.open(copy).files("words")[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match=path.name):
        build_shards(Corpus.open(copy), _Bytes(), tmp_path / "shards")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        Corpus.open(copy)
