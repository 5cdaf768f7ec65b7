"""How well the planner predicts clusters that it has not seen, and how long a plan takes.

    python benchmarks/planner.py [--file published.csv] [--quick] [--json]

The file has published throughputs, one configuration a row (`puna plan --evaluate`). Its constants are fitted anew
without one source at a time, and that source is predicted: |predicted / measured - 1| of the step time. Leaving out a
whole family of software, or every row of a GPU, are harder tests. The targets are a median of 10 % and a 90th
percentile of 25 %.

`throughput_held_out.csv` beside this script has figures from elsewhere, which no fit sees: each row names its source.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from puna.core import console
from puna.model.config import SIZES
from puna.planner.fit import families, fit, leave_out, relative_errors, score, sources
from puna.planner.hardware import read_cluster
from puna.planner.published import read_published
from puna.planner.search import search
from puna.planner.shape import from_config
from puna.stages.planning import by_group, worst

DATA = Path(os.environ.get("PUNA_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
HELD_OUT = Path(__file__).with_name("throughput_held_out.csv")
PLANS = {"8B": ("8xH100", 1 << 20), "70B": ("512xH100", 4 << 20), "405B": ("16384xH100", 16 << 20)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=DATA / "planner" / "throughput_published.csv")
    parser.add_argument("--quick", action="store_true", help="plans for 8B alone")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    if not arguments.file.exists():
        print(f"published throughputs are not at {arguments.file}; name them with --file")
        sys.exit(3)
    rows, skipped = read_published(arguments.file)
    start = time.perf_counter()
    constants = fit(rows)
    fit_seconds = time.perf_counter() - start
    unseen = leave_out(rows, sources(rows))
    gpus = [row.work.cluster.gpu.name for row in rows]
    results = {
        "fitted": relative_errors(rows, constants),
        "source": unseen,
        "family": leave_out(rows, families(rows)),
        "gpu": leave_out(rows, gpus),
    }
    others, _ = read_published(HELD_OUT)
    held_out = relative_errors(others, constants)
    found: dict[str, object] = {"n": len(rows), "skipped": len(skipped), "fit_seconds": fit_seconds}
    for name, errors in results.items():
        median, p90 = score(errors).median, score(errors).p90
        print(f"{name:>8}: median {median:.1%}, 90th percentile {p90:.1%} over {len(rows)} rows")
        found[f"{name}_median"], found[f"{name}_p90"] = median, p90
    found["held_out"] = vars(score(held_out))
    console.table(
        "left out, one source at a time",
        ["source", "n", "median", "p90", "bias"],
        by_group(rows, unseen, sources(rows)),
    )
    console.table(
        "left out, one family at a time",
        ["family", "n", "median", "p90", "bias"],
        by_group(rows, results["family"], families(rows)),
    )
    console.table(
        "left out, one GPU at a time", ["GPU", "n", "median", "p90", "bias"], by_group(rows, results["gpu"], gpus)
    )
    console.table(
        f"{HELD_OUT.name}, which no fit sees",
        ["source", "n", "median", "p90", "bias"],
        [*by_group(others, held_out, sources(others)), *by_group(others, held_out, ["all"] * len(others))],
    )
    console.table("the twelve worst, left out by source", ["line", "error", "configuration"], worst(rows, unseen, 12))
    for size, (gpus, batch) in PLANS.items():
        if arguments.quick and size != "8B":
            continue
        start = time.perf_counter()
        plan = search(from_config(SIZES[size]), read_cluster(gpus), seq_len=8192, batch_tokens=batch)
        seconds, best = time.perf_counter() - start, plan.best[0]
        found[f"plan_seconds_{size}"] = seconds
        print(
            f"plan of {size} on {gpus}: {plan.tried:,} layouts in {seconds:.1f} s; {best.work.degrees}, "
            f"{best.tflops('causal'):.0f} TFLOPS"
        )
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
