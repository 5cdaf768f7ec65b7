"""A mixing law fitted on small runs: how well does it rank the mixes of larger ones?

RegMix's published runs: 512 mixes of 17 domains trained with a million parameters, 256 other mixes with 60 million. The
form of the law (the power that shares enter with) is chosen by cross-validation on the 512 runs alone; the 60M runs are
looked at once, by the law that was chosen. The published log-linear law (power 1) stands beside it.

    python benchmarks/mixing_law.py --json
    python benchmarks/mixing_law.py --quick --json     four folds instead of eight
"""

import argparse
import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.scaling.mixture import choose_power, fit_mixing_law, spearman

HOME = Path(os.environ.get("PUNA_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
WANTED = 0.95


def read(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the columns and the numbers of a published table."""
    with gzip.open(path, "rt") as file:
        head, *rows = csv.reader(file)
    return head[1:], np.array(rows, dtype=float)[:, 1:]


def main() -> None:
    """Choose, fit, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four folds")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--data", type=Path, default=HOME / "corpus" / "mixing", help="folder of RegMix's tables")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} is not there; name the folder of RegMix's tables with --data")
    domains, mixes = read(options.data / "train_mixture_1m.csv.gz")
    targets, losses = read(options.data / "train_pile_loss_1m.csv.gz")
    _, large_mixes = read(options.data / "test_mixture_60m.csv.gz")
    _, large_losses = read(options.data / "test_pile_loss_60m.csv.gz")
    chosen, trials = choose_power(mixes, losses, folds=4 if options.quick else 8)
    for trial in trials:
        print(
            f"held-out 1M runs, power {trial.power:4.2f}: Spearman median {np.median(trial.rank):.4f}, "
            f"least {trial.rank.min():.4f}; error {trial.error.mean():.4f} nats"
            + ("   <- chosen" if trial.power == chosen else "")
        )
    ranks: dict[float, list[float]] = {}
    for power in dict.fromkeys((chosen, 1.0)):
        law = fit_mixing_law(mixes, losses, domains=domains, targets=targets, power=power)
        predicted = law.predict(large_mixes)
        ranks[power] = [spearman(predicted[:, t], large_losses[:, t]) for t in range(len(targets))]
    print(f"{len(large_mixes)} runs of 60M, Spearman: chosen power {chosen:g}, log-linear 1")
    for t in np.argsort(ranks[chosen]).tolist():
        print(f"  {targets[t]:44} {ranks[chosen][t]:.4f}  {ranks[1.0][t]:.4f}")
    short = [targets[t] for t in range(len(targets)) if ranks[chosen][t] < WANTED]
    print(f"below {WANTED}: {', '.join(short) or 'none'}")
    if options.json:
        figures = {
            "power": chosen,
            "spearman_median": round(float(np.median(ranks[chosen])), 4),
            "spearman_min": round(min(ranks[chosen]), 4),
            "log_linear_median": round(float(np.median(ranks[1.0])), 4),
            "log_linear_min": round(min(ranks[1.0]), 4),
            "below": short,
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
