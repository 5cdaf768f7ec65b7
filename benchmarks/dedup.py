"""Deduplication: what is found of what was planted, and how fast, against datatrove and against Daft alone.

    python benchmarks/dedup.py --quick --json --peer-python /path/to/venv/bin/python

Documents of Zipf-distributed words, with near copies planted at known true similarity. Recall counts planted pairs of
at least .8; precision counts removals whose twin really is that similar. The speed is that of signatures (normalise,
shingle, hash, 14 bands of 8) in documents per CPU second, where MinHash spends its time, and for ours that of the whole
step, too, candidates and true similarity included. The peers run in an interpreter of their own, right after, on the
same texts; where it is not given, they are skipped. `--data` adds a published set with known plagiarism.
"""

import argparse
import gzip
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from puna.data.dedup import minhash, semantic, substring
from puna.data.dedup.pairs import jaccard
from puna.data.document import Document
from puna.data.documents import INDEX_COLUMNS, ArrowWriter, feature_array, to_table
from puna.data.steps.step import Barrier, Decision, Part, Question, StepConfig

WORDS = 400

DATATROVE = """
import json, sys, time
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.typeshelper import Languages
config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
step = MinhashDedupSignature("unused", config=config, language=Languages.english)
texts = json.load(open(sys.argv[1]))[: int(sys.argv[2])]
step.get_signature(step.get_shingles(texts[0]))
start = time.process_time()
for text in texts:
    step.get_signature(step.get_shingles(text))
print(len(texts) / (time.process_time() - start))
"""
DAFT = """
import json, os, sys, time
os.environ["DO_NOT_TRACK"] = "true"
import daft
from daft.functions import minhash, normalize
texts = json.load(open(sys.argv[1]))
frame = daft.from_pydict({"t": texts}).collect()
clean = normalize(daft.col("t"), remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True)
def run():
    frame.select(minhash(clean, num_hashes=112, ngram_size=5, seed=1)).collect()
run()
start = time.process_time()
run()
print(len(texts) / (time.process_time() - start))
"""


def make_texts(n: int, rng: random.Random) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts and the planted pairs among them; one in twenty is a changed copy of an earlier one."""
    vocabulary = [f"word{i:x}" for i in range(30_000)]
    weights = 1 / np.arange(1, 30_001)
    ids = np.random.default_rng(0).choice(30_000, size=(n, WORDS), p=weights / weights.sum())
    texts = [" ".join(vocabulary[i] for i in row) for row in ids.tolist()]
    pairs = []
    for copy in range(n - n // 20, n):
        original = rng.randrange(n - n // 20)
        share = rng.choice([0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
        words = [rng.choice(vocabulary) if rng.random() < share else w for w in texts[original].split()]
        texts[copy] = " ".join(words)
        pairs.append((original, copy))
    return texts, pairs


def decide(documents: Sequence[Document], barrier: Barrier[Any], config: StepConfig, parts: int = 4) -> list[Decision]:
    """A barrier over documents, with its files in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        home, made = Path(name), []
        for number, places in enumerate(np.array_split(np.arange(len(documents)), parts)):
            mine = [documents[i] for i in places]
            paths = home / f"features-{number}.arrow", home / f"index-{number}.arrow"
            with ArrowWriter(paths[0]) as features, ArrowWriter(paths[1]) as index:
                for begin in range(0, len(mine), 512):
                    batch = mine[begin : begin + 512]
                    columns = barrier.features(batch, config)
                    features.add(pa.table({key: feature_array(value) for key, value in columns.items()}))
                    table = to_table(batch).select([*INDEX_COLUMNS])
                    index.add(table.append_column("bytes", pa.array([d.n_bytes for d in batch], pa.int64())))
            made.append(Part(f"part-{number:05d}", *paths, np.ones(len(mine), dtype=bool)))
        (home / "scratch").mkdir()
        return list(barrier.decide(Question(config, made, home / "scratch", home / "report", lambda f, x: map(f, x))))


def near_copies(texts: list[str], pairs: list[tuple[int, int]], lines: list[str]) -> dict[str, float]:
    """Recall, precision, and the speed of the whole step and of signatures."""
    documents = [Document(text, "made", str(number)) for number, text in enumerate(texts)]
    start = time.process_time()
    decisions = decide(documents, minhash.MINHASH, minhash.MinhashConfig())
    whole = len(texts) / (time.process_time() - start)
    place = {d.id: i for i, d in enumerate(documents)}
    twins = [twin for decision in decisions for twin in decision.twins or ()]
    removed = {number: place[twin] for number, twin in enumerate(twins) if twin}

    def similarity(one: int, other: int) -> float:
        return jaccard(*minhash.shingle_sets([texts[one], texts[other]], 5))

    wanted = [(one, other) for one, other in pairs if similarity(one, other) >= 0.8]
    found = sum(other in removed for _, other in wanted)
    true = sum(similarity(number, twin) >= 0.8 for number, twin in removed.items())
    few = documents[:3000]
    config = minhash.MinhashConfig(bands=14, rows=8)
    start = time.process_time()
    for begin in range(0, len(few), 512):
        minhash.features(few[begin : begin + 512], config)
    rate = len(few) / (time.process_time() - start)
    lines.append(
        f"minhash: {len(texts)} documents, {len(wanted)} planted pairs >= .8: recall {found / len(wanted):.4f}, "
        f"precision {true / max(1, len(removed)):.4f}; {whole:,.0f} documents per CPU second for all of it, "
        f"{rate:,.0f} for signatures (14 x 8)"
    )
    return {
        "recall": found / len(wanted),
        "precision": true / max(1, len(removed)),
        "docs_per_cpu_s": whole,
        "signatures_per_cpu_s": rate,
    }


def articles(folder: Path, lines: list[str]) -> None:
    """The published set of a thousand articles with known plagiarism."""
    rows = gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()
    documents = [Document(text, "articles", key) for key, _, text in (row.partition(" ") for row in rows)]
    truth = {frozenset(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()}
    decisions = decide(documents, minhash.MINHASH, minhash.MinhashConfig())
    by_id = {d.id: d.url for d in documents}
    twins = [twin for decision in decisions for twin in decision.twins or ()]
    found = {frozenset((d.url, by_id[t])) for d, t in zip(documents, twins, strict=True) if t}
    hit = len(found & truth)
    lines.append(f"minhash on articles_1000: recall {hit / len(truth):.2f}, precision {hit / max(1, len(found)):.2f}")


def passages(n: int, rng: random.Random, lines: list[str]) -> float:
    """Planted spans of exactly 50 words; half the documents get one that another has."""
    vocabulary = [f"term{i}" for i in range(20_000)]
    texts = [rng.choices(vocabulary, k=WORDS) for _ in range(n)]
    order = rng.sample(range(n), n // 2)
    for one, other in zip(order[::2], order[1::2], strict=False):
        span = rng.choices(vocabulary, k=50)
        for number in (one, other):
            place = rng.randrange(WORDS)
            texts[number][place:place] = span
    documents = [Document(" ".join(words), "made", str(number)) for number, words in enumerate(texts)]
    start = time.process_time()
    decisions = decide(documents, substring.SUBSTRING, substring.SubstringConfig())
    rate = n / (time.process_time() - start)
    cuts = [c for decision in decisions for c in decision.cuts or ()]
    pairs = list(zip(order[::2], order[1::2], strict=False))
    found = sum(cuts[max(pair)] is not None and cuts[min(pair)] is None for pair in pairs)
    extra = sum(c is not None for c in cuts) - found
    lines.append(
        f"substring: {found} of {len(pairs)} planted spans of 50 words found, {extra} others; {rate:,.0f} documents "
        "per CPU second"
    )
    return found / len(pairs)


def by_meaning(folder: Path | None, n: int, rng: random.Random, lines: list[str]) -> float:
    """Copies with shuffled sentences or 15 % of the words left out."""
    if folder is None:
        topics = [[f"t{t}w{i}" for i in range(300)] for t in range(40)]
        texts = [" ".join(rng.choices(topics[k % 40], k=250)) for k in range(1000)]
    else:
        rows = gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()
        texts = [row.partition(" ")[2] for row in rows]
    originals = rng.sample(range(len(texts)), n)
    copies = []
    for number, original in enumerate(originals):
        if number % 2:
            sentences = texts[original].split(". ")
            rng.shuffle(sentences)
            copies.append(". ".join(sentences))
        else:
            copies.append(" ".join(word for word in texts[original].split() if rng.random() > 0.15))
    documents = [Document(text, "made", str(number)) for number, text in enumerate(texts + copies)]
    start = time.process_time()
    config = semantic.SemanticConfig(cluster_documents=200)
    decisions = decide(documents, semantic.SEMANTIC, config)
    rate = len(documents) / (time.process_time() - start)
    twins = [twin for decision in decisions for twin in decision.twins or ()]
    found = sum(twins[len(texts) + k] == documents[original].id for k, original in enumerate(originals))
    others = sum(bool(twin) for twin in twins) - found
    lines.append(
        f"semantic (TF-IDF, cosine .95): {found} of {n} shuffled or thinned copies found, {others} others removed; "
        f"{rate:,.0f} documents per CPU second"
    )
    return found / n


def peer(python: str, code: str, texts: list[str], *arguments: str) -> float | None:
    """Documents per CPU second of a peer; None where it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        done = subprocess.run(
            [python, "-W", "ignore", "-c", code, str(path), *arguments], capture_output=True, text=True
        )
    try:
        return float(done.stdout.split()[-1])
    except (IndexError, ValueError):
        print(f"peer skipped: {done.stderr.strip().splitlines()[-1:] or 'no output'}")
        return None


def main() -> None:
    """Run everything and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--peer-python", default="", help="interpreter that has datatrove and daft")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/corpus/neardup"), help="articles_1000")
    arguments = parser.parse_args()
    n = 6000 if arguments.quick else 20_000
    rng, lines = random.Random(0), []
    texts, pairs = make_texts(n, rng)
    result: dict[str, float | None] = {**near_copies(texts, pairs, lines)}
    folder = arguments.data if arguments.data.is_dir() else None
    if folder:
        articles(folder, lines)
    else:
        lines.append(f"articles_1000 skipped: {arguments.data} is not there")
    result["substring_recall"] = passages(1000 if arguments.quick else 5000, rng, lines)
    result["semantic_recall"] = by_meaning(folder, 300, rng, lines)
    result["ratio_datatrove"] = result["ratio_daft"] = None
    if arguments.peer_python and Path(arguments.peer_python).exists():
        few = texts[:3000]
        for name, rate in (
            ("datatrove", peer(arguments.peer_python, DATATROVE, few, "150" if arguments.quick else "500")),
            ("daft", peer(arguments.peer_python, DAFT, few)),
        ):
            if rate:
                result[f"ratio_{name}"] = ratio = (result["signatures_per_cpu_s"] or 0) / rate
                lines.append(f"{name}: {rate:,.0f} signatures per CPU second; ours is {ratio:.2f} times that")
    else:
        lines.append("datatrove and Daft skipped: give --peer-python, an interpreter that has both")
    print("\n".join(lines))
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
