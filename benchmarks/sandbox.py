"""Programs per second through the sandbox, against a bare Python process for each, and what the walls cost.

    python benchmarks/sandbox.py --quick --json
    python benchmarks/sandbox.py --data humaneval/HumanEval.jsonl.gz

The bare process is `python -I -S program.py` with the test behind the program: no wall at all, and a verdict that the
program could forge by `sys.exit(0)`. With `--data` every canonical solution is run, and how many pass is told.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.sandbox.problems import read_problem, verify_code
from puna.sandbox.program import FunctionTests, Program, SandboxConfig
from puna.sandbox.sandbox import Sandbox

SOURCE = "def merge(a, b):\n    return sorted(a + b)\n"
TESTS = "def check(f):\n" + "".join(f"    assert f([{n}, 3], [2]) == sorted([{n}, 3, 2])\n" for n in range(10))


def rate(work: Callable[[], int]) -> float:
    """Units per second of one call."""
    start = time.perf_counter()
    n = work()
    return n / (time.perf_counter() - start)


def bare(n: int, folder: Path) -> int:
    """Run `n` programs as bare processes, one after another."""
    path = folder / "program.py"
    path.write_text(f"{SOURCE}\n{TESTS}\ncheck(merge)\n", encoding="utf-8")
    for _ in range(n):
        subprocess.run([sys.executable, "-I", "-S", str(path)], check=True, cwd="/")
    return n


def walled(n: int, box: Sandbox) -> int:
    """Run `n` programs in a sandbox."""
    verdicts = box.run_all([Program(SOURCE, FunctionTests(TESTS, "merge"))] * n)
    assert all(verdict.correct for verdict in verdicts), verdicts[0]
    return n


def canonical(path: Path, box: Sandbox) -> dict[str, Any]:
    """Run every canonical solution of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [read_problem(json.loads(line)) for line in file]
    start = time.perf_counter()
    verdicts = verify_code(problems, [problem.reference or "" for problem in problems], box)
    seconds = time.perf_counter() - start
    passed = sum(verdict.correct for verdict in verdicts)
    return {"canonical_passed": passed, "canonical": len(problems), "canonical_per_second": len(problems) / seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer programs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--data", type=Path, help="HumanEval.jsonl.gz")
    options = parser.parse_args()
    n = 60 if options.quick else 400
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        figures["bare_per_second_1"] = rate(lambda: bare(n, Path(folder)))
    with Sandbox() as box:
        cores = box.n_workers
    for workers in sorted({1, cores}):
        with Sandbox(SandboxConfig(workers=workers)) as box:
            walled(2 * workers, box)
            figures[f"programs_per_second_{workers}"] = rate(lambda box=box: walled(n, box))
            figures["walls"] = asdict(box.walls)
    for name in ("namespaces", "landlock", "filter"):
        with Sandbox(SandboxConfig(workers=1), without=(name,)) as box:
            walled(2, box)
            figures[f"without_{name}_per_second_1"] = rate(lambda box=box: walled(n, box))
    if options.data:
        with Sandbox() as box:
            figures |= canonical(options.data, box)
    for name, value in figures.items():
        print(f"{name:32} {value:.1f}" if isinstance(value, float) else f"{name:32} {value}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
