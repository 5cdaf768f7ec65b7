"""Rows with tests: what is asked, what is run, and that right programs pass."""

import gzip
import json
import os
import warnings
from pathlib import Path

import pytest

from puna.core.errors import MissingError
from puna.sandbox.problems import code_of, read_problem, verify_code
from puna.sandbox.program import FunctionTests, Program, SandboxConfig, ScriptTest
from puna.sandbox.sandbox import Sandbox

HUMANEVAL = {
    "task_id": "T/0",
    "prompt": 'import math\n\ndef twice(x):\n    return 2 * x\n\n\ndef root(x):\n    """ Root of twice x. """\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(twice(x))\n",
    "test": "def check(candidate):\n    assert candidate(8) == 4.0\n    assert candidate(twice(4)) == 4.0\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function that sorts a list in place.",
    "code": "def order(x):\n    x.sort()",
    "test_setup_code": "import collections",
    "test_list": ["a = [2, 1]\norder(a)\nassert a == [1, 2]", "assert order([]) is None"],
}
SCRIPT = {
    "id": "s",
    "prompt": "Square.",
    "inputs": ["3\n", "4\n"],
    "outputs": ["9", "16\n"],
    "code": "print(int(input()) ** 2)",
}


@pytest.fixture(scope="module")
def box():
    try:
        with Sandbox(SandboxConfig(workers=2, cpu_seconds=10, wall_seconds=60)) as sandbox:
            yield sandbox
    except MissingError as error:
        pytest.skip(str(error))


def judged(box, row, answer: str):
    return verify_code([read_problem(row)], [code_of(answer)], box)[0]


@pytest.mark.parametrize("row", [HUMANEVAL, MBPP, SCRIPT], ids=["humaneval", "mbpp", "script"])
def test_a_reference_passes_in_each_form(box, row):
    problem = read_problem(row)
    assert problem.reference is not None
    verdict = verify_code([problem], [problem.reference], box)[0]
    assert verdict.correct, verdict
    assert not verify_code([problem], ["def f():\n    pass"], box)[0].correct


def test_an_answer_may_be_the_whole_function_or_its_body(box):
    assert judged(box, HUMANEVAL, "```python\ndef root(x):\n    return math.sqrt(twice(x))\n```").correct
    assert judged(box, HUMANEVAL, "Here:\n```python\n    return (2 * x) ** 0.5\n```\nDone.").correct
    assert judged(
        box, HUMANEVAL, "```\ndef root(x):\n    return x\n```\nNo, rather\n```py\ndef root(x):\n    return (2*x)**.5"
    ).correct
    assert judged(box, HUMANEVAL, "I do not know.").reason.startswith("the program raised SyntaxError")
    assert judged(box, HUMANEVAL, "```python\n```").reason == "no code"


def test_a_script_stops_at_the_first_wrong_case(box):
    verdict = judged(box, SCRIPT, "print(9)")
    assert (verdict.outcome, verdict.reason) == ("failed", "case 2 of 2: other output")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "no tests"),
        ({"prompt": "x", "entry_point": "f"}, "'test' must be a text"),
        ({"prompt": "x", "test_list": []}, "'test_list' must be a list"),
        ({"prompt": "x", "inputs": ["1"], "outputs": []}, "'outputs' must be a list"),
        ({"prompt": "x", "inputs": ["1"], "outputs": ["1", "2"]}, "1 inputs and 2 outputs"),
        ({"test_list": ["assert 1"]}, "a problem has its question in 'prompt' or 'text'"),
    ],
)
def test_a_row_without_what_it_needs_is_refused_by_name(row, said):
    with pytest.raises(ValueError, match=said):
        read_problem(row)


def test_tests_use_objects_of_the_program_as_they_are(box):
    program = """
class Stack:
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, x):
        self.items.append(x)
        return self
    def __len__(self):
        return len(self.items)
    def __getitem__(self, n):
        return self.items[n]
    def __iter__(self):
        return iter(self.items)
def make():
    return Stack([1])
def count():
    n = 0
    while True:
        yield n
        n += 1
def fail(x):
    raise ValueError(f"no {x}")
LIMIT = 3
"""
    tests = """
import itertools
s = make().push(2)
assert len(s) == 2 and s[1] == 2 and list(s) == [1, 2] and 2 in s
assert Stack([5]).items == [5]
assert list(itertools.islice(count(), 3)) == [0, 1, 2]
assert LIMIT == 3
try:
    fail(1)
    raise AssertionError("nothing raised")
except ValueError as error:
    assert str(error) == "no 1"
"""
    verdict = box.run(Program(program, FunctionTests(tests)))
    assert verdict.correct, verdict


@pytest.mark.parametrize(
    "value",
    [
        "-0.0",
        "1e400",
        "10**40",
        "{1: (2, [3])}",
        "{(1, 2)}",
        "frozenset([1])",
        "b'\\x00'",
        "'\\ud800'",
        "2j",
        "[None, True]",
    ],
)
def test_plain_data_crosses_as_it_is(box, value):
    tests = f"given = f()\nassert given == {value} and type(given) is type({value}) and repr(given) == repr({value})"
    verdict = box.run(Program(f"def f():\n    return {value}", FunctionTests(tests)))
    assert verdict.correct, verdict


def test_a_value_that_contains_itself_is_no_answer(box):
    assert (
        box.run(Program("def f():\n    a = []\n    a.append(a)\n    return a", FunctionTests("assert f()"))).outcome
        == "failed"
    )


def test_tests_that_are_wrong_are_refused_not_held_against_the_program(box):
    program = "def f(x):\n    return 1"
    assert box.run(Program(program, FunctionTests("assert ("))).outcome == "refused"
    assert box.run(Program(program, FunctionTests("assert f(lambda: 1) == 1"))).outcome == "refused"
    assert box.run(Program("x = 1", ScriptTest("a" * 9_000_000, ""))).outcome == "refused"


def test_every_canonical_solution_of_humaneval_passes_and_no_empty_one(box):
    root = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    path = root / "benchmarks" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there; set PUNA_TEST_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [read_problem(json.loads(line)) for line in file]
    passed = verify_code(problems, [p.reference or "" for p in problems], box)
    assert [v for v in passed if not v.correct] == []
    assert len(passed) == 164
    empty = verify_code(problems[:20], [p.stub + "    pass\n" for p in problems[:20]], box)
    assert not any(v.correct for v in empty)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            HUMANEVAL | {"test": "def check(f):\n    assert f(1) ==\n"},
            "'test' is no Python: invalid syntax, in its line 2",
        ),
        (HUMANEVAL | {"test": "def test(f):\n    assert f(8) == 4\n"}, "no check"),
        (HUMANEVAL | {"entry_point": "roots"}, "'entry_point' is 'roots', which 'prompt' does not define"),
        (HUMANEVAL | {"entry_point": "roots", "canonical_solution": None}, "'entry_point' is 'roots'"),
        (HUMANEVAL | {"canonical_solution": "    return math.sqrt(\n"}, "'canonical_solution' behind 'prompt' is no"),
        (HUMANEVAL | {"canonical_solution": "\nreturn 3\n"}, "outside function"),
        (MBPP | {"test_list": ["assert order([]) is None", "assert order("]}, "test 2 of 'test_list' is no Python"),
        (MBPP | {"test_setup_code": "import"}, "'test_setup_code' is no Python"),
        (MBPP | {"code": "def order(x) x"}, "'code' is no Python"),
        (SCRIPT | {"code": "print('\0')"}, "'code' is no Python"),
    ],
)
def test_python_that_cannot_be_is_told_when_it_is_read(row, told):
    with pytest.raises(ValueError, match=told):
        read_problem(row)


def test_what_compiles_is_not_run_and_its_style_is_not_judged():
    code = "import re\nraise SystemExit(re.compile('\\d'))"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_problem(MBPP | {"code": code}).reference == code
    assert "assert root(8) == 4.0" in repr(read_problem(HUMANEVAL | {"test": "assert root(8) == 4.0\n"}).tests)
