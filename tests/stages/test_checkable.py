"""Programs as tasks: their answers are run, side by side, and right ones are kept."""

import json

import pytest

from puna.core.errors import ConfigError, MissingError
from puna.evaluate.run import evaluate, read_samples
from puna.evaluate.tasks.config import TaskConfig, build, build_all
from puna.post.rejection import BatchVerifier, verdicts
from puna.sandbox.program import SandboxConfig
from puna.stages.checkable import CodeConfig, code_tasks, code_verifier
from puna.stages.ppo import PpoRecipe
from tests.evaluate.fake_generator import FakeGenerator

ROWS = [
    {
        "text": "Add.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    },
    {
        "task_id": "H/1",
        "prompt": "def double(x):\n",
        "entry_point": "double",
        "test": "def check(f):\n    assert f(4) == 8",
        "canonical_solution": "    return 2 * x\n",
    },
]
LIMITS = SandboxConfig(workers=2, cpu_seconds=2, wall_seconds=60)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return CodeConfig(files=(path,), sandbox=LIMITS)


@pytest.fixture
def verifier(config):
    try:
        return code_verifier(config)
    except MissingError as error:
        pytest.skip(str(error))


def test_references_are_right_and_wrong_answers_are_counted_by_outcome(config, verifier):
    tasks = code_tasks(config)
    assert [task.id for task in tasks] == ["0:", "1:H/1"]
    assert isinstance(verifier, BatchVerifier)
    answers = [(task, task.reference or "") for task in tasks]
    answers += [(tasks[0], "```python\ndef add(a, b):\n    return 3\n```"), (tasks[0], "```python\n```")]
    answers += [(tasks[0], "```python\nimport os\nos._exit(0)\n```")]
    found = verdicts(verifier, answers)
    assert [(v.correct, v.reason) for v in found] == [
        (True, "correct"),
        (True, "correct"),
        (False, "failed"),
        (False, "no code"),
        (False, "crashed"),
    ]
    assert verifier(tasks[0], tasks[0].reference or "").correct


def test_rows_that_are_no_problems_are_told_together(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x"}\n{"text": "y", "test_list": []}\n')
    with pytest.raises(ConfigError) as caught:
        code_tasks(CodeConfig(files=(path,)))
    assert len(caught.value.problems) == 2 and "bad.jsonl:2" in caught.value.problems[1]


def test_a_recipe_asks_one_kind_of_thing(config):
    with pytest.raises(ValueError, match="give one of"):
        PpoRecipe(out="x", start_from="y", code=config, exercises={})


def test_an_evaluation_runs_the_programs(config, verifier, tmp_path):
    task = build(TaskConfig(kind="code", path=config.files[0], sandbox=LIMITS))
    right = {"Add.": "```python\ndef add(a, b):\n    return b + a\n```"}

    def answer(prompt):
        return next((code for start, code in right.items() if prompt.startswith(start)), "```python\nx\n```")

    results = evaluate(
        FakeGenerator(lambda p: answer(p if isinstance(p, str) else p.messages[-1].content)), [task], tmp_path
    )
    assert results["code"].score is not None and results["code"].score.value == 0.5
    assert sorted(row["reason"] for row in read_samples(tmp_path)) == ["correct", "failed"]


def test_a_file_that_cannot_be_continued_is_left_out_with_its_reason(config, verifier):
    built, skipped = build_all([TaskConfig(kind="code", path=config.files[0], style="text", sandbox=LIMITS)])
    assert built == [] and "set style=dialog" in skipped["code"]
