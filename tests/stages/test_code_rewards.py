"""Learning from programs that are run: a tiny model writes right and wrong programs, and more right ones later."""

import json

import pytest
import torch

from puna.checkpoint.format import save_model
from puna.cli.main import run as puna
from puna.core.dialog import Dialog
from puna.core.errors import MissingError
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.sandbox.program import SandboxConfig
from puna.stages.checkable import CodeConfig, code_tasks, code_verifier
from tests.post.tiny import TOKENIZER

BODIES = ("x + 2", "x * 2")
PROBLEMS = [
    {"task_id": "sum", "prompt": "Add 2 to x.", "test_list": ["assert f(3) == 5", "assert f(0) == 2"]},
    {"task_id": "plus", "prompt": "What is x plus 2?", "test_list": ["assert f(1) == 3", "assert f(-2) == 0"]},
]
SFT = """# puna sft sft
out = "runs/sft"
start_from = "start"
dialogs = ["dialogs.jsonl"]
data = { rows = 2, sequence_length = 512 }
train = { steps = 60, threads = 1, optim = { lr = 1e-2 }, schedule = { warmup_steps = 5 } }
"""
PPO = """# puna ppo ppo
out = "runs/ppo"
start_from = "runs/sft"

[code]
files = ["problems.jsonl"]

[code.sandbox]
workers = 2
cpu_seconds = 2
wall_seconds = 60

[policy]
method = "dr_grpo"
prompts = 2
samples = 16
max_tokens = 60
minibatches = 1
kl_coefficient = 0.0

[train]
steps = 30
threads = 1
optim = { lr = 2e-3, weight_decay = 0.0 }
schedule = { kind = "constant", warmup_steps = 1 }
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with two problems, and a model that answers each with either of two programs, one of them right."""
    try:
        code_verifier(CodeConfig(files=(tmp_path,), sandbox=SandboxConfig(workers=2, cpu_seconds=2, wall_seconds=60)))
    except MissingError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    shape = ModelConfig(dim=48, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=512, max_seq_len=512)
    save_model(tmp_path / "start", init_weights(Transformer(shape), 0), shape, tokenizer=TOKENIZER)
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    asked = [task.payload.question for task in code_tasks(CodeConfig(files=(tmp_path / "problems.jsonl",)))]
    answers = [f"```python\ndef f(x):\n    return {body}\n```" for body in BODIES]
    dialogs = [Dialog.of(("user", question), ("assistant", answer)) for question in asked for answer in answers]
    (tmp_path / "dialogs.jsonl").write_text(
        "".join(json.dumps({"messages": dialog.as_messages()}) + "\n" for dialog in dialogs)
    )
    (tmp_path / "sft.toml").write_text(SFT)
    (tmp_path / "ppo.toml").write_text(PPO)
    assert puna(["sft", "sft.toml"]) == 0
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.slow  # a thousand programs
def test_a_policy_learns_which_program_passes_its_tests(workplace, capsys):
    assert puna(["ppo", "ppo.toml"]) == 0, capsys.readouterr().err
    lines = map(json.loads, (workplace / "runs/ppo/metrics.jsonl").read_text().splitlines())
    right = [line["correct"] for line in lines if line["kind"] == "rollout"]
    assert len(right) == 30
    first, last = sum(right[:4]) / 4, sum(right[-4:]) / 4
    assert first < 0.5 and last > first + 0.25, right
