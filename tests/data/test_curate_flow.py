"""The flow over several passes: cuts between barriers, judging anew, killing, looking, exporting."""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from puna.core.errors import MissingError, PunaError, UsageError
from puna.core.files import verify
from puna.data import look, megatron
from puna.data.curate import CurateConfig, curate, curate_part, plan
from puna.data.documents import read_table
from puna.data.funnel import totals
from puna.data.shard_writer import build_shards
from tests.data.test_shards import _Bytes

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "that",
    "have",
    "with",
    "river",
    "mountain",
    "valley",
    "house",
    "stone",
    "letter",
    "season",
    "winter",
    "garden",
    "paper",
    "window",
]
STEPS = [
    {"kind": "pii"},
    {"kind": "length", "min_characters": 60},
    {"kind": "gopher_quality", "min_words": 12},
    {"kind": "exact"},
    {"kind": "line_dedup", "max_copies": 6},
    {"kind": "length", "min_characters": 80, "domains": ["prose"]},
    {"kind": "divergence", "min_group": 10, "min_words": 5},
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("flow")
    rng = random.Random(0)
    for i in range(120):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) + "." for _ in range(rng.randint(1, 6))]
        lines += ["Home | About | Contact us today please"] * (i % 3 == 0) + [f"write to a{i}@b.org"] * (i % 10 == 0)
        (root / f"{i:03d}.txt").write_text("\n".join(lines) if i % 17 else "the same text of all and to that have " * 5)
    return root


def _config(texts, **changes) -> CurateConfig:
    source = {"kind": "folder", "name": "texts", "path": texts, "task_bytes": 2500, "language": "en"}
    return CurateConfig.model_validate({"sources": [source], "steps": STEPS} | changes)


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    return curate(_config(texts), tmp_path_factory.mktemp("whole"), workers=1)


def test_barriers_cut_the_recipe_into_passes(texts):
    passes = plan(_config(texts)).passes
    assert [([s.kind for s in p.steps], [b.kind for b in p.barriers]) for p in passes] == [
        (["pii", "length", "gopher_quality"], ["exact", "line_dedup"]),
        (["length"], ["divergence"]),
        ([], []),
    ]


def test_what_leaves_a_step_enters_the_next_and_cuts_shorten_the_text(whole):
    total = totals(whole.manifest)
    steps = list(total["steps"].values())
    assert total["read"] == steps[0]["in"]
    for before, after in pairwise(steps):
        assert before["out"]["documents"] == after["in"]["documents"]
    cut = total["steps"]["05-line_dedup"]
    assert cut["edits"]["spans cut"] > 10
    assert cut["out"]["bytes"] < cut["in"]["bytes"]
    assert steps[-1]["out"] == total["kept"]
    texts = [d.text for d in whole.documents()]
    assert not any("Home | About" in text for text in texts)
    assert total["steps"]["01-pii"]["edits"] == {"e-mail addresses masked": 12 - 1}  # one of them is a copy
    assert not any("@b.org" in text for text in texts)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_byte(texts, whole, tmp_path, workers):
    assert verify(curate(_config(texts), tmp_path / "c", workers=workers).path) == verify(whole.path)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(texts, whole, tmp_path):
    pytest.importorskip("ray")
    code = (
        "import sys; from puna.data.curate import CurateConfig, curate; import json;"
        "curate(CurateConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2], workers=2, engine='ray')"
    )
    config = _config(texts).model_dump_json()
    subprocess.run([sys.executable, "-c", code, config, str(tmp_path / "c")], check=True, timeout=240)
    assert verify(tmp_path / "c") == verify(whole.path)


def test_parts_of_an_array_job_and_a_last_run_give_the_same_bytes(texts, whole, tmp_path):
    config = _config(texts)
    with pytest.raises(UsageError, match="pass 0 is not finished"):
        curate_part(config, tmp_path, index=1, part=0, parts=2)
    for index in range(2):
        for part in (1, 0):
            curate_part(config, tmp_path, index=index, part=part, parts=2)
    assert verify(curate(config, tmp_path, workers=1).path) == verify(whole.path)


def test_other_thresholds_are_judged_by_stored_scores_and_give_what_a_fresh_run_gives(texts, tmp_path):
    stricter = [dict(step) for step in STEPS]
    stricter[2] = {"kind": "gopher_quality", "min_words": 30}
    first = curate(_config(texts, keep="all"), tmp_path / "first", workers=1)
    fresh = curate(_config(texts, keep="all", steps=stricter), tmp_path / "fresh", workers=1)
    moved = tmp_path / "texts"
    moved.mkdir()
    for path in texts.iterdir():  # other words of the same size: if it were read, it would show
        (moved / path.name).write_bytes(b"x" * path.stat().st_size)
    changed = _config(moved, keep="all", steps=stricter)
    again = curate(changed, tmp_path / "again", workers=1, reuse=first.path)
    assert verify(again.path) == verify(fresh.path) != verify(first.path)


_CHILD = """
import json, sys
from puna.data.curate import CurateConfig, curate
curate(CurateConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2], workers=2)
"""


@pytest.mark.slow
def test_killed_ten_times_at_random_it_ends_with_the_same_bytes(texts, whole, tmp_path):
    rng, config, kills = random.Random(1), _config(texts).model_dump_json(), 0
    for _ in range(60):
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, config, str(tmp_path / "c")], stdout=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=rng.uniform(0.3, 3.0) if kills < 10 else 240)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        if process.returncode == 0 and kills >= 10:
            break
        for path in sorted(tmp_path.glob("c/manifest.json")):  # finished too soon: take the end away and go on
            path.unlink()
    assert kills >= 10
    assert verify(tmp_path / "c") == verify(whole.path)


def test_a_full_disk_leaves_no_half_file_behind(texts, whole, tmp_path, monkeypatch):
    from puna.data import documents

    real, left = documents.TableWriter.add, [6]

    def full(self, table):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(self, table)

    with monkeypatch.context() as patch:
        patch.setattr(documents.TableWriter, "add", full)
        with pytest.raises((PunaError, OSError), match="No space"):
            curate(_config(texts), tmp_path / "c", workers=1)
    assert not (tmp_path / "c" / "manifest.json").exists()
    assert not list((tmp_path / "c").rglob(".tmp-*"))
    assert verify(curate(_config(texts), tmp_path / "c", workers=1).path) == verify(whole.path)


def test_dropped_documents_can_be_read_and_asked_about(whole):
    short = list(look.dropped_by(whole, "length"))
    assert short
    assert {entry.reason for entry in short} == {"length: too short"}
    twin = next(look.dropped_by(whole, "exact"))
    (row,) = look.why(whole, twin.document.id)
    assert row["reason"] == "exact: duplicate"
    assert look.document_of(whole, row["twin"]) is None or row["twin"] != twin.document.id
    assert row["scores"]["gopher_quality.words"] > 12
    assert look.why(whole, "000.txt")
    with pytest.raises(UsageError, match=r"Reasons are: .*length: too short"):
        list(look.dropped_by(whole, "c4"))
    with pytest.raises(UsageError, match="never read"):
        look.why(whole, "ffffffffffffffff0")


def test_statistics_add_up(whole):
    tables = look.stats(whole)
    assert sum(row[1] for row in tables["languages"]) == totals(whole.manifest)["kept"]["documents"]
    assert tables["lengths"][0][1] <= tables["lengths"][-1][1]


def test_a_token_leads_back_to_the_bytes_of_its_record(texts, whole, tmp_path):
    shards = build_shards(whole, _Bytes(), tmp_path)
    rng = random.Random(0)
    for _ in range(3):
        name = rng.choice(sorted(shards.shards))
        found = shards.trace(name, rng.randrange(shards.shards[name].n_tokens))
        data = look.record_bytes(texts, found.document["file"], found.document["offset"])
        assert data == (texts / found.document["url"]).read_bytes()
    with pytest.raises(MissingError, match="cannot be read"):
        look.record_bytes(texts, "gone.txt", -1)


def test_the_megatron_form_holds_the_same_tokens(whole, tmp_path):
    shards = build_shards(whole, _Bytes(), tmp_path / "shards")
    n = megatron.export(shards, tmp_path / "text")
    index = (tmp_path / "text.idx").read_bytes()
    magic, version, code, n_sequences, n_documents = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, code, n_sequences, n_documents) == (b"MMIDIDX\0\0", 1, 8, n, n + 1)
    lengths = np.frombuffer(index, "<i4", n, 34)
    offsets = np.frombuffer(index, "<i8", n, 34 + 4 * n)
    tokens = np.memmap(tmp_path / "text.bin", "<u2", "r")
    assert len(index) == 34 + 4 * n + 8 * n + 8 * (n + 1)
    document = next(whole.documents())
    first = tokens[offsets[0] // 2 :][: lengths[0]]
    assert bytes(first[1:-1].astype(np.uint8)).decode() == document.text
    assert lengths.sum() == len(tokens) == sum(s.n_tokens for s in shards.shards.values())


def test_a_language_limited_step_leaves_others_alone(texts, tmp_path):
    steps = [{"kind": "length", "min_characters": 10_000, "languages": ["de"]}, {"kind": "exact"}]
    corpus = curate(_config(texts, steps=steps), tmp_path, workers=1)
    step = totals(corpus.manifest)["steps"]["01-length"]
    assert step["in"] == step["out"]
    assert sum(len(read_table(p)) for p in corpus.ledgers()) == step["in"]["documents"]


def test_time_is_not_in_the_corpus(texts, whole, tmp_path):
    time.sleep(1.1)
    assert verify(curate(_config(texts), tmp_path, workers=1).path) == verify(whole.path)
