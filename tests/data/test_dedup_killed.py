"""Near copies, passages and meaning in one corpus: the same bytes for 1 and 2 workers, and after SIGKILL at any time."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from puna.core.files import verify
from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate
from tests.data.dedup.texts import changed, random_text

TOPICS = [[f"t{topic}w{i}" for i in range(60)] for topic in range(8)]


def _texts(n=240):
    """Of each eight: topics in their own words, a near copy, one with a passage of another, one shuffled."""
    rng = random.Random(5)
    passage = random_text(rng, 70)
    texts = []
    for i in range(n):
        if i % 8 == 5:
            texts.append(changed(texts[-1], rng, 0.01))
        elif i % 8 == 6:
            texts.append(f"{random_text(rng, 60)} {passage} {random_text(rng, 60)}")
        elif i % 8 == 7:
            words = texts[-6].split()
            rng.shuffle(words)
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(rng.choices(TOPICS[i % 7], k=150)))
    return texts


STEPS = [
    {"kind": "url"},
    {"kind": "minhash", "save_index": True},
    {"kind": "semantic", "cluster_documents": 40, "min_similarity": 0.98},
    {"kind": "substring"},
    {"kind": "length", "min_characters": 10},
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    texts = _texts()
    for part in range(6):
        rows = [json.dumps({"text": text, "url": f"http://x/{i}"}) for i, text in enumerate(texts) if i % 6 == part]
        (folder / f"{part}.jsonl").write_text("\n".join(rows))
    source = {"kind": "jsonl", "name": "pages", "path": folder, "url_field": "url", "task_bytes": 1000}
    return {"sources": [source | {"path": str(folder)}], "steps": STEPS}


@pytest.fixture(scope="module")
def calm(recipe, tmp_path_factory):
    return curate(CurateConfig.model_validate(recipe), tmp_path_factory.mktemp("calm") / "corpus", workers=1)


def test_every_kind_found_something(calm):
    steps = calm.manifest["sources"]["pages"]["steps"]
    assert len(calm.tasks("pages")) == 6
    for name in ("02-minhash", "03-semantic"):
        assert steps[name]["dropped"], name
        assert Corpus.open(calm.path).path.joinpath("reports", name, "clusters.parquet").is_file()
    assert steps["04-substring"]["out"]["bytes"] < steps["04-substring"]["in"]["bytes"]


_RUN = """
import json, sys
from puna.data.curate import CurateConfig, curate
curate(CurateConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2], workers=int(sys.argv[3]))
"""


def _begin(recipe, folder, workers):
    words = [sys.executable, "-c", _RUN, json.dumps(recipe), str(folder), str(workers)]
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_workers_give_the_bytes_of_one(recipe, calm, tmp_path):
    two = curate(CurateConfig.model_validate(recipe), tmp_path / "two", workers=2)
    assert verify(two.path) == verify(calm.path)


def test_killed_at_three_random_times_and_run_again_it_gives_the_same_bytes(recipe, calm, tmp_path):
    """With two workers the parent alone is killed: they notice, and do not disturb the run that follows at once."""
    metrics = [json.loads(line) for line in (calm.path / "metrics.jsonl").read_text().splitlines()]
    lasts = sum(record["seconds"] for record in metrics)
    rough, chance, hits = tmp_path / "rough", random.Random(11), 0
    for workers in (1, 2, 1):
        process = _begin(recipe, rough, workers)
        while not (rough / "work" / "recipe.json").exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.05, 0.6) * lasts)
        os.kill(process.pid, signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL and not (rough / "manifest.json").exists()
    assert hits, "all three came too late"
    again = curate(CurateConfig.model_validate(recipe), rough, workers=1)
    assert verify(again.path) == verify(calm.path)
    names = [sorted(p.relative_to(c.path).as_posix() for p in c.path.rglob("*")) for c in (again, calm)]
    assert names[0] == names[1], "nothing half done is left"
