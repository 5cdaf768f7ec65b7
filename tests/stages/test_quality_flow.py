"""Labels -> linear and transformer -> scores, through the stages, with labels from a file."""

import json
import random

import pytest

from puna.core import config
from puna.core.run_folder import RunFolder
from puna.data.document import Document
from puna.data.quality.label import LabelConfig, label
from puna.data.quality.report import read_report
from puna.data.quality.store import open_classifier
from puna.stages import quality_train
from puna.stages.quality_apply import OPENER
from tests.evaluate.fake_generator import FakeGenerator

GOOD, BAD = ["theorem", "because", "history", "therefore"], ["click", "buy", "free", "win"]


def _text(i):
    return " ".join(random.Random(i).choices(GOOD if i % 2 else BAD, k=20)) + f" number {i}"


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_a_labelled_sample_becomes_a_calibrated_classifier(tmp_path, kind):
    documents = [Document(_text(i), "s", f"u{i}") for i in range(160)]
    annotator = FakeGenerator(lambda p: f"Score: {4 if any(w in p.messages[-1].content for w in GOOD) else 1}")
    label(annotator, documents, LabelConfig(), tmp_path / "labels")
    small = [
        f"data.labels=['{tmp_path / 'labels'}']",
        f"kind={kind}",
        f"out={tmp_path / 'out'}",
        "network.vocab_size=540",
        "network.model.dim=32",
        "network.model.n_layers=1",
        "network.model.n_heads=2",
        "network.model.n_kv_heads=1",
        "network.model.ffn_dim=64",
        "network.sequence_length=64",
        "network.train.steps=40",
        "network.train.threads=1",
    ]
    recipe = config.load(quality_train.QualityTrainRecipe, None, small).config
    quality_train.run(recipe, RunFolder(tmp_path / "out"))
    report = read_report(tmp_path / "out")
    assert report["test"]["auc"] > 0.95
    classifier = open_classifier(tmp_path / "out", OPENER)
    good, bad = classifier.score([_text(1001), _text(1000)])
    assert good > 0.6 > 0.4 > bad
    assert json.loads((tmp_path / "out/classifier.json").read_text())["figures"] == report["test"]
