"""`puna round` as its users type it, on a model of a few thousand weights that answers some exercises rightly."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from puna.checkpoint.format import save_model
from puna.cli.main import run as puna
from puna.core.files import fingerprint
from puna.evaluate.tasks.config import TaskConfig
from puna.lineage.artifact import ancestry
from puna.post.preferences import judge, simulate
from puna.post.preferences.collection import Collection
from puna.stages.exercise_data import ExerciseConfig
from puna.stages.rounds.recipe import RoundRecipe
from puna.stages.rounds.steps import Round
from tests.post.tiny import TOKENIZER, tiny_model

TRAIN = "threads = 1, optim = { lr = 1e-3, weight_decay = 0.0 }, schedule = { warmup_steps = 1 }"
RECIPE = f"""# puna round: tiny
out = "runs/rounds"
start_from = "start/sft"
exercises = {{ kinds = ["end_letter"] }}
items = {{ n = 30, gold = 6, max_tokens = 6 }}
annotate = {{ by = "simulator", adjudicate = 5, collection = {{ overlap = 3, gate_accuracy = 0.0 }} }}
check_labels = {{ quality = {{ resamples = 0 }} }}
average = {{}}
gate = {{ margin = 1.0 }}
[reward]
check_prompts = 40
against_raw = true
data = {{ rows = 2, sequence_length = 256 }}
check = {{ min_pairs = 1, min_accuracy = 0.0, max_calibration_error = 1.0, min_accuracy_shorter = 0.0 }}
train = {{ steps = 3, {TRAIN} }}
[sampling]
n = 16
draw = {{ samples_per_task = 3, max_tokens = 6, tasks_per_call = 8, selection = "best" }}
[sft]
data = {{ rows = 2, sequence_length = 256 }}
train = {{ steps = 2, {TRAIN} }}
[dpo]
data = {{ rows = 2, sequence_length = 256 }}
train = {{ steps = 2, {TRAIN} }}
[ppo]
n = 8
policy = {{ prompts = 4, samples = 2, max_tokens = 6, minibatches = 2 }}
train = {{ steps = 2, {TRAIN} }}
[[tasks]]
kinds = ["end_letter"]
limit = 30
max_tokens = 6
"""


def make_start(folder):
    """Makes `sft` in a folder: a model that learned to answer with one letter, often a wrong one."""
    before = torch.get_num_threads()
    model = tiny_model(dtype=torch.float32)
    save_model(folder / "new", model, model.config, tokenizer=TOKENIZER)
    (folder / "sft.toml").write_text(
        f"""out = "{folder}/sft"
start_from = "{folder}/new"
exercises = {{ n = 400, kinds = ["end_letter"] }}
data = {{ rows = 4, sequence_length = 256 }}
train = {{ steps = 60, threads = 1, optim = {{ lr = 2e-2 }}, schedule = {{ warmup_steps = 5 }} }}
"""
    )
    assert puna(["sft", str(folder / "sft.toml")]) == 0
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    make_start(folder)
    return folder


@pytest.fixture
def workplace(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    shutil.copytree(start, tmp_path / "start")
    (tmp_path / "rounds.toml").write_text(RECIPE)
    yield tmp_path
    torch.set_num_threads(before)


def summary(folder):
    return json.loads((folder / "runs/rounds/summary.json").read_text())


def test_two_rounds_reach_from_labels_to_a_model_whose_lineage_goes_back_through_both(workplace, capsys):
    assert puna(["round", "rounds.toml", "rounds=2", "--dry-run"]) == 0 and not (workplace / "runs").exists()
    code = puna(["round", "rounds.toml"])
    told = capsys.readouterr()
    assert code == 0, told.err
    first = fingerprint("runs/rounds/round-1/average")
    assert puna(["round", "rounds.toml", "rounds=2"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "runs/rounds/round-1/average is finished" in told and fingerprint("runs/rounds/round-1/average") == first
    found = summary(workplace)
    assert found["finished"] and found["product"] == "round-2/average" and len(found["rounds"]) == 2
    for entry in found["rounds"]:
        truth = entry["labels"]["against_truth"]
        assert {"precision", "recall", "majority", "dawid_skene"} <= truth.keys()
        assert {"checked", "raw", "checked_over_raw"} == entry["reward"].keys()
        assert entry["decision"]["accepted"] and entry["decision"]["tasks"][0]["difference"]["n"] == 30
        assert sum(entry["mix"]["sft"].values()) == 16
    assert set(found["rounds"][1]["mix"]["reward"]) == {f"round-{n}/preferences/preferences.jsonl" for n in (1, 2)}
    above = {"/".join(step.path.parts[-2:]) for step in ancestry("runs/rounds/round-2/average")}
    assert {"round-2/items", "round-1/average", "round-1/ppo", "round-1/labels", "start/sft"} <= above
    page = (workplace / "runs/rounds/report.html").read_text()
    assert "round-1/preferences/preferences.jsonl" in page and "<script" not in page and "http" not in page


@pytest.mark.slow
def test_a_refused_model_does_not_take_the_old_ones_place(workplace, capsys):
    code = puna(
        ["round", "rounds.toml", "gate.margin=0.0", "sft.train.optim.lr=0.5", "dpo=none", "ppo=none", "average=none"]
    )
    told = capsys.readouterr()
    assert code == 4, told.err
    assert "round 1 is refused: exercises: " in told.err and "start/sft" in told.err
    decision = json.loads((workplace / "runs/rounds/round-1/decision.json").read_text())
    assert not decision["accepted"] and decision["model"] == "../../start/sft"
    assert "refused, the old model stays" in (workplace / "runs/rounds/report.html").read_text()


@pytest.mark.slow
def test_a_reward_model_that_is_not_good_enough_ends_its_round(workplace, capsys):
    assert puna(["round", "rounds.toml", "reward.check.min_accuracy=1.0"]) == 4
    assert "the reward model is not good enough: accuracy" in capsys.readouterr().err
    assert not (workplace / "runs/rounds/round-1/samples").exists()


def test_with_people_the_round_waits_and_goes_on_when_the_labels_are_there(workplace, capsys):
    command = ["round", "rounds.toml", "annotate.by=people", "reward.against_raw=false", "ppo=none"]
    assert puna(command) == 75
    told = capsys.readouterr().err
    assert "0 of" in told and "puna annotate serve runs/rounds/people.db" in told and "puna round rounds.toml" in told
    assert puna(command) == 75
    truth = json.loads((workplace / "runs/rounds/round-1/items/truth.json").read_text())
    collection = Collection.open("runs/rounds/people.db")
    people = [simulate.PersonConfig(name=name, skill=0.5) for name in ("ada", "ben", "cleo")]
    simulate.run(collection, people, truth)
    collection.close()
    capsys.readouterr()
    assert puna(command) == 75
    assert "wait for an adjudicator" in capsys.readouterr().err
    collection = Collection.open("runs/rounds/people.db")
    n = simulate.run(collection, (), truth, adjudicators=(simulate.PersonConfig(name="grace", skill=6.0),))
    collection.close()
    assert 0 < n <= 5
    assert puna(command) == 0, capsys.readouterr().err
    labels = (workplace / "runs/rounds/round-1/labels/labels.jsonl").read_text().splitlines()
    assert sum('"role": "adjudicator"' in line for line in labels) == n


class Decided:
    """A judge that prefers the answer that comes first in the alphabet; the tiny model that it replaces knows nothing."""

    name = "decided"

    def logprobs(self, prompts, continuations):
        def score(prompt, word):
            left, right = prompt.messages[-1].content.split("Answer 1:\n")[1].split("\n\nAnswer 2:\n")
            return SimpleNamespace(logprob=0.0 if (word == "1") == (left.strip() <= right.strip()) else -5.0)

        return [score(prompt, word) for prompt, word in zip(prompts, continuations, strict=True)]


@pytest.mark.slow
def test_prompts_of_a_file_are_labelled_by_a_judge_model_and_judged_by_rows_held_out(workplace, capsys, monkeypatch):
    asked = judge.judge_items
    monkeypatch.setattr(judge, "judge_items", lambda items, generator: asked(items, Decided()))
    rows = [{"prompt": f"What is the last letter of word{n}?"} for n in range(40)]
    (workplace / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RECIPE.replace('exercises = { kinds = ["end_letter"] }', 'prompts = ["prompts.jsonl"]').replace(
        "[ppo]", "[xx]"
    )
    text = text[: text.index("[xx]")] + text[text.index("[[tasks]]") :]
    (workplace / "rounds.toml").write_text(text)
    change = ["annotate.by=judge", "annotate.judge=start/sft", "annotate.adjudicate=0", "reward.against_raw=false"]
    change += [
        "check_labels.held_out_fraction=0.4",
        "check_labels.quality.min_labels=1",
        "check_labels.quality.accept=0.51",
    ]
    assert puna(["round", "rounds.toml", *change]) == 0, capsys.readouterr().err
    assert summary(workplace)["rounds"][0]["labels"]["held_out_rows"] > 0


def test_what_cannot_work_is_told_before_any_work(workplace, capsys):
    for change, told in (
        (["exercises=none"], "give prompts = [files] or an [exercises] table"),
        (["average.weights=[1, 1]"], "average.weights are 2 for 3 models"),
        (["annotate.by=judge"], 'needs judge = "..."'),
        (["sampling.drw.seed=1"], "Did you mean 'sampling.draw'"),
        (["start_from=nowhere"], "nowhere is not there"),
    ):
        assert puna(["round", "rounds.toml", *change]) in (2, 3), change
        assert told in capsys.readouterr().err, change
    assert not (workplace / "runs/rounds/round-1").exists()


def test_a_later_step_that_cannot_run_is_told_before_the_first_one_runs(workplace, capsys):
    for key in ("sft", "dpo", "reward"):
        assert puna(["round", "rounds.toml", f"{key}.data.sequence_length=1000000"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"rounds.toml: round 1: {key}.data.sequence_length is 1000000" in told
    assert puna(["round", "rounds.toml", "sft.dialogs=mine.jsonl"]) == 3
    assert "mine.jsonl is not there, which sft reads" in " ".join(capsys.readouterr().err.split())
    assert not (workplace / "runs").exists()


def test_steps_without_a_table_run_with_their_defaults_but_for_the_optional_ones():
    tasks = (TaskConfig(kinds=("end_letter",)),)
    recipe = RoundRecipe(out=Path("out"), start_from=Path("start"), exercises=ExerciseConfig(), tasks=tasks)
    now = Round(recipe, 1, (recipe.start_from,), promised=True)
    steps = [make().out.name for make in (*now.labelling(), *now.rewarding(), *now.learning())]
    assert steps == [
        "items",
        "labels",
        "preferences",
        "check-pairs",
        "reward",
        "reward-check",
        "samples",
        "sft",
        "scores",
    ]
