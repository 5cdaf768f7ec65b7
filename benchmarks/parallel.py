"""Parity of every layout with one process: largest relative differences of loss, norm, gradients and weights, 5 steps.

    python benchmarks/parallel.py [--quick] [--json]

Each group of layouts is one set of forked processes (gloo, fp32, one thread each) that trains a tiny model on packed
documents; single fp32 process beside it. `--quick` takes one layout of each kind, and of the pipeline two schedules.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.train import parity
from tests.train.ranks import run_ranks
from tests.train.test_parallel import GROUPS, LIMIT

from puna.train.parallel_config import ParallelConfig

QUICK = {
    2: [{"dp_shard": 2}, {"tp": 2}, {"cp": 2}, {"pp": 2}, {"pp": 2, "schedule": "zbv"}],
    4: [{"dp_replicate": 2, "dp_shard": 2}],
    8: [{"dp_shard": 2, "tp": 2, "pp": 2}, {"dp_shard": 2, "cp": 2, "tp": 2}],
}


def main() -> None:
    """Print a row a layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layout of each kind, under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    reference, rows, start = parity.alone(), {}, time.perf_counter()
    for world, changes in GROUPS.items():
        chosen = [change for change in changes if change in QUICK[world]] if options.quick else changes
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            layouts = [ParallelConfig(**change) for change in chosen]
            stories = run_ranks(world, parity.one_of, layouts, folder=Path(folder))[0]
        for change, story in zip(chosen, stories, strict=True):
            name = " ".join(f"{key}={value}" for key, value in change.items())
            rows[name] = apart = parity.furthest(story, reference)
            print(f"{world} processes  {name:48s} " + "  ".join(f"{k} {v:.1e}" for k, v in apart.items()))
        print(f"{world} processes: {time.perf_counter() - begun:.1f} s")
    worst = max(value for row in rows.values() for value in row.values())
    print(f"largest relative difference {worst:.1e}, allowed {LIMIT:.0e}; {time.perf_counter() - start:.1f} s in all")
    if options.json:
        print(json.dumps({"layouts": rows, "worst": worst, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
