import json
import os
import signal
import subprocess
import sys
import time

import pytest

from puna.core.config import load
from puna.core.errors import ConfigError, MissingError
from puna.core.files import verify
from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate, plan
from puna.data.document import Document
from puna.data.documents import read_documents, read_table, write_documents
from puna.data.funnel import funnel, totals


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
    steps = [{"kind": "length", "min_characters": 8}, {"kind": "exact"}]
    return CurateConfig.model_validate({"sources": [source], "steps": steps} | changes)


def test_the_funnel_adds_up_and_every_removal_has_its_reason(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    source = corpus.manifest["sources"]["texts"]
    assert source["read"]["documents"] == 31
    short, exact = source["steps"]["01-length"], source["steps"]["02-exact"]
    assert short["dropped"] == {"length: too short": {"documents": 4, "bytes": 31}}  # 7, 14, 21, 28
    assert short["in"]["documents"] == 31
    assert short["out"] == exact["in"]
    assert exact["dropped"]["exact: duplicate"]["documents"] == 1
    assert source["kept"]["documents"] == 26 == len(list(corpus.documents()))
    assert exact["out"] == source["kept"]
    assert source["problems"] == {"not UTF-8": 1}
    (quarantined,) = (corpus.path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(quarantined)["offset"] == 3
    dropped = [row for path in corpus.dropped() for row in read_table(path).to_pylist()]
    assert sorted(d["reason"] for d in dropped) == ["exact: duplicate"] + ["length: too short"] * 4
    assert [d["url"] for d in dropped if d["reason"] == "exact: duplicate"] == ["30.txt"]
    assert [row[:2] for row in funnel(corpus)] == [("read", "31"), ("01-length", "27"), ("02-exact", "26")]
    assert totals(corpus.manifest)["kept"] == source["kept"]
    assert verify(corpus.path)


def test_the_ledger_says_of_every_document_what_became_of_it(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    rows = {row["url"]: row for path in corpus.ledgers() for row in read_table(path).to_pylist()}
    assert len(rows) == 31
    assert (rows["30.txt"]["step"], rows["30.txt"]["reason"]) == (2, "exact: duplicate")
    assert rows["30.txt"]["twin"] == rows["03.txt"]["id"]
    assert (rows["07.txt"]["step"], rows["07.txt"]["value"], rows["07.txt"]["length.characters"]) == (1, 6, 6)
    assert rows["03.txt"]["reason"] == "kept"
    assert {d.url for d in corpus.documents()} == {url for url, row in rows.items() if row["step"] == 0}


def test_nothing_in_the_corpus_names_the_place_where_it_was_made(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    for path in corpus.path.rglob("*"):
        if path.is_file():
            data = str(read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
            assert str(tmp_path) not in data


def test_two_workers_give_the_same_bytes_as_one(texts, tmp_path):
    one = curate(_config(texts), tmp_path / "one", workers=1)
    two = curate(_config(texts), tmp_path / "two", workers=2)
    assert verify(one.path) == verify(two.path)


def test_a_finished_corpus_is_not_made_again_and_a_changed_recipe_is(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    files = {path: path.stat().st_mtime_ns for path in corpus.path.rglob("*")}
    curate(_config(texts), tmp_path / "corpus", workers=1)
    assert files == {path: path.stat().st_mtime_ns for path in corpus.path.rglob("*")}
    changed = curate(_config(texts, steps=[{"kind": "exact"}]), tmp_path / "corpus", workers=1)
    assert changed.manifest["sources"]["texts"]["kept"]["documents"] == 30
    assert verify(changed.path)


_KILLED = """
import sys, time
from puna.data import curate as module
from puna.data import sources
real = sources.SOURCES["folder"].read
def slow(*args):
    for document in real(*args):
        time.sleep(0.02)
        yield document
sources.SOURCES["folder"] = sources.SourceKind(sources.SOURCES["folder"].tasks, slow)
source = {"kind": "folder", "name": "texts", "path": sys.argv[1], "task_bytes": 150}
steps = [{"kind": "length", "min_characters": 8}, {"kind": "exact"}]
config = module.CurateConfig.model_validate({"sources": [source], "steps": steps})
module.curate(config, sys.argv[2], workers=1)
"""


def test_killed_at_any_moment_and_run_again_it_gives_identical_bytes(texts, tmp_path):
    whole = curate(_config(texts), tmp_path / "whole", workers=1)
    folder = tmp_path / "killed"
    for wanted in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", _KILLED, str(texts), str(folder)])
        deadline = time.monotonic() + 60
        while len(list(folder.glob("work/*/*/task.json"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
    done = len(list(folder.glob("work/*/*/task.json")))
    assert 5 <= done < len(plan(_config(texts)).tasks["texts"])
    again = curate(_config(texts), folder, workers=1)
    assert verify(again.path) == verify(whole.path)
    names = [
        sorted(str(p.relative_to(c.path)) for c in (corpus,) for p in c.path.rglob("*")) for corpus in (again, whole)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("step", ["manifest", "sealing"])
def test_cut_off_between_its_last_steps_it_still_ends_sealed(texts, tmp_path, monkeypatch, step):
    whole = curate(_config(texts), tmp_path / "whole", workers=1)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("puna.data.work.shutil.rmtree" if step == "manifest" else "puna.data.work.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            (tmp_path / "cut" / "x").parent.mkdir()
            curate(_config(texts), tmp_path / "cut", workers=1)
    again = curate(_config(texts), tmp_path / "cut", workers=1)
    assert verify(again.path) == verify(whole.path)


def test_an_empty_corpus_says_why(texts, tmp_path):
    with pytest.raises(MissingError, match=r"31 documents were read and none is left.*length: too short \(31\)"):
        curate(_config(texts, steps=[{"kind": "length", "min_characters": 999}]), tmp_path / "corpus", workers=1)


def test_an_unfinished_corpus_is_missing(tmp_path):
    with pytest.raises(MissingError, match="not a finished corpus"):
        Corpus.open(tmp_path)


def test_a_plan_lists_the_work_and_does_none(texts, tmp_path):
    planned = plan(_config(texts))
    assert sum(row[2] for row in planned.rows()) == 32
    assert planned.n_bytes == sum(path.stat().st_size for path in texts.iterdir())


def test_the_expected_disk_of_a_tiny_corpus_holds_its_pages_and_ledger(tmp_path):
    from puna.stages.curate import write_pages

    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a few words\n")
    config = _config(tmp_path / "texts")
    corpus = curate(config, tmp_path / "corpus", workers=1, finishing=lambda made: write_pages("Tiny", made))
    used = sum(path.stat().st_size for path in corpus.path.rglob("*") if path.is_file())
    assert used < plan(config).disk_bytes < 5 * used


def test_a_recipe_is_checked_with_every_problem_at_once(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[sources]]\nkind = "folder"\nname = "Notes"\npath = "x"\n'
        '[[sources]]\nkind = "jsonl"\nname = "b"\npath = "x"\ntext_feild = "t"\n'
        '[[steps]]\nkind = "length"\nmin_characters = "many"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(CurateConfig, recipe)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "Did you mean 'sources.1.text_field'?" in text
    recipe.write_text('[[sources]]\nkind = "folder"\nname = "a"\npath = "x"\n' * 2)
    with pytest.raises(ConfigError, match="two sources are called 'a'"):
        load(CurateConfig, recipe)


def test_texts_for_a_tokenizer_can_be_limited(texts, tmp_path):
    corpus = curate(_config(texts), tmp_path / "corpus", workers=1)
    assert len(list(corpus.texts())) == 26
    assert 1 <= len(list(corpus.texts(bytes_per_source=60))) < 10


def test_a_document_survives_its_file_and_edits_keep_its_id(tmp_path):
    document = Document("text é\n", "s", "u", "MIT", "en", {"a": 1}, "prose", 0.5, "2024-04-18", "f", 3)
    write_documents(tmp_path / "d.parquet", [document])
    assert list(read_documents(tmp_path / "d.parquet")) == [document]
    assert document.with_text("other").id == document.id
    assert document.id != Document("text", "s", "u").id != Document("text", "s", "v").id
