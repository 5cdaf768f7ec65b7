"""How long `puna --help` takes, against a bare Python start and an import of click, each in a process of its own.

    python benchmarks/cli_start.py [--quick] [--json]

The three take turns, so that noise of the machine hits all; the best and the median of each are told.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PUNA = Path(sys.executable).with_name("puna")
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "click": [sys.executable, "-c", "import click"],
    "puna --help": [str(PUNA), "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 rounds instead of 40")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(10 if arguments.quick else 40):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    for name, values in times.items():
        print(f"{name:12s} best {min(values):.3f} s   median {statistics.median(values):.3f} s")
    if arguments.json:
        best, median = (function(times["puna --help"]) for function in (min, statistics.median))
        print(json.dumps({"help_seconds": best, "help_median_seconds": median, "python_seconds": min(times["python"])}))


if __name__ == "__main__":
    main()
