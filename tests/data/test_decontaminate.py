import gzip
import json

import pytest

from puna.core.errors import CorruptError, MissingError
from puna.data.decontaminate import DECONTAMINATE, DecontaminateConfig, make_table, read_items
from puna.data.document import Document
from puna.data.documents import read_table
from tests.data.steps.barrier_bench import decide_on, kept

QUESTION = "A farmer walks nine miles to a market with twelve hens and sells each of them for four silver coins"
SHORT = "Which river flows through the old town of Weimar"
NOISE = " Some other words that stand on the page before and behind it, as they do. "


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    rows = [{"question": QUESTION, "answer": "48"}, {"question": SHORT, "answer": "Ilm"}, {"question": "2+2?"}]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(folder / "packed.jsonl.gz", "wt") as out:
        out.write(json.dumps({"messages": [{"content": "zero " * 3 + QUESTION[::-1]}]}) + "\n")
    (folder / "table.csv").write_text(
        '"Which of the two is the larger one, a pound of lead or a kilogram of it?",a,b,A\n'
    )
    (folder / "list.json").write_text(json.dumps({"examples": [{"input": "not so long", "target": "x"}]}))
    return folder


def _run(texts, path, report=None, **changes):
    config = DecontaminateConfig.model_validate({"path": path} | changes)
    documents = [Document(text, "s", f"u{i}") for i, text in enumerate(texts)]
    return decide_on(documents, DECONTAMINATE, config, report=report, parts=2)


def test_documents_with_an_item_go_and_the_report_says_which(benchmark, tmp_path):
    report = tmp_path / "report"
    texts = [NOISE + QUESTION.upper() + NOISE, NOISE, NOISE + SHORT + NOISE, "a pound of lead or a kilogram of it?"]
    decisions = _run(texts, benchmark, report)
    assert kept(decisions) == [False, True, False, True]
    matches = read_table(report / "matches.parquet").to_pylist()
    assert [(m["benchmark"], m["item"], m["coverage"]) for m in matches] == [
        ("q.jsonl", "1.question", 1.0),
        ("q.jsonl", "2.question", 1.0),
    ]
    assert matches[1]["words"] == SHORT
    summary = dict(json.loads((report / "summary.json").read_text())["rows"])
    assert summary["documents that go"] == summary["items found"] == 2


def test_half_an_item_is_judged_by_the_share_that_is_there(benchmark):
    half = " ".join(QUESTION.split()[:15])  # 3 of 8 runs of 13 words
    assert kept(_run([half], benchmark)) == [True]
    decisions = _run([half], benchmark, min_coverage=0.3)
    assert kept(decisions) == [False]
    assert decisions[0].values[0] == pytest.approx(3 / 8)


def test_template_text_that_many_items_share_does_not_count(tmp_path):
    path = tmp_path / "b.jsonl"
    common = "Read the following passage with care and then answer the question that stands below it now"
    path.write_text("".join(json.dumps({"q": f"{common} number {i} of these"}) + "\n" for i in range(20)))
    assert kept(_run([common], path)) == [True]
    config = DecontaminateConfig(path=path)
    assert make_table(read_items(config), config).templates > 0


def test_an_evaluation_task_is_read_by_its_own_reader(tmp_path):
    path = tmp_path / "gsm.jsonl"
    path.write_text(json.dumps({"question": QUESTION, "answer": "He has coins. #### 48"}) + "\n")
    config = DecontaminateConfig.model_validate({"tasks": [{"kind": "gsm8k", "path": str(path)}]})
    assert [item.text.split()[0] for item in read_items(config)] == ["A"]
    document = Document(NOISE + QUESTION, "s", "u")
    assert kept(decide_on([document], DECONTAMINATE, config, parts=1)) == [False]


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(CorruptError, match=r"bad\.jsonl"):
        _run(["x"], tmp_path / "bad.jsonl")
    with pytest.raises(MissingError, match="has no benchmark"):
        _run(["x"], tmp_path / "nothing")
    with pytest.raises(ValueError, match="give path"):
        DecontaminateConfig.model_validate({})
