"""Predicted against published: peak memory by the dry run and by the planner, and speed, of other people's runs.

Every published peak that can be expressed is a row: a layout of torchtitan's tables, rehearsed on shapes by our own
trainer (`train/rehearsal.py`, one rank, this machine, no GPU), and predicted by the planner's formulas. Their software
differs from ours where it is known to, and the prediction says so: they hold all logits of the loss, keep every other
product (their per-operation recomputation), and keep the inputs of tensor-parallel products whole. What they print is
what PyTorch reserved, without the CUDA context. nanotron's peaks come from the file of published throughputs.

Then the three sizes of Llama 3 as the recipes have them: seconds and memory of the dry run itself, memory and speed
expected, with the published speed where there is one (2407.21783, table 4; its TFLOPS count the causal half).

    python benchmarks/dry_run.py              # about two minutes
    python benchmarks/dry_run.py --quick      # without the largest rehearsals, under 50 s
    python benchmarks/dry_run.py --json       # the last line is one JSON object

Sources: torchtitan benchmarks/llama3_h100_202412_torchtitan.md and llama3-8b_h200_202506_trainy-whitefiber.md;
nanotron's docs/benchmark_summary (file of published throughputs).
"""

import argparse
import functools
import json
import os
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from puna.core import config as configs
from puna.model.config import SIZES
from puna.planner.estimate import estimate
from puna.planner.hardware import read_cluster
from puna.planner.layout import STACKS, Degrees, Recompute, Workload
from puna.planner.memory import CONTEXT_BYTES, FRAGMENTS, GIB, rank_memory
from puna.planner.published import read_published
from puna.planner.shape import from_config
from puna.stages import dry_run, recipes
from puna.stages.pretrain import PretrainRecipe, ramp_of, shape_of
from puna.train.parallel_config import ParallelConfig, Work
from puna.train.rehearsal import Rehearsal, rehearse

DATA = Path(os.environ.get("PUNA_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
EAGER, COMPILED = STACKS["torch-eager"], STACKS["torch-compile"]
LATER = replace(COMPILED, logit_bytes=4.0)
"""From 2025 on torchtitan compiles the loss too: no fp32 copies of logits are left."""


@dataclass(frozen=True)
class Peak:
    """One published peak.

    Attributes:
        where: Table of the source, or its name.
        size: Of the model.
        gpus: The cluster.
        degrees: Layout.
        seq: Tokens of a sequence.
        micro: Sequences of a micro-batch of a data-parallel rank.
        n: Micro-batches.
        recompute: As they ran it.
        gib: Published.
        tokens: Published tokens/s and GPU.
        precision: Of the products.
        stages: Pipeline pieces a rank.
        later: Whether the loss was compiled.
        eager: Whether nothing was.
    """

    where: str
    size: str
    gpus: str
    degrees: Degrees
    seq: int
    micro: int
    n: int
    recompute: Recompute
    gib: float
    tokens: float
    precision: str = "fp8"
    stages: int = 1
    later: bool = False
    eager: bool = False

    @property
    def work(self) -> Workload:
        """For the planner."""
        return Workload(
            from_config(SIZES[self.size]),
            read_cluster(self.gpus),
            self.degrees,
            self.seq,
            global_batch=self.micro * self.n * self.degrees.data_parallel,
            micro_batch=self.micro,
            stages_per_rank=self.stages,
            recompute=self.recompute,
            precision=self.precision,  # pyright: ignore[reportArgumentType]
            stack=LATER if self.later else EAGER if self.eager else COMPILED,
        )


def _peaks() -> list[Peak]:
    h100, found = "H100-96GB", []
    for where, n, rows in (
        ("table 1", 8, ((82.4, 5762, "bf16"), (77.0, 6667, "bf16"), (76.8, 8532, "fp8"))),
        ("table 3", 128, ((67.0, 5605, "bf16"), (62.0, 6514, "bf16"), (61.8, 8380, "fp8"))),
    ):
        for number, (gib, tokens, precision) in enumerate(rows):
            layout = Degrees(dp_shard=n)
            found.append(
                Peak(
                    where,
                    "8B",
                    f"{n}x{h100}",
                    layout,
                    8192,
                    2,
                    1,
                    "alternate",
                    gib,
                    tokens,
                    precision,
                    eager=number == 0,
                )
            )
    for cp, gib, tokens in ((1, 83.9, 3890), (2, 84.2, 2540), (4, 84.0, 1071), (8, 84.5, 548)):
        layout = Degrees(dp_shard=8 // cp, cp=cp)
        found.append(Peak("table 2", "8B", f"8x{h100}", layout, 32_768 * cp, 1, 1, "full", gib, tokens))
    layout = Degrees(dp_shard=32, tp=8)
    found += [Peak("table 4", "70B", f"256x{h100}", layout, 8192, 16, 1, "full", 71.9, 829)]
    layout = Degrees(dp_shard=8, tp=8, pp=8)  # as many micro-batches as stages: its default then
    found += [
        Peak("table 5, 1F1B", "405B", f"512x{h100}", layout, 8192, 4, 8, "full", 82.5, 100),
        Peak("table 5, interleaved", "405B", f"512x{h100}", layout, 8192, 2, 16, "full", 72.7, 128, stages=2),
    ]
    for cp, gib, tokens in ((1, 75.3, 76), (2, 75.9, 47), (4, 77.1, 31), (8, 84.9, 16)):
        layout = Degrees(dp_shard=8 // cp, cp=cp, tp=8, pp=8)
        found.append(Peak("table 6", "405B", f"512x{h100}", layout, 32_768 * cp, 1, 8, "full", gib, tokens))
    for n, gib, tokens in ((32, 47.96, 10_938), (64, 46.97, 10_753)):
        layout = Degrees(dp_shard=n)
        found.append(Peak("H200, 2025", "8B", f"{n}xH200", layout, 8192, 2, 1, "alternate", gib, tokens, later=True))
    return found


@functools.cache
def _rehearsed(layout: ParallelConfig, size: str, work: Work) -> Rehearsal:
    """Rows that differ in precision or compilation alone are one rehearsal."""
    return rehearse(layout, SIZES[size], work)


def rehearsed(peak: Peak) -> tuple[float, float]:
    """GiB that PyTorch would reserve, by rehearsal of our trainer with their differences, and its seconds."""
    work, d = peak.work, peak.degrees
    layout = ParallelConfig(
        dp_shard=d.dp_shard,
        cp=d.cp,
        tp=d.tp,
        pp=d.pp,
        stages_per_rank=peak.stages if d.pp > 1 else 0,
        schedule="interleaved" if peak.stages > 1 else "1f1b",
        recompute="full" if peak.recompute == "full" else "selective",
    )
    found = _rehearsed(layout, peak.size, Work(peak.micro * d.data_parallel, peak.seq, peak.n, "cuda"))
    theirs = rank_memory(work)
    kept = found.activation_bytes * found.in_flight + found.block_bytes
    if peak.recompute == "alternate":  # half of the products that ours keeps: by the planner's formula
        kept = theirs.activations
    held = 16.0 * found.parameters + kept + theirs.logits + found.gathered_bytes
    return held * (1 + FRAGMENTS) / GIB, found.seconds


def compare(peaks: list[Peak], *, with_rehearsal: bool) -> dict[str, list[float]]:
    """Print a row a peak; errors by predictor."""
    errors: dict[str, list[float]] = {"planner": [], "dry_run": [], "speed": []}
    for peak in peaks:
        planned = (rank_memory(peak.work).total - CONTEXT_BYTES) / GIB
        speed = estimate(peak.work, chunked_logits=False).tokens_per_second_gpu
        errors["planner"].append(planned / peak.gib - 1)
        errors["speed"].append(speed / peak.tokens - 1)
        own = ""
        if with_rehearsal or peak.size != "405B":
            gib, _ = rehearsed(peak)
            errors["dry_run"].append(gib / peak.gib - 1)
            own = f"{gib:.1f} ({gib / peak.gib - 1:+.0%})"
        layout = f"{peak.size} {peak.degrees}, {peak.seq}, {peak.precision}"
        print(
            f"{peak.where:21s} {layout:45s} GiB {peak.gib:5.1f}; dry run {own:>13s}; planner {planned:5.1f} "
            f"({planned / peak.gib - 1:+.0%}); tok/s/GPU {peak.tokens:6,.0f}; planner {speed:6,.0f} "
            f"({speed / peak.tokens - 1:+.0%})"
        )
    return errors


def nanotron(path: Path) -> list[float]:
    """Errors of the planner's memory over the file of published throughputs."""
    if not path.exists():
        print(f"published throughputs are not at {path}; nanotron's peaks are left out")
        return []
    rows = [row for row in read_published(path)[0] if row.memory_gib]
    found = [(rank_memory(row.work).total - CONTEXT_BYTES) / GIB / (row.memory_gib or 1) - 1 for row in rows]
    worst = max(range(len(rows)), key=lambda i: abs(found[i]))
    print(
        f"nanotron: {len(rows)} peaks, median error {_median(found):.0%}, worst {found[worst]:+.0%}: "
        f"{rows[worst].model} {rows[worst].work.degrees}"
    )
    return found


def _median(errors: list[float]) -> float:
    return statistics.median(abs(e) for e in errors)


RECIPES = {
    "llama3-8b": (
        8,
        ["parallel.dp_shard=8", "parallel.dp_replicate=1", "data.rows=8", "parallel.recompute=selective"],
        None,
    ),
    "llama3-70b": (512, ["data.rows=16", "train.accumulation=32"], None),
    "llama3-405b": (16_384, [], 400.0),
}


def own(name: str) -> dict[str, float | None]:
    """The dry run of a recipe."""
    world, changes, published = RECIPES[name]
    recipe = configs.load(PretrainRecipe, recipes.find_recipe(name), changes).config
    shape, layout = shape_of(recipe), recipe.parallel.resolve(world)
    work = Work(recipe.data.rows, recipe.data.sequence_length, ramp_of(recipe).batches[-1], "cuda")
    found = dry_run.figures(shape, layout, work, f"{world}xH100", failures=2.2e-5)
    spent, tflops = found["dry_run"], found["tflops_gpu"]
    total = found["memory_bytes"]["total"] / GIB
    print(
        f"{name} on {world:,} H100: {total:.1f} GiB by the dry run, {found['memory_planner_bytes'] / GIB:.1f} by the "
        f"planner; {tflops['causal']:.0f} TFLOPS causal, {tflops['full']:.0f} full"
        + (f"; published {published:.0f} ({tflops['causal'] / published - 1:+.1%})" if published else "")
        + f". The dry run took {spent['seconds']:.1f} s and {spent['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    return {
        "gib": total,
        "tflops_causal": tflops["causal"],
        "tflops_published": published,
        "seconds": spent["seconds"],
        "peak_mib": spent["peak_memory_bytes"] / 2**20,
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=DATA / "planner" / "throughput_published.csv")
    parser.add_argument("--quick", action="store_true", help="leave out the rehearsals of 405B on torchtitan's layouts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    errors = compare(_peaks(), with_rehearsal=not options.quick)
    errors["nanotron"] = nanotron(options.file)
    for name, found in errors.items():
        if found:
            print(f"{name}: {len(found)} rows, median error {_median(found):.1%}, worst {max(found, key=abs):+.1%}")
    sizes = {name: own(name) for name in RECIPES if not (options.quick and name == "llama3-405b")}
    if options.json:
        scores = {
            name: {"n": len(e), "median": _median(e), "worst": max(e, key=abs)} for name, e in errors.items() if e
        }
        print(json.dumps({"errors": scores, "recipes": sizes}))


if __name__ == "__main__":
    sys.exit(main())
