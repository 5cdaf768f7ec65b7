"""Looking at a corpus: what was counted, what steps changed, records of one id, empty results, names of any bytes."""

import json
import os

import pytest

from puna.cli import main
from puna.core.config import load
from puna.core.errors import ConfigError, CorruptError, MissingError, UsageError
from puna.core.files import fingerprint
from puna.data import look
from puna.data.clusters import clusters
from puna.data.corpus import Corpus
from puna.data.curate import CurateConfig, curate
from puna.data.funnel import _largest
from puna.data.quality.labelled import LabelledConfig, read_examples
from puna.data.quality.report import read_report

LONG = " ".join(f"word{i}" for i in range(80))


def _curate(root, rows, steps, **more):
    root.mkdir(exist_ok=True)
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "name": "pages", "path": root / "a.jsonl"}
    config = CurateConfig.model_validate({"sources": [source], "steps": steps} | more)
    return curate(config, root / "corpus", workers=1)


def test_edits_and_barriers_lead_to_the_documents_that_they_touched(tmp_path, capfd):
    shared = "This very line stands on each of the pages of the site."
    rows = [{"text": f"Page {i} says something {i} else.\n{shared}", "url": f"u{i}"} for i in range(5)]
    rows[1]["text"] += "\nWrite to someone@example.org for more."
    corpus = _curate(tmp_path, rows, [{"kind": "pii"}, {"kind": "line_dedup", "max_copies": 2}])
    ((document, did),) = look.edited_by(corpus, "pii")
    assert document.url == "u1" and sum(did.values()) == 1
    cut = [(d.url, did) for d, did in look.edited_by(corpus, "02-line_dedup")]
    assert cut and all(did == {"spans cut": 2} for _, did in cut)  # its other line is alike, too
    (row,) = look.why(corpus, "u1")
    assert any(name.startswith("pii.") for name in row["scores"])
    with pytest.raises(UsageError, match="01-pii"):
        list(look.edited_by(corpus, "c4"))
    assert main.run(["data", "show", str(corpus.path), "--edited-by", "pii"]) == 0
    assert "u1" in capfd.readouterr().out


def test_every_printed_name_of_a_rule_is_accepted(tmp_path):
    corpus = _curate(
        tmp_path, [{"text": LONG}, {"text": LONG}, {"text": "short"}], [{"kind": "length"}, {"kind": "exact"}]
    )
    for name in ("02-exact", "exact", "duplicate", "exact: duplicate", "exact: dup"):
        (entry,) = look.dropped_by(corpus, name)
        assert entry.reason == "exact: duplicate"


def test_captures_of_one_page_are_told_apart_by_their_place(tmp_path, capfd):
    corpus = _curate(tmp_path, [{"text": LONG, "url": "u"}, {"text": LONG, "url": "u"}], [{"kind": "minhash"}])
    (cluster,) = clusters(corpus)
    assert cluster.kept.id == cluster.gone[0].id
    assert (cluster.kept.place, cluster.gone[0].place) == ("a.jsonl:1", "a.jsonl:2")
    fates = {(row["offset"], row["step"], row["twin_place"]) for row in look.why(corpus, "u")}
    assert fates == {(1, 0, ""), (2, 1, "a.jsonl:1")}


def test_why_refuses_the_empty_id_and_lists_many_in_a_line_each(tmp_path, capfd):
    rows = [{"text": f"{LONG} {i}", "url": f"u{i}"} for i in range(100)]
    corpus = _curate(tmp_path, rows, [])
    with pytest.raises(UsageError, match="empty"):
        look.why(corpus, "")
    begin = max("0123456789abcdef", key=lambda c: sum(d.id.startswith(c) for d in corpus.documents()))
    assert main.run(["data", "why", str(corpus.path), begin]) == 0
    out = capfd.readouterr().out
    n = sum(d.id.startswith(begin) for d in corpus.documents())
    assert len(out.splitlines()) == n + 1


def test_an_empty_result_can_be_looked_at(tmp_path):
    with pytest.raises(MissingError, match=r"data show .* --dropped-by 'length: too short'"):
        _curate(tmp_path, [{"text": "a", "url": "u"}], [{"kind": "length", "min_characters": 9}])
    corpus = Corpus.open(tmp_path / "corpus")
    assert [entry.document.text for entry in look.dropped_by(corpus, "length")] == ["a"]
    with pytest.raises(MissingError, match="empty"):  # and stays no product
        _curate(tmp_path, [{"text": "a", "url": "u"}], [{"kind": "length", "min_characters": 9}])


def test_the_funnel_counts_what_it_does_not_name():
    assert _largest({"a": 5, "b": 4, "c": 3, "d": 2, "e": 1}) == ["5 a", "4 b", "3 c", "3 others"]


@pytest.mark.parametrize(
    "step",
    [{"domains": ["poetry"]}, {"languages": ["xx"]}, {"by_language": {"yy": {"min_characters": 3}}}],
)
def test_a_step_that_can_apply_to_nothing_is_an_error(tmp_path, step):
    with pytest.raises(ValueError, match=r"poetry.*prose|'xx'|'yy'"):
        _curate(tmp_path, [{"text": LONG}], [{"kind": "length", **step}])


def test_languages_of_codes_scripts_and_programs_are_accepted(tmp_path):
    named = ["de", "zh", "eng-Latn", "python", "c++", "Klingon of this source"]
    assert _curate(tmp_path, [{"text": LONG}], [{"kind": "length", "languages": named}])


def test_file_names_need_not_be_utf8(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9.jsonl"
    with open(name, "w") as file:
        file.write(json.dumps({"text": LONG}) + "\n{bad\n")
    assert len(fingerprint(folder)) == 64
    source = {"kind": "jsonl", "name": "pages", "path": folder}
    corpus = curate(CurateConfig.model_validate({"sources": [source]}), tmp_path / "corpus", workers=1)
    (document,) = corpus.documents()
    assert document.file == "caf\\udce9.jsonl"
    assert json.loads(look.record_bytes(folder, document.file, document.offset))["text"] == LONG
    assert "caf" in (corpus.path / "quarantine.jsonl").read_text()


def test_a_missing_file_of_documents_is_told(tmp_path):
    corpus = _curate(tmp_path, [{"text": LONG}], [])
    next((corpus.path / "documents").iterdir()).unlink()
    with pytest.raises(CorruptError, match="missing"):
        Corpus.open(corpus.path)


def test_stats_as_json_hold_the_funnel(tmp_path, capfd):
    corpus = _curate(tmp_path, [{"text": LONG}], [{"kind": "length"}])
    capfd.readouterr()
    assert main.run(["data", "stats", str(corpus.path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["funnel"]["steps"]["01-length"]["out"]["documents"] == 1


def test_a_bad_line_of_labels_is_named_by_its_file_and_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "a", "score": 1}\n{"text" "b"}\n')
    with pytest.raises(CorruptError, match=r"labels\.jsonl:2 is not JSON"):
        read_examples(LabelledConfig(labels=(path,)))
    with pytest.raises(MissingError, match="puna quality train"):
        read_report(tmp_path)


def test_problems_of_a_recipe_are_told_in_its_words(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[sources]]\nkind = "jsonl"\nname = "A b"\npath = "x"\n[[steps]]\nkind = "lenght"\n')
    with pytest.raises(ConfigError) as caught:
        load(CurateConfig, recipe)
    told = str(caught.value)
    assert "Did you mean 'length'?" in told and "lower case letters" in told and "pattern" not in told
    recipe.write_text("a = = 1")
    with pytest.raises(ConfigError, match="1 problem") as caught:
        load(CurateConfig, recipe)
    assert "must be given" not in str(caught.value)
