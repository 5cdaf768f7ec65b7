"""Curate, label, train, apply, report, mix: the data verbs as they are typed, on texts whose worth is known."""

import json
import random

import pyarrow.parquet as pq
import pytest

from puna.cli import main
from puna.data.curate import CurateConfig, curate
from puna.serve.config import ServeConfig
from tests.data.shard_sets import make_set
from tests.serve.conftest import running
from tests.serve.fake import FakeGenerator

GOOD, BAD = ["theorem", "because", "history", "therefore"], ["click", "buy", "free", "win"]


def _text(i):
    return " ".join(random.Random(i).choices(GOOD if i % 2 else BAD, k=20)) + f" number {i}"


class Rater(FakeGenerator):
    """Rates texts by their words, behind a server."""

    def stream(self, prompt, sampling):
        asked = prompt.as_messages()[-1]["content"]
        self.words = ["It is so.\n", "Score: ", "4" if any(word in asked for word in GOOD) else "1"]
        return super().stream(prompt, sampling)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    texts = folder / "texts"
    texts.mkdir()
    for name in ("notes", "pages"):
        rows = [json.dumps({"text": _text(i)}) for i in range(100 if name == "pages" else 60)]
        (texts / f"{name}.jsonl").write_text("\n".join(rows))
    sources = [{"kind": "jsonl", "name": name, "path": texts / f"{name}.jsonl"} for name in ("notes", "pages")]
    curate(CurateConfig.model_validate({"sources": sources, "steps": []}), folder / "corpus", workers=1)
    (folder / "label.toml").write_text(
        'out = "labels"\ncorpus = "corpus"\n[endpoint]\nurl = "http://127.0.0.1:1/v1"\nmodel = "fake"\n'
        'key_file = "key.txt"\nconcurrency = 1\n'
    )
    (folder / "key.txt").write_text("sesame\n")
    (folder / "train.toml").write_text('out = "linear"\n[data]\nlabels = ["labels"]\n')
    (folder / "apply.toml").write_text('out = "scores"\ncorpus = "corpus"\nclassifier = "linear"\n')
    return folder


def test_labels_from_a_server_become_scores_of_a_corpus(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    rater = Rater(context=100_000)
    with running(rater, ServeConfig(port=0, api_key="sesame")) as url:
        label = ["quality", "label", "label.toml", f"endpoint.url={url}/v1"]
        assert main.run([*label, "--dry-run"]) == 0
        assert rater.prompts == []
        assert main.run(label) == 0, capfd.readouterr().err
        n_asked = len(rater.prompts)
        assert n_asked >= 160
        assert main.run(label) == 0
        assert len(rater.prompts) == n_asked, "a finished stage asks nothing again"
    told = capfd.readouterr().out
    assert "kappa" in told and "1.000" in told
    assert "sesame" not in told
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "key.txt"]
    assert not any(b"sesame" in data for data in written)

    assert main.run(["quality", "train", "train.toml"]) == 0
    assert json.loads((folder / "linear/report.json").read_text())["test"]["auc"] > 0.95
    assert main.run(["quality", "apply", "apply.toml", "threshold=0.4"]) == 0
    scores = pq.read_table(folder / "scores/scores.parquet")
    assert scores.num_rows == 160
    assert 0.4 < sum(score >= 0.4 for score in scores["score"].to_pylist()) / 160 < 0.6
    capfd.readouterr()
    for made in ("linear", "scores"):
        assert main.run(["quality", "report", made]) == 0
        assert "source pages" in capfd.readouterr().out
    assert main.run(["quality", "report", "texts"]) == 3


def test_wrong_words_end_with_their_reason_and_code(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("puna.serve.endpoint._FIRST_PAUSE_SECONDS", 0.001)
    for i, (words, code, told) in enumerate(
        [
            (["label", "label.toml"], 1, "cannot be reached"),
            (["label", "label.toml", "endpoint.key_file=none.txt"], 3, "key file none.txt is not there"),
            (["label", "label.toml", "endpoint.url=localhost"], 2, "an address like"),
            (["label", "label.toml", "model=there"], 2, "one of the two"),
            (["label", "label.toml", "endpoint.key_variable=KEY"], 2, "key_variable"),
            (["train", "train.toml", "data.labels=['nowhere']"], 3, "nowhere"),
            (["train", "train.toml", "kind=forest"], 2, "transformer"),
            (["apply", "apply.toml", "classifier=corpus"], 3, "corpus"),
            (["apply", "apply.toml", "threshold=2"], 2, "threshold"),
        ]
    ):
        assert main.run(["quality", *words, f"out=x{i}"]) == code, words
        error = capfd.readouterr().err
        assert told in error and "Traceback" not in error, error


MIX = """
out = "run"
tokenizer = "tokenizer"
[data]
shards = ["web", "code"]
rows = 4
sequence_length = 64
[data.mix]
floors = { code = 0.3 }
groups = { code = ["code"] }
max_epochs = 50
phases = [{ start = 0.8, shares = { code = 0.6 } }]
[train]
steps = 100
"""


def test_the_table_of_a_mix_is_that_of_the_recipe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "web", {"web": [100] * 40})
    make_set(tmp_path / "code", {"code": [100] * 5})
    (tmp_path / "train.toml").write_text(MIX)
    assert main.run(["mix", "train.toml"]) == 0
    told = capfd.readouterr().out
    rows = {row.split()[0]: row.split() for row in told.splitlines() if row.startswith(("web", "code"))}
    assert rows["code"][2:4] == ["30.00%", "60.00%"] and rows["web"][2:4] == ["70.00%", "40.00%"]
    assert "phase 2 begins at step 80 of 100" in told
    assert "read again" in told
    assert not (tmp_path / "run").exists()
    for change, code, reason in [
        ("data.mix.max_epochs=1", 2, "epochs"),
        ("data.mix.floors={cod=0.3}", 2, "Did you mean 'code'"),
        ("data.shards=['nowhere']", 3, "nowhere"),
        ("data.mix.temprature=2", 2, "temperature"),
    ]:
        assert main.run(["mix", "train.toml", change]) == code, change
        error = capfd.readouterr().err
        assert reason in error and "Traceback" not in error, error
