import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from puna.core.config import load
from puna.core.errors import ConfigError, MissingError
from puna.core.files import verify
from puna.data import dedup
from puna.data.corpus import Corpus, read_records
from puna.data.curate import CurateConfig, curate, funnel, plan
from puna.data.document import Document


@pytest.fixture
def texts(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    for i in range(30):
        (root / f"{i:02d}.txt").write_text(f"Text {i} " + "word " * (i % 7) + ("" if i % 5 else "\n\n same"))
    (root / "30.txt").write_text("Text   3 word\nword word ")  # 03.txt, but for white space
    (root / "31.txt").write_bytes(b"abc\xff")
    return root


def _config(root, **changes) -> CurateConfig:
    source = {"kind": "folder", "name": "texts", "path": root, "task_bytes": 150}
    filters = [{"kind": "length", "min_characters": 8}]
    return CurateConfig.model_validate({"sources": [source], "filters": filters} | changes)


def test_the_funnel_adds_up_and_every_removal_has_its_reason(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    source = corpus.manifest["sources"]["texts"]
    assert source["read"]["documents"] == 31
    assert source["dropped"] == {"length: too short": {"documents": 4, "bytes": 31}}  # 7, 14, 21, 28
    assert source["duplicates"]["documents"] == 1
    assert source["kept"]["documents"] == 26 == len(list(corpus.documents()))
    assert source["problems"] == {"not UTF-8": 1}
    (quarantined,) = (corpus.path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(quarantined)["offset"] == 3
    dropped = [json.loads(line) for line in read_records(corpus.path / "dropped.jsonl.zst")]
    assert sorted(d["reason"] for d in dropped) == ["duplicate"] + ["length: too short"] * 4
    assert [d["url"] for d in dropped if d["reason"] == "duplicate"] == ["30.txt"]
    assert ("texts", "kept", 26) in [row[:3] for row in funnel(corpus)]
    assert verify(corpus.path)


def test_nothing_in_the_corpus_names_the_place_where_it_was_made(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    for path in corpus.path.iterdir():
        data = b"".join(read_records(path)) if path.suffix == ".zst" else path.read_bytes()
        assert str(tmp_path).encode() not in data


def test_two_workers_give_the_same_bytes_as_one(texts, tmp_path):
    one = curate(_config(texts), tmp_path / "one", workers=1)
    two = curate(_config(texts), tmp_path / "two", workers=2)
    assert verify(one.path) == verify(two.path)


def test_a_finished_corpus_is_not_made_again_and_a_changed_recipe_is(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    files = {path: path.stat().st_mtime_ns for path in corpus.path.iterdir()}
    curate(_config(texts), tmp_path / "corpus", workers=1)
    assert files == {path: path.stat().st_mtime_ns for path in corpus.path.iterdir()}
    changed = curate(_config(texts, filters=[]), tmp_path / "corpus", workers=1)
    assert changed.manifest["sources"]["texts"]["kept"]["documents"] == 30
    assert verify(changed.path)


_KILLED = """
import sys
from pathlib import Path
import puna.data.curate as module
real = module.judge
def slow(*args, **kwargs):
    import time
    time.sleep(0.02)
    return real(*args, **kwargs)
module.judge = slow
source = {"kind": "folder", "name": "texts", "path": sys.argv[1], "task_bytes": 150}
filters = [{"kind": "length", "min_characters": 8}]
config = module.CurateConfig.model_validate({"sources": [source], "filters": filters})
module.curate(config, sys.argv[2], workers=1)
"""


def test_killed_at_any_moment_and_run_again_it_gives_identical_bytes(texts, tmp_path):
    whole = curate(_config(texts), tmp_path / "whole", workers=1)
    folder = tmp_path / "killed"
    for wanted in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", _KILLED, str(texts), str(folder)])
        deadline = time.monotonic() + 60
        while len(list(folder.glob("work/*/task.json"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
    done = len(list(folder.glob("work/*/task.json")))
    assert 5 <= done < len(plan(_config(texts)).tasks["texts"])
    again = curate(_config(texts), folder, workers=1)
    assert verify(again.path) == verify(whole.path)
    assert {p.name for p in again.path.iterdir()} == {p.name for p in whole.path.iterdir()}


@pytest.mark.parametrize("step", ["manifest", "sealing"])
def test_cut_off_between_its_last_steps_it_still_ends_sealed(texts, tmp_path, monkeypatch, step):
    whole = curate(_config(texts), tmp_path / "whole", workers=1)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("puna.data.curate.shutil.rmtree" if step == "manifest" else "puna.data.curate.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            (tmp_path / "cut" / "x").parent.mkdir()
            curate(_config(texts), tmp_path / "cut", workers=1)
    again = curate(_config(texts), tmp_path / "cut", workers=1)
    assert verify(again.path) == verify(whole.path)


def test_an_empty_corpus_says_why(texts, tmp_path):
    with pytest.raises(MissingError, match=r"31 documents were read and none is left.*length: too short \(31\)"):
        curate(_config(texts, filters=[{"kind": "length", "min_characters": 999}]), tmp_path / "corpus", workers=1)


def test_an_unfinished_corpus_is_missing(tmp_path):
    with pytest.raises(MissingError, match="not a finished corpus"):
        Corpus.open(tmp_path)


def test_a_plan_lists_the_work_and_does_none(texts, tmp_path):
    planned = plan(_config(texts))
    assert sum(row[2] for row in planned.rows()) == 32
    assert planned.n_bytes == sum(path.stat().st_size for path in texts.iterdir())


def test_a_recipe_is_checked_with_every_problem_at_once(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[sources]]\nkind = "folder"\nname = "Notes"\npath = "x"\n'
        '[[sources]]\nkind = "jsonl"\nname = "b"\npath = "x"\ntext_feild = "t"\n'
        '[[filters]]\nkind = "length"\nmin_characters = "many"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(CurateConfig, recipe)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "Did you mean 'text_field'?" in text
    recipe.write_text('[[sources]]\nkind = "folder"\nname = "a"\npath = "x"\n' * 2)
    with pytest.raises(ConfigError, match="two sources are called 'a'"):
        load(CurateConfig, recipe)


def test_texts_for_a_tokenizer_can_be_limited(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    assert len(list(corpus.texts())) == 26
    assert 1 <= len(list(corpus.texts(bytes_per_source=60))) < 10


def test_deduplication_in_buckets_equals_one_pass(tmp_path):
    rng = np.random.default_rng(0)
    texts = [f"text {n}" for n in rng.integers(0, 300, 1000)]
    files = []
    for i in range(0, 1000, 150):
        files.append(tmp_path / f"{i}.bin")
        files[-1].write_bytes(b"".join(map(dedup.text_hash, texts[i : i + 150])))
    expected = [text not in texts[:i] for i, text in enumerate(texts)]
    for memory in (1 << 29, 5000):
        assert np.concatenate(dedup.first_copies(files, memory_bytes=memory)).tolist() == expected


def test_texts_are_equal_but_for_white_space_and_unicode_form():
    assert dedup.text_hash("a  b\n") == dedup.text_hash("a b")
    assert dedup.text_hash("e\u0301") == dedup.text_hash("\u00e9")
    assert dedup.text_hash("a b") != dedup.text_hash("A b")


def test_a_document_survives_its_line_and_its_id_follows_its_content():
    document = Document("text é\n", "s", "u", "MIT", "en", {"a": 1})
    assert Document.from_json(document.to_json()) == document
    assert document.id != Document("text", "s", "u").id != Document("text", "s", "v").id
    with pytest.raises(ValueError, match="not a document"):
        Document.from_json("{}")
