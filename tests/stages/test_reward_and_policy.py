"""`puna rm`, `puna rm check` and `puna ppo` as their users type them, on a model of a few thousand weights."""

import json
import random
import shutil

import pytest
import torch

from puna.checkpoint.format import load_config, save_model
from puna.cli.main import run as puna
from tests.post.tiny import TOKENIZER, tiny_model


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    model = tiny_model(dtype=torch.float32)
    save_model(tmp_path / "start", model, model.config, tokenizer=TOKENIZER)
    for name, seed in (("pairs", 0), ("more", 1)):
        rng = random.Random(seed)
        rows = []
        for n in range(60):
            good, bad = ("yes" + "!" * rng.randint(0, 6), "no" + "!" * rng.randint(0, 7))
            row = {"prompt": f"question {name} {n}", "chosen": good, "rejected": bad}
            rows.append(row | {"strength": 1 + n % 4})
        rows.append({"prompt": "rank", "ranking": ["yes", "perhaps", "no"]})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "rm.toml").write_text(
        """# puna rm rm
out = "runs/rm"
start_from = "start"
preferences = ["pairs.jsonl"]
held_out_fraction = 0.2
data = { rows = 2, sequence_length = 200 }
[train]
steps = 30
threads = 1
optim = { lr = 1e-2, weight_decay = 0.0 }
schedule = { warmup_steps = 2 }
"""
    )
    (tmp_path / "check.toml").write_text(
        'out = "runs/check"\nmodel = "runs/rm"\npreferences = ["more.jsonl"]\ncheck = { min_pairs = 50 }\n'
    )
    (tmp_path / "ppo.toml").write_text(
        """# puna ppo ppo
out = "runs/ppo"
start_from = "start"
exercises = { n = 40, kinds = ["end_letter"] }
policy = { prompts = 4, samples = 2, max_tokens = 6, minibatches = 2 }
[train]
steps = 4
threads = 1
optim = { lr = 1e-3, rate_factors = { critic = 3.0 } }
schedule = { warmup_steps = 1 }
"""
    )
    yield tmp_path
    torch.set_num_threads(before)


def test_a_reward_model_is_trained_checked_and_used_as_reward_and_critic(workplace, capsys):
    assert puna(["rm", "rm.toml", "--dry-run"]) == 0 and not (workplace / "runs").exists()
    assert puna(["rm", "rm.toml"]) == 0
    assert load_config("runs/rm").head == "score"
    assert json.loads((workplace / "runs/rm/check.json").read_text())["accuracy"]["value"] > 0.9
    assert puna(["rm", "check", "check.toml"]) == 0, capsys.readouterr().err
    page = (workplace / "runs/check/check.html").read_text()
    assert "Every check is passed." in page and page.count("<svg") == 2
    assert puna(["ppo", "ppo.toml", "reward_model=runs/rm", "policy.reward_weight=0.1"]) == 0
    assert load_config("runs/ppo").head == "tokens" and load_config("runs/ppo/critic").head == "score"
    rollouts = [json.loads(line) for line in (workplace / "runs/ppo/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rollouts if r["kind"] == "rollout"] == [1, 3]
    assert {"correct", "score", "finished"} <= rollouts[0].keys()
    assert puna(["ppo", "ppo.toml", "reward_model=runs/rm", "policy.reward_weight=0.1"]) == 0  # nothing is left to do


def test_a_model_that_is_not_good_enough_ends_with_exit_code_4_and_says_why(workplace, capsys):
    assert puna(["rm", "rm.toml", "train.steps=1", "train.schedule.warmup_steps=0", "train.optim.lr=1e-9"]) == 0
    assert puna(["rm", "check", "check.toml", "check.min_accuracy=0.99"]) == 4
    assert "should not be used" in capsys.readouterr().err
    assert puna(["rm", "check", "check.toml", "check.min_accuracy=0.99", "--dry-run"]) == 0
    assert "ended with a no" in capsys.readouterr().out
    assert puna(["rm", "check", "check.toml", "check.min_accuracy=0.99"]) == 4
    told = capsys.readouterr().out
    assert "runs/check ended with a no, and is asked again" in told and "resuming" not in told
    assert (workplace / "runs/check/check.html").is_file()
    assert puna(["rm", "check", "check.toml", "check.min_accuracy=0.99", "fail=false", "--accept-drift"]) == 0


def test_a_model_is_not_judged_by_what_it_learned_from(workplace, capsys):
    assert puna(["rm", "rm.toml"]) == 0
    shutil.copy("pairs.jsonl", "copy.jsonl")
    assert puna(["rm", "rm.toml", "out=runs/more", "start_from=runs/rm", "preferences=more.jsonl"]) == 0
    for words in (["preferences=copy.jsonl"], ["preferences=copy.jsonl", "model=runs/more", "--dry-run"]):
        capsys.readouterr()
        assert puna(["rm", "check", "check.toml", *words]) == 2
        assert "learned from copy.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_critic_free_methods_take_the_same_recipe(workplace, method):
    assert puna(["ppo", "ppo.toml", f"policy.method={method}", f"out=runs/{method}"]) == 0
    assert not (workplace / f"runs/{method}/critic").exists()


def test_exercises_that_are_always_wrong_are_not_learned_from(workplace, capsys):
    (workplace / "sample.toml").write_text(
        """# puna sample sample
out = "runs/sample"
model = "start"
exercises = { n = 40, kinds = ["end_letter"] }
sampling = { samples_per_task = 2, max_tokens = 4, tasks_per_call = 8, temperature = 1.0 }
"""
    )
    assert puna(["ppo", "ppo.toml", "samples=runs/sample"]) == 3
    assert puna(["sample", "sample.toml"]) == 0
    assert puna(["ppo", "ppo.toml", "samples=runs/sample", "exercises.n=41"]) == 2
    assert "samples does not know 1 of 41 exercises" in capsys.readouterr().err
    assert puna(["ppo", "ppo.toml", "samples=runs/sample"]) == 2
    assert "there are 0 prompts" in capsys.readouterr().err
    assert puna(["ppo", "ppo.toml", "samples=runs/sample", "right_between=[0.0, 0.5]"]) == 0


def test_prompts_from_a_file_are_judged_by_a_reward_model(workplace):
    text = (workplace / "ppo.toml").read_text().replace("exercises = ", 'prompts = ["pairs.jsonl"]\n# ')
    (workplace / "ppo.toml").write_text(text)
    assert puna(["rm", "rm.toml"]) == 0
    assert puna(["ppo", "ppo.toml", "reward_model=runs/rm", "policy.samples=1"]) == 0


def test_what_cannot_work_is_told_with_its_exit_code(workplace, capsys):
    for arguments, code, told in (
        (["ppo", "ppo.toml", "reward_model=start"], 2, "start is a language model"),
        (["ppo", "ppo.toml", "policy.method=pppo"], 2, "policy.method is 'pppo'"),
        (["ppo", "ppo.toml", "train.accumulation=3"], 2, "multiple of train.accumulation"),
        (["rm"], 2, "RECIPE"),
        (["rm", "nothing.toml"], 3, "is not there"),
        (["rm", "rm.toml", "preferences=['none.jsonl']"], 3, "none.jsonl"),
        (["rm", "check", "check.toml", "model=start"], 2, "is a language model"),
        (["sft", "rm.toml"], 2, "unknown key"),
    ):
        assert puna(arguments) == code, arguments
        assert told in capsys.readouterr().err, arguments


def test_files_that_cannot_be_used_are_told_by_a_dry_run(workplace, capsys):
    for name, row in (("pairs", {"prompt": "a", "choosen": "b", "rejected": "c"}), ("prompts", {"promt": "a"})):
        (workplace / f"bad-{name}.jsonl").write_text(json.dumps(row) + "\n")
    (workplace / "dpo.toml").write_text('out = "runs/dpo"\nstart_from = "start"\npairs = ["bad-pairs.jsonl"]\n')
    prompts = ["exercises=none", "prompts=['bad-prompts.jsonl']", "reward_model=start"]
    (workplace / "sample.toml").write_text('out = "runs/sample"\nmodel = "start"\n')
    for arguments, told in (
        (["dpo", "dpo.toml"], "Did you mean 'chosen' instead of 'choosen'?"),
        (["rm", "rm.toml", "preferences=['bad-pairs.jsonl']"], "the preferences cannot be used: 1 problem"),
        (["rm", "rm.toml", "preferences=['pairs.jsonl', 'none.jsonl']"], "preferences=[PATH, ...]"),
        (["ppo", "ppo.toml", *prompts], "Did you mean 'prompt' instead of 'promt'?"),
        (
            ["ppo", "ppo.toml", "exercises=none", "code.files=['bad-prompts.jsonl']"],
            "its question in 'prompt' or 'text'",
        ),
        (["sample", "sample.toml", *prompts[1:]], "Did you mean 'prompt' instead of 'promt'?"),
        (["ppo", "ppo.toml", "exercises.kinds=['reversed']"], "did you mean 'reverse'?"),
        (["ppo", "ppo.toml", "critic=start", "policy.method=grpo"], "grpo has none"),
    ):
        assert puna([*arguments, "--dry-run"]) in (2, 3), arguments
        assert told in capsys.readouterr().err, arguments
    assert puna(["rm", "rm.toml", "held_out_fraction=0.999"]) == 2
    assert "no prompt is left to learn from" in capsys.readouterr().err


def test_the_folder_of_a_run_is_no_file_of_pairs(workplace, capsys):
    (workplace / "sample.toml").write_text(
        """# puna sample sample
out = "runs/sample"
model = "start"
exercises = { n = 16, kinds = ["end_letter"] }
sampling = { samples_per_task = 2, max_tokens = 4, tasks_per_call = 8, temperature = 1.0 }
"""
    )
    assert puna(["sample", "sample.toml"]) == 0
    (workplace / "dpo.toml").write_text('out = "runs/dpo"\nstart_from = "start"\npairs = ["runs/sample"]\n')
    assert puna(["dpo", "dpo.toml"]) == 2
    assert "name its file: runs/sample/preferences.jsonl or" in capsys.readouterr().err


def test_a_reward_model_does_not_write(workplace, capsys):
    assert puna(["rm", "rm.toml", "train.steps=1", "train.schedule.warmup_steps=0"]) == 0
    (workplace / "two.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (workplace / "dpo.toml").write_text('out = "runs/dpo"\nstart_from = "runs/rm"\npairs = ["two.jsonl"]\n')
    assert puna(["dpo", "dpo.toml", "data.sequence_length=256"]) == 2
    assert "is a reward model" in capsys.readouterr().err


def test_rejection_sampling_of_prompts_from_a_file_is_judged_by_a_reward_model(workplace, capsys):
    assert puna(["rm", "rm.toml"]) == 0
    (workplace / "sample.toml").write_text(
        """# puna sample sample
out = "runs/sample"
model = "start"
prompts = ["more.jsonl"]
sampling = { samples_per_task = 3, max_tokens = 24, tasks_per_call = 8, selection = "best", temperature = 1.0 }
"""
    )
    assert puna(["sample", "sample.toml"]) == 2 and "nothing judges the answers" in capsys.readouterr().err
    assert puna(["sample", "sample.toml", "reward_model=runs/rm", "out=runs/scored"]) == 0
    records = [json.loads(line) for line in (workplace / "runs/scored/samples.jsonl").read_text().splitlines()]
    assert all(answer["score"] is not None for record in records[1:] for answer in record["answers"])


def test_an_adapter_goes_through_sft_dpo_and_ppo_with_its_base_as_the_reference(workplace, capsys):
    head = (
        'start_from = "start"\n[adapter]\nrank = 4\n[train]\nsteps = 2\nthreads = 1\nschedule = { warmup_steps = 1 }\n'
    )
    (workplace / "sft.toml").write_text(
        'out = "runs/sft"\nexercises = { n = 20 }\ndata = { rows = 1, sequence_length = 300 }\n' + head
    )
    rows = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(8)]
    (workplace / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workplace / "dpo.toml").write_text(
        'out = "runs/dpo"\npairs = ["answers.jsonl"]\ndata = { rows = 1, sequence_length = 300 }\n' + head
    )
    assert puna(["sft", "sft.toml", "--dry-run"]) == 0
    assert puna(["sft", "sft.toml"]) == 0, capsys.readouterr().err
    assert puna(["dpo", "dpo.toml", "start_from=runs/sft", "adapter.kind=dora"]) == 0, capsys.readouterr().err
    asked = ["policy.kl_coefficient=0.05", "train.steps=2"]
    assert puna(["ppo", "ppo.toml", "start_from=runs/dpo", "adapter.kind=qlora", "adapter.rank=2", *asked]) == 0
    rollouts = [json.loads(line) for line in (workplace / "runs/ppo/metrics.jsonl").read_text().splitlines()]
    assert rollouts[0]["kl_per_answer"] == pytest.approx(0.0, abs=1e-6)  # nothing is learned yet: policy = reference
    assert (workplace / "runs/ppo/model/adapter_model.safetensors").exists()
    assert puna(["export", "hf", "runs/ppo", "merged"]) == 0 and load_config("merged") == load_config("start")
    assert puna(["ppo", "ppo.toml", "adapter.rank=2", "adapter.dropout=0.1"]) == 2
