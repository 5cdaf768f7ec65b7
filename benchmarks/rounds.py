"""Two rounds with simulated annotators, over seeds: what are the checks worth, and does a round make a better model?

Each seed draws other questions, answers and labels, from one starting model. The settings of the recipe were chosen in
view of seed 1, so the seeds of the table are others; `--seeds 1` shows that one.

    bad found       precision and recall of the annotators that the checks left out, of four bad ones among ten
    D-S - majority  Dawid-Skene's share of right sides less that of a majority vote, all annotators, same items
    RM - raw        accuracy of the reward model of checked labels less that of one of the labels as they came
    round - start   right answers of the round's model less the starting model's, on the same held-out questions
    2 - 1           the same of round 2 against round 1

Differences are paired, with 95 % intervals. Over seeds: labels and pairs of answers are other items in each seed, and
are counted together (Agresti and Min; McNemar); questions are the same in each seed, and a question counts once, with
the mean over the seeds. These intervals know the spread over items; `seeds` is how many seeds lie on the good side.

    python benchmarks/rounds.py                   # seeds 2 and 3, some six minutes each on two quiet cores, resumable
    python benchmarks/rounds.py --seeds 1,2,3
    python benchmarks/rounds.py --quick           # two seeds of a tiny model, under 50 s; too small to show a gain
    python benchmarks/rounds.py --json            # the last line is one JSON object
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from puna.checkpoint.format import save_model
from puna.cli.main import run as puna
from puna.cli.threads import choose_waiting
from puna.core import console
from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.evaluate.run import read_samples
from puna.evaluate.statistics import Paired, paired_difference
from puna.exercises.generate import texts
from puna.model.config import ModelConfig
from puna.model.cpu_memory import keep_freed_memory
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer import train as tokenizer_training

STAGED = {"labels": "D-S - majority", "reward": "RM - raw"}
SCORED = {"first": "round 1 - start", "last": "round 2 - start", "step": "2 - 1"}

_TRAIN = "threads = 1, optim = { lr = 1e-3, weight_decay = 0.0 }, schedule = { warmup_steps = 1 }"
TINY_KIND = "end_letter"
TINY_SFT = f"""out = "start/sft"
start_from = "start/new"
exercises = {{ n = 2000, kinds = ["{TINY_KIND}"], levels = [1] }}
data = {{ rows = 8, sequence_length = 128 }}
train = {{ steps = 80, threads = 1, optim = {{ lr = 6e-3 }}, schedule = {{ warmup_steps = 5 }} }}
"""
TINY = f"""out = "runs/rounds"
start_from = "start/sft"
rounds = 2
exercises = {{ kinds = ["{TINY_KIND}"], levels = [1] }}
items = {{ n = 100, gold = 10, max_tokens = 12 }}
annotate = {{ by = "simulator", adjudicate = 10, collection = {{ overlap = 5, gate_accuracy = 0.0 }} }}
check_labels = {{ quality = {{ resamples = 0 }} }}
gate = {{ margin = 1.0 }}
[reward]
check_prompts = 100
against_raw = true
data = {{ rows = 4, sequence_length = 128 }}
check = {{ min_pairs = 1, min_accuracy = 0.0, max_calibration_error = 1.0, min_accuracy_shorter = 0.0 }}
train = {{ steps = 20, {_TRAIN} }}
[sampling]
n = 100
draw = {{ samples_per_task = 4, max_tokens = 12, tasks_per_call = 50, selection = "best" }}
[sft]
data = {{ rows = 4, sequence_length = 128 }}
train = {{ steps = 5, {_TRAIN} }}
[[tasks]]
kinds = ["{TINY_KIND}"]
levels = [1]
limit = 100
max_tokens = 12
"""


def tiny_start() -> None:
    """A starting model of some hundred thousand weights and the recipe of its rounds, in the present folder."""
    words = texts("train", n=1000, seed=0, kinds=(TINY_KIND,), levels=(1,))
    tokenizer = tokenizer_training.train_bpe(words, vocab_size=640)
    shape = ModelConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=192, vocab_size=640, max_seq_len=256, rope_theta=10_000
    )
    save_model(Path("start/new"), init_weights(Transformer(shape), 0), shape, tokenizer=tokenizer)
    for name, text in (("sft", TINY_SFT), ("rounds", TINY)):
        Path(f"{name}.toml").write_text(text)
    assert puna(["sft", "sft.toml"]) == 0


def pooled(parts: Sequence[Mapping[str, Any]]) -> Paired:
    """Differences over other items in each part, counted together.

    Args:
        parts: Paired differences of scores that are 0 or 1.
    """
    a, b = list[int](), list[int]()
    for part in parts:
        same = part["n"] - part["only_a"] - part["only_b"]
        a += [1] * part["only_a"] + [0] * (part["only_b"] + same)
        b += [0] * part["only_a"] + [1] * part["only_b"] + [0] * same
    return paired_difference(a, b)


def answers(folder: Path) -> dict[tuple[str, str], float]:
    """Whether each question of an evaluation was answered rightly."""
    return {(row["task"], row["id"]): float(row["scores"]["exact_match"]) for row in read_samples(folder)}


def over_seeds(pairs: Sequence[tuple[Path, Path]]) -> Paired:
    """The paired difference of two evaluations in each seed, over questions: each counts once, with its mean."""
    sides = [[answers(folder) for folder in side] for side in zip(*pairs, strict=True)]
    keys = sorted(set.intersection(*(set(one) for side in sides for one in side)))
    before, after = ([float(np.mean([one[key] for one in side])) for key in keys] for side in sides)
    return paired_difference(before, after)


def rounds_of(recipe: str, seed: int, out: Path) -> dict[str, Any]:
    """Run the two rounds of a seed, or go on with them, and read their figures."""
    code = puna(["round", recipe, f"seed={seed}", f"out={out}"])
    if code not in (0, 4):  # 4: the last round was refused, which is a result
        raise PunaError(f"the rounds of seed {seed} ended with exit code {code}")
    return read_json(out / "summary.json")


def compared(found: Mapping[int, Mapping[str, Any]], places: Mapping[int, Path]) -> dict[str, Any]:
    """Every difference of every seed, and over all seeds."""
    labels = {
        (s, e["round"]): e["labels"]["against_truth"]["dawid_skene_over_majority"]
        for s, f in found.items()
        for e in f["rounds"]
    }
    reward = {(s, e["round"]): e["reward"]["checked_over_raw"] for s, f in found.items() for e in f["rounds"]}
    staged = {"labels": labels, "reward": reward}
    result: dict[str, Any] = {}
    for key, parts in staged.items():
        by_seed = {seed: pooled([part for (s, _), part in parts.items() if s == seed]) for seed in found}
        result[key] = _row(by_seed, pooled(list(parts.values())))
    for key in SCORED:
        pairs = {seed: _ends(key, found[seed], places[seed]) for seed in found}
        by_seed = {seed: over_seeds([pair]) for seed, pair in pairs.items()}
        result[key] = _row(by_seed, over_seeds(list(pairs.values())))
    return result


def _ends(key: str, found: Mapping[str, Any], home: Path) -> tuple[Path, Path]:
    """The scores before and after; a round that was refused ends with the model before it."""
    scores = [home / "start" / "scores"]
    for entry in found["rounds"]:
        own = home / f"round-{entry['round']}" / "scores"
        scores.append(own if entry["decision"]["accepted"] else scores[-1])
    return {"first": (scores[0], scores[1]), "last": (scores[0], scores[-1]), "step": (scores[1], scores[-1])}[key]


def _row(by_seed: Mapping[int, Paired], together: Paired) -> dict[str, Any]:
    return {
        "by_seed": {str(seed): asdict(one) for seed, one in by_seed.items()},
        "together": asdict(together),
        "seeds_above_0": sum(one.difference > 0 for one in by_seed.values()),
    }


def show(found: Mapping[int, Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    """Tables of who was found, and of the differences."""
    rows = []
    for seed, figures in found.items():
        for entry in figures["rounds"]:
            truth, reward = entry["labels"]["against_truth"], entry["reward"]
            cells = [truth[key] for key in ("precision", "recall", "raw_labels", "majority", "dawid_skene", "kept")]
            cells += [reward[key]["accuracy"]["value"] for key in ("raw", "checked")]
            cells += [next(iter(entry["scores"].values()))["value"] if "scores" in entry else None]
            told = "accepted" if entry["decision"]["accepted"] else "refused"
            rows.append([seed, entry["round"], *("-" if c is None else f"{100 * c:.1f}" for c in cells), told])
    columns = ["seed", "round", "bad: precision", "recall", "labels", "majority", "D-S", "kept rows"]
    columns += ["RM raw", "RM checked", "right answers", "gate"]
    console.table("shares of what is right, %", columns, rows)

    def told(one: Mapping[str, Any]) -> str:
        return f"{100 * one['difference']:+.2f} [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}]"

    table = []
    for key, name in (STAGED | SCORED).items():
        row = result[key]
        cells = [told(one) for one in row["by_seed"].values()]
        seeds = f"{row['seeds_above_0']} of {len(found)}"
        table.append([name, *cells, told(row["together"]), f"{row['together']['p_value']:.2g}", seeds])
    heads = ["points", *(f"seed {seed}" for seed in found), "over seeds", "p", "seeds above 0"]
    console.table("paired differences with 95 % intervals", heads, table)


def main() -> None:
    """Parse the command line, run or continue the rounds of each seed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds of a tiny model, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--seeds", default="2,3", help="which seeds, with commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs/round"), help="folder of the rounds and their start")
    args = parser.parse_args()
    try:
        seeds = sorted({int(part) for part in args.seeds.split(",")})
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}; give whole numbers with commas between, as 2,3")
    choose_waiting()
    keep_freed_memory()
    if args.quick:
        with tempfile.TemporaryDirectory(prefix="puna-rounds-") as folder, chdir(folder):
            tiny_start()
            report = run(seeds[:2], Path("runs"), "rounds.toml")
    else:
        report = run(seeds, args.runs, "round/two")
    if args.json:
        print(json.dumps(report))


def run(seeds: Sequence[int], home: Path, recipe: str) -> dict[str, Any]:
    """The rounds of every seed, and their comparison."""
    places = {seed: home / f"two-{seed}" for seed in seeds}
    found = {seed: rounds_of(recipe, seed, places[seed]) for seed in seeds}
    result = compared(found, places)
    show(found, result)
    return {"seeds": {str(seed): figures["rounds"] for seed, figures in found.items()}, **result}


if __name__ == "__main__":
    main()
