"""From a web archive through curation, tokenizer and packing to shards, and from three tokens back to their bytes."""

import gzip
import random
import re
import zlib

import pytest

from puna.cli import main
from puna.data.shards import ShardSet
from puna.data.warc_writer import Page, write_warc
from puna.tokenizer.bpe import Tokenizer

PLACES = ["river", "garden", "harbour", "library", "mountain", "market", "station", "valley"]
RECIPE = """# puna curate crawl.toml: a crawl
out = "corpus"
keep = "all"
sources = [{ kind = "warc", name = "crawl", path = "crawl", task_bytes = 6000 }]
steps = [{ kind = "language" }, { kind = "length", min_characters = 200 }, { kind = "url" }, { kind = "minhash" }]
"""


def _page(number: int, rng: random.Random) -> Page:
    place = PLACES[number % len(PLACES)]
    sentences = [
        f"In the year {1800 + rng.randrange(200)} a {rng.choice(PLACES)} was built near the {place} of town {number}, "
        f"and {rng.randrange(1000)} people came to see it."
        for _ in range(6 if number % 7 else 1)
    ]
    html = f"<html><body><main><h1>The {place}</h1><p>{' '.join(sentences)}</p></main></body></html>"
    return Page(f"http://{place}.example/{number}", html)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("crawl_to_shards")
    (root / "crawl").mkdir()
    rng = random.Random(0)
    for part in range(3):
        pages = [_page(20 * part + i, rng) for i in range(20)]
        if part == 2:
            pages += [Page("http://mirror.example/0", _page(41, random.Random(1)).html)] * 2
        write_warc(root / "crawl" / f"part-{part}.warc.gz", pages, date="2024-04-18T00:00:00Z")
    (root / "crawl.toml").write_text(RECIPE)
    (root / "tokenizer.toml").write_text('out = "tokenizer"\ncorpus = "corpus"\nvocab_size = 768\n')
    shards = 'out = "shards"\ncorpus = "corpus"\ntokenizer = "tokenizer"\nshard_tokens = 1500\n'
    (root / "shards.toml").write_text(shards + "held_out_fraction = 0.1\n")
    return root


def _member(data: bytes, offset: int) -> bytes:
    """The WARC record whose gzip member begins at an offset, by zlib alone."""
    return zlib.decompressobj(wbits=31).decompress(data[offset:])


def test_three_random_tokens_lead_back_to_url_offset_and_bytes_of_the_record(home, monkeypatch, capfdbinary):
    monkeypatch.chdir(home)
    assert main.run(["curate", "crawl.toml"]) == 0
    assert main.run(["tokenize", "train", "tokenizer.toml"]) == 0
    assert main.run(["tokenize", "pack", "shards.toml"]) == 0
    shards, encoder = ShardSet.open(home / "shards"), Tokenizer.load(home / "tokenizer")
    assert len(shards.shards) > 3
    archives = {path.name: path.read_bytes() for path in (home / "crawl").iterdir()}
    rng = random.Random(7)
    for name in rng.sample(sorted(shards.shards), 3):
        shard = shards.shards[name]
        offset = rng.randrange(shard.n_tokens)
        capfdbinary.readouterr()
        assert main.run(["data", "trace", f"shards/{name}:{offset}"]) == 0
        told = capfdbinary.readouterr().out.decode()
        url, file, place = (re.search(rf"^ *{key} +(\S+)", told, re.M).group(1) for key in ("url", "file", "offset"))
        start, stop = map(int, re.search(r"(\d+) to (\d+)", told).groups())
        assert start <= offset <= stop
        record = _member(archives[file], int(place))
        assert f"WARC-Target-URI: {url}\r\n".encode() in record
        block = record.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n")
        assert main.run(["data", "trace", f"shards/{name}:{offset}", "--bytes"]) == 0
        assert capfdbinary.readouterr().out.endswith(block + b"\n")
        # the document around the token is the text of that page, and no other page has its address
        text = encoder.decode(shard.tokens[start + 1 : stop].astype(int).tolist())
        paragraph = re.search(r"<p>(.*)</p>", block.decode()).group(1)
        assert paragraph in text
        assert (
            sum(
                gzip.decompress(data).count(b"WARC-Target-URI: " + url.encode() + b"\r\n") for data in archives.values()
            )
            == 1
        )
