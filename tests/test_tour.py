"""The product in one test, to be read from top to bottom: raw text in, a chat out, every artifact on the way."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from puna.checkpoint.format import load_model
from puna.core.dialog import Dialog
from puna.core.generator import Sampling
from puna.core.run_folder import RunFolder
from puna.data.corpus import Corpus
from puna.data.shards import ShardSet
from puna.evaluate.report import Results
from puna.infer.engine import Engine
from puna.lineage.artifact import ancestry
from puna.stages.pipeline import run_pipeline
from puna.tokenizer.bpe import Tokenizer
from tests.tiny import RECIPES, write_tiny_pipeline


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_pipeline(write_tiny_pipeline(folder))
        yield folder / "runs"
    torch.set_num_threads(threads)


def test_a_corpus_knows_what_was_read_and_what_was_dropped(runs):
    corpus = Corpus.open(runs / "corpus")
    texts = corpus.manifest["sources"]["texts"]
    assert texts["read"]["documents"] == 20
    dropped = [n["documents"] for step in texts["steps"].values() for n in step["dropped"].values()]
    assert texts["kept"]["documents"] + sum(dropped) == 20


def test_a_tokenizer_gives_back_what_it_reads(runs):
    tokenizer = Tokenizer.load(runs / "tokenizer")
    assert tokenizer.decode(tokenizer.encode("A river, eine Straße, 川 🙂")) == "A river, eine Straße, 川 🙂"
    assert tokenizer.specials.eot not in tokenizer.encode("<|eot_id|>")


def test_a_token_can_be_traced_to_its_document(runs):
    shards = ShardSet.open(runs / "shards")
    name = next(p.name for p in sorted((runs / "shards").glob("texts*.tokens.bin"))).removesuffix(".tokens.bin")
    assert shards.trace(name, 3).document["source"] == "texts"


def test_the_loss_falls(runs):
    losses = [r["loss"] for r in RunFolder(runs / "base").read_metrics() if r["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5


def test_every_training_run_leaves_a_model_that_the_engine_speaks_with(runs):
    for name in ("base", "sft", "rs", "dpo", "assistant"):
        model, shape = load_model(runs / name)
        assert shape.parameters() == sum(p.numel() for p in model.parameters())
    engine = Engine.load(runs / "assistant")
    (answer,) = engine.complete([Dialog.of(("user", "Hello"))], Sampling(max_tokens=5, temperature=0))
    assert 1 <= len(answer.tokens) <= 5


def test_scores_come_with_n_and_interval(runs):
    results = Results.from_json(json.loads((runs / "eval-ppo" / "results.json").read_text()))
    score = results["exercises"].metrics["exact_match"]
    assert score.n == 24
    assert score.low <= score.value <= score.high
    summary = json.loads((runs / "summary.json").read_text())
    assert summary["exercises"]["ppo"]["n"] == 24
    assert set(summary["seconds"]) == {*RECIPES, "total"}


def test_lineage_leads_from_the_assistant_back_to_the_corpus(runs):
    names = [Path(step.path).name for step in ancestry(runs / "assistant")]
    assert names[0] == "assistant"
    assert {"sft", "pairs", "base", "tokenizer", "shards", "corpus"} <= set(names)
    assert not any(step.changed for step in ancestry(runs / "assistant"))


def test_the_report_is_one_file_that_needs_nothing_else(runs):
    page = (runs / "report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "src=" not in page
    for title in ("Held-out exercises", "Rejection sampling", "Reward model", "Rewards"):
        assert f"<h2>{title}</h2>" in page
    for chart in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + chart.partition("</svg>")[0] + "</svg>")


def test_a_second_run_does_nothing(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")}
    run_pipeline(Path("recipes/run.toml"))
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*.safetensors")} == before
    assert capsys.readouterr().out.count("nothing to do") == len(RECIPES)
