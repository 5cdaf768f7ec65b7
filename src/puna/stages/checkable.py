"""What a model can be asked with an answer that can be checked: exercises, and programs that are run against tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from puna.core.config import Config
from puna.core.dialog import Dialog, Message
from puna.post.dialogs import RowError, read_each, read_prompts
from puna.post.rejection import Task, Verdict
from puna.post.rows import Row
from puna.sandbox.problems import CodeProblem, code_of, read_problem, verify_code
from puna.sandbox.program import SandboxConfig
from puna.sandbox.sandbox import Sandbox, shared_sandbox


class CodeConfig(Config):
    """Programming problems whose answers are run."""

    files: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of problems with tests, in the form of HumanEval, of MBPP, or of scripts with inputs and outputs."""
    n: int | None = Field(default=None, ge=1)
    """Only the first so many; all when not set."""
    sandbox: SandboxConfig = SandboxConfig()
    """Limits of the programs."""


@dataclass(frozen=True, slots=True)
class Word:
    """A verdict in words that can be counted.

    Attributes:
        correct: Whether the program passed its tests.
        reason: `correct`, or the outcome.
    """

    correct: bool
    reason: str


@dataclass(frozen=True)
class CodeVerifier:
    """Runs the program in an answer against its task's tests.

    Attributes:
        sandbox: Where it runs.
    """

    sandbox: Sandbox

    def __call__(self, task: Task, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.judge_all([(task, answer)])[0]

    def judge_all(self, pairs: Sequence[tuple[Task, str]]) -> Sequence[Verdict]:
        """The verdict on each answer to its task, as many at once as the sandbox has workers."""
        found = verify_code([task.payload for task, _ in pairs], [code_of(answer) for _, answer in pairs], self.sandbox)
        words = [("no code" if one.reason == "no code" else one.outcome) for one in found]
        return [Word(v.correct, "correct" if v.correct else word) for v, word in zip(found, words, strict=True)]


def check_files(prompts: Sequence[Path], code: CodeConfig | None) -> None:
    """Tell what is wrong with files that are there, before a run.

    Raises:
        ConfigError: Rows of them cannot be used, all told together.
    """
    if prompts and all(path.exists() for path in prompts):
        read_prompts(prompts)
    if code is not None and all(path.exists() for path in code.files):
        code_tasks(code)


def code_verifier(config: CodeConfig) -> CodeVerifier:
    """The verifier of such tasks.

    Raises:
        MissingError: This machine cannot run programs safely.
    """
    return CodeVerifier(shared_sandbox(config.sandbox))


def code_tasks(config: CodeConfig) -> list[Task]:
    """The problems as tasks; the payload is the problem.

    Raises:
        MissingError: A file is not there.
        ConfigError: Rows that are no problems, all told together.
    """

    def parse(row: Row) -> CodeProblem:
        try:
            return read_problem(row.value)
        except ValueError as error:
            raise RowError(str(error)) from error

    problems = list(read_each(config.files, parse, what="programming problems", max_problems=20))[: config.n]
    return [
        Task(
            id=f"{number}:{problem.id}",
            prompt=Dialog((Message("user", problem.question),)),
            reference=f"```python\n{problem.reference.rstrip()}\n```" if problem.reference else None,
            payload=problem,
        )
        for number, problem in enumerate(problems)
    ]
