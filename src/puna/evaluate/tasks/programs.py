"""Programming problems from a file with tests: the model writes a program, the sandbox runs it.

`text` gives a base model the beginning of the function and cuts its continuation where the function ends, as HumanEval
does; `dialog` asks a chat model and takes the last code block of its answer. One greedy answer to each problem: the
figure is pass@1.

Source: Evaluating Large Language Models Trained on Code (2107.03374), Program Synthesis with Large Language Models
(2108.07732).
"""

from functools import partial
from pathlib import Path
from typing import Literal

from puna.core.errors import CorruptError
from puna.core.generator import Sampling
from puna.evaluate.few_shot import dialog_prompt
from puna.evaluate.task import AnswerItem, Judgement, Task
from puna.evaluate.tasks.rows import read_jsonl
from puna.sandbox.problems import CodeProblem, code_of, read_problem, verify_code
from puna.sandbox.program import SandboxConfig
from puna.sandbox.sandbox import Sandbox, shared_sandbox

FUNCTION_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def code_task(
    path: Path,
    *,
    name: str = "code",
    style: Literal["text", "dialog"] = "dialog",
    max_tokens: int = 512,
    limit: int | None = None,
    sandbox: SandboxConfig | None = None,
) -> Task:
    """Problems as HumanEval, MBPP or scripts have them.

    Args:
        path: JSON lines (`.gz` too) of rows that `sandbox/problems.py` reads.
        name: The task's name.
        style: `text` continues the beginning of a function, `dialog` asks.
        max_tokens: Bound of an answer.
        limit: Only the first so many problems.
        sandbox: Limits of the programs.

    Raises:
        CorruptError: A row is no problem, or has no beginning to continue and `style` is `text`.
        MissingError: The file is not there, or this machine cannot run programs safely.
    """
    box = shared_sandbox(sandbox or SandboxConfig())
    items = []
    for number, row in enumerate(read_jsonl(path, limit=limit), start=1):
        try:
            problem = read_problem(row)
        except ValueError as error:
            raise CorruptError(f"{path}, row {number}: {error}") from error
        if style == "text" and not problem.stub:
            raise CorruptError(f"{path}, row {number}: no beginning of a function to continue; set style=dialog")
        prompt = problem.stub if style == "text" else dialog_prompt((), problem.question)
        target = problem.reference or ""
        judge = partial(_judge, problem, style == "text", box)
        items.append(AnswerItem(problem.id or str(number), prompt, target, judge))
    return Task(
        name,
        tuple(items),
        "exact_match",
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0, stop=FUNCTION_ENDS if style == "text" else ()),
        about="programs that pass their tests",
        judged_at_once=box.n_workers,
    )


def _judge(problem: CodeProblem, continues: bool, box: Sandbox, answer: str) -> Judgement:
    code = problem.stub + answer if continues else code_of(answer)
    verdict = verify_code([problem], [code], box)[0]
    return Judgement(verdict.correct, "correct" if verdict.correct else verdict.outcome)
