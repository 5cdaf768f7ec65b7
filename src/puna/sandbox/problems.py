r"""Programming problems whose answers are judged by running them: rows with tests, the question, the code in an answer.

    {"prompt": "def f(x):\n  ...", "entry_point": "f", "test": "def check(candidate): ...", "canonical_solution": ...}
    {"prompt": "Write a function ...", "test_list": ["assert f(1) == 2", ...], "code": ..., "test_imports": [...]}
    {"prompt": "Read n, print ...", "inputs": ["3\n"], "outputs": ["9\n"], "code": ...}

The first is HumanEval's row, the second MBPP's (`text` may stand for `prompt`, `test_setup_code` for `test_imports`),
the third a script's. A row may hold `task_id` or `id`. Tests and solutions are compiled when they are read;
nothing is run.
"""

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.sandbox.program import FunctionTests, Program, ScriptTest, Verdict
from puna.sandbox.sandbox import Sandbox

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("python", "python3", "py")
_STARTS_CODE = re.compile(r"^(?:def |class |import |from |async def |@)", re.MULTILINE)
_TESTS_NOTHING = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
)
_NO_CODE = Verdict("failed", "no code")


@dataclass(frozen=True, slots=True)
class CodeProblem:
    """What to write, and what it is held against.

    Attributes:
        id: From the row, or empty.
        question: As a user asks it.
        tests: Functions that are called, or the cases of a script.
        stub: The beginning of the program (HumanEval), whose helpers every answer keeps; empty elsewhere.
        reference: A whole right program, when one is known.
    """

    id: str
    question: str
    tests: FunctionTests | tuple[ScriptTest, ...]
    stub: str = ""
    reference: str | None = None

    def programs(self, code: str) -> list[Program]:
        """What is run for an answer's code: one program, or one a case."""
        if isinstance(self.tests, FunctionTests):
            return [Program(self._whole(code), self.tests)]
        return [Program(code, case) for case in self.tests]

    def _whole(self, code: str) -> str:
        """The answer with what it needs of the stub: all of it before a body, the lines above the function else."""
        name = self.tests.entry_point if isinstance(self.tests, FunctionTests) else ""
        if not self.stub:
            return code
        defines = rf"^(?:async )?def {re.escape(name)}\b"
        if not re.search(defines, code, re.MULTILINE):
            return self.stub + code
        head = re.split(defines, self.stub, maxsplit=1, flags=re.MULTILINE)[0]
        return f"{head}\n{code}" if head.strip() else code


def read_problem(row: Mapping[str, Any]) -> CodeProblem:
    """The problem of a row.

    Args:
        row: A JSON object in one of the three forms.

    Raises:
        ValueError: It is in none of them, or its Python cannot be; the message says what is missing or wrong.
    """
    name = str(row.get("task_id", row.get("id", "")))
    if "entry_point" in row or "test" in row:
        stub, entry, test = (_text(row, key) for key in ("prompt", "entry_point", "test"))
        question = (
            f"Complete this Python function and answer with the whole function.\n\n```python\n{stub.rstrip()}\n```"
        )
        solution = row.get("canonical_solution")
        reference = stub + _text(row, "canonical_solution") if solution is not None else None
        _check_function(stub, entry, test, reference)
        return CodeProblem(name, question, FunctionTests(test, entry), stub, reference)
    if not {"prompt", "text"} & row.keys():
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"has the keys {keys}; a problem has its question in 'prompt' or 'text'")
    asked = _text(row, "prompt" if "prompt" in row else "text")
    reference = _text(row, "code") if row.get("code") is not None else None
    _compiled(reference or "", "'code'")
    if "test_list" in row:
        tests = _texts(row, "test_list")
        imports = row.get("test_imports", row.get("test_setup_code")) or ""
        setup = imports if isinstance(imports, str) else "\n".join(map(str, imports))
        shown = "\n".join(tests)
        _compiled(setup, "'test_imports'" if "test_imports" in row else "'test_setup_code'")
        for number, test in enumerate(tests, start=1):
            _compiled(test, f"test {number} of 'test_list'")
        question = f"{asked.strip()}\nThe code must pass these tests:\n\n```python\n{shown}\n```"
        return CodeProblem(name, question, FunctionTests(f"{setup}\n{shown}\n"), "", reference)
    if "inputs" in row or "outputs" in row:
        given, wanted = _texts(row, "inputs"), _texts(row, "outputs")
        if len(given) != len(wanted):
            raise ValueError(f"{len(given)} inputs and {len(wanted)} outputs; each input needs its output")
        question = f"{asked.strip()}\nWrite a Python program that reads standard input and prints the answer."
        return CodeProblem(name, question, tuple(map(ScriptTest, given, wanted)), "", reference)
    raise ValueError("no tests: a row needs `test` and `entry_point`, or `test_list`, or `inputs` and `outputs`")


def _check_function(stub: str, entry: str, test: str, reference: str | None) -> None:
    tests = _compiled(test, "'test'")
    if "check" not in _defined(tests) and all(
        isinstance(node, _TESTS_NOTHING) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tests.body
    ):
        raise ValueError("'test' defines no check(candidate) and asserts nothing by itself")
    if reference is not None:
        known = entry in _defined(_compiled(reference, "'canonical_solution' behind 'prompt'"))
    else:
        known = "def " not in stub or re.search(rf"\b{re.escape(entry)}\b", stub) is not None
    if not known:
        raise ValueError(f"'entry_point' is {entry!r}, which 'prompt' does not define")


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module gives at its top level."""
    assigned = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    names = {target.id for target in assigned if isinstance(target, ast.Name)}
    given = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return names | {node.name for node in tree.body if isinstance(node, given)}


def _compiled(source: str, what: str) -> ast.Module:
    """The syntax tree of code that compiles; nothing of it is run.

    Raises:
        ValueError: It does not compile.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its style: invalid escapes, `is` with a literal
            tree = ast.parse(source)
            compile(tree, what, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(f"{what} is no Python: {error.msg}, in its line {error.lineno}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is no Python: {error}") from error
    return tree


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be a text that is not empty, got {value!r:.60}")
    return value


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{key!r} must be a list of texts that is not empty, got {value!r:.60}")
    return value


def code_of(answer: str) -> str:
    """The program in an answer: its last Python block, else its last block, else from what begins like Python."""
    blocks = _FENCE.findall(answer)
    python = [code for language, code in blocks if language.lower() in _PYTHON]
    if blocks:
        return (python or [code for _, code in blocks])[-1]
    found = _STARTS_CODE.search(answer)
    return answer[found.start() :] if found else answer


def verify_code(problems: Sequence[CodeProblem], codes: Sequence[str], sandbox: Sandbox) -> list[Verdict]:
    """Run programs against the tests of their problems, side by side.

    Args:
        problems: One an answer.
        codes: The programs, as `code_of` finds them.
        sandbox: Where they run.

    Returns:
        A verdict for each; a problem with several cases stops at the first that is not passed.
    """
    wanted = [problem.programs(code) if code.strip() else [] for problem, code in zip(problems, codes, strict=True)]
    return sandbox.run_groups(wanted, empty=_NO_CODE)
