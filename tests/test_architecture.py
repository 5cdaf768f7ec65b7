"""The house rules that a linter cannot hold, and the law that some rooms need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "puna"
FILES = sorted(SOURCE.rglob("*.py"))
WITHOUT_TORCH = ["core", "tokenizer", "lineage", "exercises", "evaluate", "serve", "data", "model/config.py", "planner"]
QUESTIONABLE_LINES = 500
LONG_FUNCTION_LINES = 120


def relative(path):
    return path.relative_to(SOURCE).as_posix()


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def calls(tree, *names):
    return [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in names
    ]


def test_no_file_needs_a_type_checking_block():
    assert [relative(p) for p in FILES if "TYPE_CHECKING" in p.read_text(encoding="utf-8")] == []


def test_only_the_console_prints():
    assert [relative(p) for p, t in TREES.items() if calls(t, "print") and relative(p) != "core/console.py"] == []


def test_rich_is_known_to_the_console_alone():
    users = [relative(p) for p, t in TREES.items() if any(m.split(".")[0] == "rich" for m in imported(t))]
    assert users == ["core/console.py"]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def test_every_import_is_absolute():
    assert sum(len(list(imported(tree))) for tree in TREES.values()) > len(FILES)


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "common", "misc", "tools"])
def test_no_file_is_a_drawer(name):
    assert [relative(p) for p in FILES if p.stem == name] == []


def test_a_file_beyond_five_hundred_lines_is_a_question():
    lines = {relative(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lines.items() if n > QUESTIONABLE_LINES} == {}


def test_no_function_is_longer_than_a_training_loop():
    long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION_LINES
    ]
    assert long == []


def test_every_file_opens_with_what_it_is():
    assert [relative(p) for p, t in TREES.items() if not (ast.get_docstring(t) or "").strip()] == []


def test_no_pickle_and_no_eval_in_the_package():
    runs_programs = {"sandbox/candidate.py", "sandbox/judge.py"}  # that is what they are for, behind walls
    assert {relative(p) for p, t in TREES.items() if calls(t, "eval", "exec")} == runs_programs
    assert [relative(p) for p, t in TREES.items() if "pickle" in set(imported(t))] == []


def test_nothing_reads_the_environment_for_its_behaviour_but_the_few_that_may():
    allowed = {"PUNA_HOME", "HF_TOKEN", "NO_COLOR"}
    allowed |= {"RANK", "LOCAL_RANK", "WORLD_SIZE"}  # torchrun's
    allowed |= {"OMP_WAIT_POLICY"}  # OpenMP's: set for torch, which asks it once, at its start
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Call, ast.Subscript)) and "os.environ" in ast.unparse(node).split("(")[0]:
                key = node.slice if isinstance(node, ast.Subscript) else (node.args or [None])[0]
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    found.add(key.value)
    assert found <= allowed


def test_rooms_without_torch_import_none_of_it():
    names = []
    for room in WITHOUT_TORCH:
        paths = [SOURCE / room] if room.endswith(".py") else sorted((SOURCE / room).rglob("*.py"))
        names += [f"puna.{relative(p).removesuffix('.py').replace('/', '.').removesuffix('.__init__')}" for p in paths]
    assert len(names) > len(WITHOUT_TORCH)
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_test_file_mirrors_a_source_file_or_stands_in_the_reference():
    """tests/<room>/test_<file>.py; the name may add a word after the file's: test_bpe_specials.py."""
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    folders = {p.parent.relative_to(ROOT / "tests").parts[0] for p in (ROOT / "tests").glob("*/**/test_*.py")}
    assert folders <= rooms | {"reference", "docs", "demo", "benchmarks", "recipes"}
