"""`puna train RECIPE --dry-run --world-size N`: one rank of a large run on shapes, before anything is rented.

What is counted comes from the real model (`train/rehearsal.py`): parameters, memory by kind, bytes on each link, the
pipeline's order. What is expected of hardware comes from the planner: seconds, tokens, TFLOPS, goodput. A layout that
cannot fit is refused, with the nearest one that does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from puna.core import console
from puna.core.errors import ConfigError, UsageError
from puna.model.config import ModelConfig
from puna.planner import goodput
from puna.planner.estimate import Estimate, estimate
from puna.planner.hardware import read_cluster
from puna.planner.layout import Degrees, Workload
from puna.planner.memory import CONTEXT_BYTES, FRAGMENTS, LOGIT_CHUNK_BYTES
from puna.planner.search import nearest_fitting, smaller_micro_batches
from puna.planner.shape import from_config
from puna.stages.planning import PROVENANCE, STORAGE_BYTES_PER_SECOND
from puna.stages.pretrain import PretrainRecipe, ramp_of, shape_of
from puna.stages.stage import PlanRow
from puna.train.parallel_config import IMPOSSIBLE, ParallelConfig, Work, check, degree_problems


@dataclass(frozen=True)
class Saves:
    """How often a run writes checkpoints: every so many seconds or, where that is 0, steps."""

    seconds: float
    steps: int


def dry_run(recipe: PretrainRecipe, *, world_size: int, gpu: str, failures: float, as_json: bool) -> None:
    """Rehearse, print, refuse what cannot fit.

    Args:
        recipe: The checked recipe.
        world_size: Processes in all.
        gpu: Name of the card.
        failures: Interruptions an hour and GPU.
        as_json: One JSON object as the last line.

    Raises:
        ConfigError: The layout cannot be.
        UsageError: It does not fit the card's memory.
    """
    shape, data = shape_of(recipe), recipe.data
    layout = _resolved(recipe.parallel, shape, world_size)
    works = [Work(data.rows, data.sequence_length, n, "cuda") for n in ramp_of(recipe).batches]
    for work in works:
        check(layout, shape, work)
    work = works[-1]  # the largest batch of a growing one, where most of the time is spent
    train = recipe.train
    every = Saves(seconds=train.save_every_seconds, steps=train.save_every_steps)
    gpus = f"{world_size}x{gpu}"
    result = figures(shape, layout, work, gpus, failures=failures, saves=every)
    load = _workload(layout, shape, work, gpus)
    total, limit = result["memory_bytes"]["total"], result["memory_limit_bytes"]
    if not as_json:
        console.table("", ["what", "value"], _rows(result, layout, load))
    if total > limit:
        result["nearest"] = _what_fits(load)
    if as_json:
        console.write(json.dumps(result) + "\n")
    if total > limit:
        raise UsageError(
            f"this layout needs {console.short_bytes(total)} on its first rank, a {load.cluster.gpu.name} has "
            f"{console.short_bytes(limit)}. " + result["nearest"]
        )


def _resolved(parallel: ParallelConfig, shape: ModelConfig, world_size: int) -> ParallelConfig:
    """The layout with every degree known; what the model says against the degrees is told with what the number says."""
    try:
        return parallel.resolve(world_size)
    except ConfigError as error:
        raise ConfigError([*degree_problems(parallel, shape), *error.problems], title=IMPOSSIBLE) from error


def figures(
    shape: ModelConfig, layout: ParallelConfig, work: Work, gpus: str, *, failures: float, saves: Saves | None = None
) -> dict[str, Any]:
    """Rehearse one rank and put together what is counted and what is expected, in JSON types.

    Args:
        shape: The model.
        layout: Every degree known, checked.
        work: The step.
        gpus: The cluster, like `512xH100`.
        failures: Interruptions an hour and GPU.
        saves: How often checkpoints are written; None takes the best interval.
    """
    from puna.train.rehearsal import rehearse

    load = _workload(layout, shape, work, gpus)
    found, expected = rehearse(layout, shape, work), estimate(load)
    memory = _memory(found, layout, expected)
    total, limit = sum(memory.values()), load.cluster.gpu.memory_gib * 2**30
    every = None if saves is None else saves.seconds or saves.steps * expected.seconds or None
    return _result(found, expected, memory, shape, failures, every) | {
        "fits": total <= limit,
        "memory_limit_bytes": limit,
    }


def _what_fits(load: Workload) -> str:
    """The cheapest change that fits, as one types it, by the planner's arithmetic."""
    if smaller := smaller_micro_batches(load):
        work, needed = smaller
        rows = work.micro_batch * work.degrees.data_parallel
        return f"Smaller micro-batches fit, {needed:.0f} GiB: data.rows={rows} train.accumulation={work.micro_batches}"
    if other := nearest_fitting(load):
        work = other.work
        rows = work.micro_batch * work.degrees.data_parallel
        return (
            f"The nearest that fits: {work.degrees}, recompute {work.recompute}, data.rows={rows} "
            f"train.accumulation={work.micro_batches}, {other.memory.total_gib:.0f} GiB."
        )
    return f"Nothing fits {load.cluster}; use more."


def check_memory(recipe: PretrainRecipe, *, world_size: int, gpu: str) -> None:
    """Refuse what cannot be or cannot fit, by the planner's arithmetic alone: in a moment, for `puna launch`.

    Raises:
        ConfigError: The layout cannot be.
        UsageError: It does not fit the card's memory.
    """
    shape, data = shape_of(recipe), recipe.data
    layout = _resolved(recipe.parallel, shape, world_size)
    for n in ramp_of(recipe).batches:
        work = Work(data.rows, data.sequence_length, n, "cuda")
        check(layout, shape, work)
        load = _workload(layout, shape, work, f"{world_size}x{gpu}")
        needed = estimate(load).memory.total_gib
        if needed > load.cluster.gpu.memory_gib:
            raise UsageError(
                f"{load.degrees} with micro-batches of {load.micro_batch} needs about {needed:.0f} GiB a GPU, a "
                f"{load.cluster.gpu.name} has {load.cluster.gpu.memory_gib:.0f}. {_what_fits(load)}"
            )


def _workload(layout: ParallelConfig, shape: ModelConfig, work: Work, gpus: str) -> Workload:
    degrees = Degrees(**{axis: getattr(layout, axis) for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp")})
    return Workload(
        shape=from_config(shape),
        cluster=read_cluster(gpus),
        degrees=degrees,
        seq_len=work.sequence_length,
        global_batch=work.rows * work.accumulation,
        micro_batch=max(1, work.rows // layout.data_ranks),
        stages_per_rank=max(1, layout.n_stages // layout.pp),
        recompute="selective" if layout.recompute == "budget" else layout.recompute,
        precision="bf16" if layout.float8 == "none" else "fp8",
    )


def _memory(found: Any, layout: ParallelConfig, expected: Estimate) -> dict[str, float]:
    """Bytes of the first rank by kind. What a compiler keeps of the activations only the planner's formula knows."""
    kept = found.activation_bytes * found.in_flight + found.block_bytes
    if layout.compile:
        kept = min(kept, expected.memory.activations)
    held = 0 if layout.offload == "optimizer" else found.parameters
    memory = {
        "weights": 4.0 * held,
        "gradients": 4.0 * held,
        "optimizer": 8.0 * held,
        "activations": kept * (layout.memory_budget if layout.recompute == "budget" else 1.0),
        "buffers": found.gathered_bytes + LOGIT_CHUNK_BYTES,
    }
    memory["buffers"] += FRAGMENTS * sum(memory.values()) + CONTEXT_BYTES
    return memory


def _result(
    found: Any,
    expected: Estimate,
    memory: dict[str, float],
    shape: ModelConfig,
    failures: float,
    save_every: float | None,
) -> Any:
    work, n = expected.work, expected.work.cluster.n_gpus
    stall = goodput.stall_seconds(work.shape, n)
    writing = goodput.checkpoint_seconds(
        work.shape, writers=max(1, n // work.cluster.gpu.node_gpus), bytes_per_second=STORAGE_BYTES_PER_SECOND
    )
    run, best = (
        goodput.expected_goodput(
            n, stall=stall, write_seconds=writing, interval_seconds=every, interruptions_per_gpu_hour=failures
        )
        for every in (save_every, None)
    )
    return {
        "rank": {"parameters": found.parameters, "parameters_before_sharding": found.part_parameters},
        "memory_bytes": memory | {"total": sum(memory.values())},
        "memory_planner_bytes": expected.memory.total,
        "traffic_bytes_per_step": dict(found.traffic),
        "traffic_links": {t.kind: t.link for t in expected.traffic},
        "pipeline": {"bubble": found.bubble, "in_flight": found.in_flight},
        "flops_per_token": {c: shape.flops_per_token(work.seq_len, convention=c) for c in ("causal", "full")},
        "step_seconds": expected.seconds,
        "tokens_per_second": expected.tokens_per_second,
        "tokens_per_second_gpu": expected.tokens_per_second_gpu,
        "tflops_gpu": {c: expected.tflops(c) for c in ("causal", "full")},
        "mfu_full": expected.mfu("full"),
        "checkpoint": {
            "bytes": goodput.checkpoint_bytes(work.shape),
            "stall_seconds": stall,
            "write_seconds": writing,
        },
        "goodput": {
            "share": run.share,
            "hours_to_interruption": run.hours_to_interruption if failures else None,
            "checkpoint_every_seconds": run.interval_seconds,
            "best_share": best.share,
            "best_checkpoint_every_seconds": best.interval_seconds,
        },
        "dry_run": {"seconds": found.seconds, "peak_memory_bytes": found.memory_bytes},
    }


_LINKS = {"tp": "tensor", "cp": "context", "fsdp": "data", "dp_replicate": "data", "pp": "pipeline"}


def _rows(result: Any, layout: ParallelConfig, load: Workload) -> Sequence[PlanRow]:
    size, memory = console.short_bytes, result["memory_bytes"]
    rank, flops, tflops = result["rank"], result["flops_per_token"], result["tflops_gpu"]
    saved, run, spent = result["checkpoint"], result["goodput"], result["dry_run"]
    rows = [
        ("layout", f"{load.degrees} on {load.cluster}; {layout.n_stages} stages, recompute {layout.recompute}"),
        ("parameters of rank 0", f"{rank['parameters']:,} of {rank['parameters_before_sharding']:,} before FSDP"),
        *((f"memory, {kind}", size(value)) for kind, value in memory.items()),
        ("memory, by the planner", size(result["memory_planner_bytes"])),
    ]
    for axis, n_bytes in result["traffic_bytes_per_step"].items():
        link = result["traffic_links"].get(_LINKS.get(axis, ""), "NVLink")
        rows.append((f"sent a step, {axis}", f"{size(n_bytes)} over {link}"))
    return [
        *rows,
        ("pipeline", f"bubble {result['pipeline']['bubble']:.1%}, {result['pipeline']['in_flight']:g} in flight"),
        ("FLOPs per token", f"{flops['causal']:.4g} causal, {flops['full']:.4g} full attention"),
        ("step, expected", f"{result['step_seconds']:.3g} s"),
        ("tokens/s", f"{result['tokens_per_second']:,.0f}, {result['tokens_per_second_gpu']:,.0f} a GPU"),
        (
            "TFLOPS a GPU",
            f"{tflops['causal']:.0f} causal, {tflops['full']:.0f} full; MFU {result['mfu_full']:.1%} (full)",
        ),
        (
            "checkpoint",
            f"{size(saved['bytes'])}, {saved['stall_seconds']:.2g} s of waiting, "
            f"{console.short_time(saved['write_seconds'])} to write at 2 GB/s a node",
        ),
        (
            "goodput",
            f"{run['share']:.1%} with "
            + (
                f"one interruption in {run['hours_to_interruption']:.3g} h"
                if run["hours_to_interruption"]
                else "no failures"
            )
            + f" and a checkpoint every {console.short_time(run['checkpoint_every_seconds'])} (best: "
            f"{run['best_share']:.1%}, every {console.short_time(run['best_checkpoint_every_seconds'])})",
        ),
        ("speeds are those of", PROVENANCE),
        ("this dry run", f"{spent['seconds']:.1f} s, {size(spent['peak_memory_bytes'])}"),
    ]
