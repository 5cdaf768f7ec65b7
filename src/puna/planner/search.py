"""The search: every layout that can be built and fits, timed, the best first, with what keeps it from being faster.

The space is small once it is bounded by what anyone would run: tensor parallelism inside a node, context parallelism
that leaves a rank 4,096 tokens or more, powers of two and divisors. So all of it is tried; no heuristic decides.

What Puna's trainer can do bounds it too: whole kv heads for every tensor rank, a model width that the sharding ranks
divide, at least as many micro-batches as pipeline ranks (a multiple of them when interleaved), no pipeline with tied
embeddings.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from puna.core.errors import UsageError
from puna.planner.constants import FITTED, Constants
from puna.planner.estimate import Estimate, estimate
from puna.planner.hardware import Cluster, Precision
from puna.planner.layout import STACKS, Degrees, Recompute, Stack, Workload
from puna.planner.memory import rank_memory
from puna.planner.shape import Shape

HEADROOM = 0.92
"""Share of a GPU's memory that a plan may fill: estimates of memory are off by some per cent."""

_AXIS_COST, _PIECE_COST = 0.01, 0.002
"""What each further kind of parallelism, and each further pipeline piece of a rank, must bring to be preferred: below
the planner's own error, the simpler layout is the better advice."""

_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Found:
    """What a search saw.

    Attributes:
        best: The fastest layouts that fit, the best first (of nearly equal ones the simpler); one for each set of
        degrees.
        tried: Layouts that could be built.
        fitting: Of them, those that fit.
    """

    best: tuple[Estimate, ...]
    tried: int
    fitting: int


def search(
    shape: Shape,
    cluster: Cluster,
    *,
    seq_len: int,
    batch_tokens: int,
    precision: Precision = "bf16",
    stack: Stack = STACKS["puna"],
    top: int = 5,
    fixed: dict[str, int] | None = None,
    constants: Constants = FITTED,
) -> Found:
    """Find the fastest layouts.

    Args:
        shape: The model.
        cluster: The machine.
        seq_len: Tokens of a sequence.
        batch_tokens: Tokens of an optimizer step; rounded to whole sequences.
        precision: Of the products inside the blocks.
        stack: The software.
        top: Layouts to return.
        fixed: Degrees that must be so, for example `{"tp": 8}`.
        constants: Efficiencies.

    Raises:
        UsageError: Nothing can be built, or nothing fits; the message says what is nearest.
    """
    _check_fixed(fixed or {}, shape, cluster, seq_len)
    sequences = max(1, round(batch_tokens / seq_len))
    best: dict[Degrees, Estimate] = {}
    smallest: tuple[float, Workload] | None = None
    tried = fitting = 0
    for work in candidates(shape, cluster, seq_len=seq_len, sequences=sequences, precision=precision, stack=stack):
        if fixed and any(getattr(work.degrees, name) != value for name, value in fixed.items()):
            continue
        tried += 1
        needed = rank_memory(work, chunked_logits=True).total_gib
        if smallest is None or needed < smallest[0]:
            smallest = (needed, work)
        if needed > HEADROOM * cluster.gpu.memory_gib:
            continue
        fitting += 1
        found = estimate(work, constants=constants)
        if work.degrees not in best or _preference(found) < _preference(best[work.degrees]):
            best[work.degrees] = found
    if smallest is None:
        raise UsageError(
            f"no layout of {cluster} splits {sequences} sequences of {seq_len} tokens evenly"
            + (f" with {' x '.join(f'{name} {value}' for name, value in fixed.items())}" if fixed else "")
            + f". Give --batch-tokens as {seq_len} tokens times a divisor or multiple of {cluster.n_gpus}."
        )
    if not best:
        needed, work = smallest
        raise UsageError(
            f"nothing fits {cluster} with {cluster.gpu.memory_gib:.0f} GiB a GPU: the smallest layout, "
            f"{work.degrees} with "
            f"recompute {work.recompute}, needs {needed:.0f} GiB. Use more GPUs, a shorter sequence, or cards "
            f"with more memory."
        )
    ranked = sorted(best.values(), key=_preference)
    return Found(tuple(ranked[:top]), tried, fitting)


def _check_fixed(fixed: Mapping[str, int], shape: Shape, cluster: Cluster, seq_len: int) -> None:
    """Refuse degrees that no layout of this model and cluster has, each with what it may be."""
    every = list(_degrees(shape, cluster, seq_len))
    for name, value in fixed.items():
        allowed = sorted({getattr(degrees, name) for degrees in every})
        if value not in allowed:
            raise UsageError(
                f"{name} {value} cannot be on {cluster} with {shape.n_layers} layers, {shape.n_kv_heads} kv heads and "
                f"{seq_len} tokens; it may be {', '.join(map(str, allowed))}"
            )


def _preference(found: Estimate) -> float:
    """Seconds of a step with a little on top for what makes a layout harder to live with."""
    degrees = found.work.degrees
    axes = sum(getattr(degrees, name) > 1 for name in Degrees.__dataclass_fields__)
    return found.seconds * (1 + _AXIS_COST * axes + _PIECE_COST * (found.work.stages_per_rank - 1))


def candidates(
    shape: Shape, cluster: Cluster, *, seq_len: int, sequences: int, precision: Precision, stack: Stack
) -> Iterator[Workload]:
    """Every layout that the trainer can build."""
    for degrees in _degrees(shape, cluster, seq_len):
        per_rank, rest = divmod(sequences, degrees.data_parallel)
        if rest or not per_rank:
            continue
        pieces = [1]
        if degrees.pp > 1:
            # pieces of equal size: uneven ones wait for each other; embedding and head may stand for a layer each
            layers = (shape.n_layers, shape.n_layers + 2)
            even = [v for v in range(2, 21) if any(n % (degrees.pp * v) == 0 for n in layers)]
            pieces += [v for v in even if degrees.pp * v <= shape.n_layers + 2]
        for micro, stages, mode in itertools.product((1, 2, 4, 8, 16), pieces, _RECOMPUTE):
            if per_rank % micro:
                continue
            work = Workload(
                shape,
                cluster,
                degrees,
                seq_len,
                sequences,
                micro_batch=micro,
                stages_per_rank=stages,
                recompute=mode,
                precision=precision,
                stack=stack,
            )
            if not trainer_problems(work):
                yield work


def trainer_problems(work: Workload) -> list[str]:
    """Why Puna's trainer cannot run a layout; empty when it can."""
    found, shape, degrees = work.problems(), work.shape, work.degrees
    if shape.n_kv_heads % degrees.tp:
        found.append(f"tp {degrees.tp} does not divide {shape.n_kv_heads} kv heads")
    if shape.dim % (degrees.dp_shard * degrees.cp):
        found.append(f"dp_shard x cp = {degrees.dp_shard * degrees.cp} does not divide the width {shape.dim}")
    if degrees.pp > 1 and shape.tied:
        found.append("a pipeline needs an untied head")
    if degrees.pp > 1 and work.micro_batches < degrees.pp:
        found.append(f"{work.micro_batches} micro-batches do not fill {degrees.pp} pipeline ranks")
    if work.stages_per_rank > 1 and work.micro_batches % degrees.pp:
        found.append(f"{work.micro_batches} micro-batches are no multiple of pp {degrees.pp}, as interleaving needs")
    return found


def _degrees(shape: Shape, cluster: Cluster, seq_len: int) -> Iterator[Degrees]:
    n, node = cluster.n_gpus, cluster.gpu.node_gpus
    tensor = [t for t in (1, 2, 4, 8, 16) if t <= min(node, shape.n_kv_heads) and n % t == 0]
    context = [c for c in (1, 2, 4, 8, 16, 32, 64) if c == 1 or seq_len // c >= 4096]
    pipeline = [p for p in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 32) if p <= shape.n_layers]
    for tp, cp, pp in itertools.product(tensor, context, pipeline):
        left, rest = divmod(n, tp * cp * pp)
        if rest or not left:
            continue
        # sharding over one rank wastes memory; copies beyond that are HSDP with groups of a node or more
        groups = [s for s in (8, 16, 32, 64, 128, 256) if s < left and left % s == 0 and s * tp * cp >= node]
        for shard in (*groups, left):
            yield Degrees(dp_replicate=left // shard, dp_shard=shard, cp=cp, tp=tp, pp=pp)


def reasons(found: Estimate) -> list[str]:
    """What keeps a layout from being faster, the largest first; only what costs 2 per cent of the step or more."""
    spent, total, work = found.breakdown, found.seconds, found.work
    degrees = work.degrees
    waits = [
        (spent.tensor, f"tensor parallelism over {degrees.tp} waits for its collectives"),
        (spent.context, f"context parallelism over {degrees.cp} waits for keys and values"),
        (spent.pipeline, "activations travel between stages"),
        (spent.data, "weights and gradients travel longer than compute hides"),
        (spent.bubble, f"pipeline bubble: {work.micro_batches} micro-batches over {degrees.pp} ranks"),
        (spent.recompute, f"recomputation ({work.recompute}){_without_recompute(work)}"),
        (spent.elementwise, "memory traffic of norms, activations and casts"),
        (spent.host, "launching kernels"),
        (spent.optimizer, "the optimizer"),
        (spent.jitter, f"stragglers among {work.cluster.n_gpus} GPUs and the software's own overhead"),
    ]
    products = spent.products + spent.attention
    ideal = work.tokens * work.shape.flops_per_token(work.seq_len, convention="causal") / work.cluster.n_gpus
    peak = ideal / work.cluster.gpu.peak(work.precision)
    waits.append((products - peak, f"matrix products and attention reach {peak / products:.0%} of the peak"))
    shown = sorted((w for w in waits if w[0] >= 0.02 * total), reverse=True)
    return [f"{seconds / total:.0%} {text}" for seconds, text in shown]


def _without_recompute(work: Workload) -> str:
    if work.recompute == "none":
        return ""
    lighter: Recompute = "none" if work.recompute == "selective" else "selective"
    needed = rank_memory(replace(work, recompute=lighter), chunked_logits=True).total_gib
    return f"; {lighter} would need {needed:.0f} of {work.cluster.gpu.memory_gib:.0f} GiB"


def smaller_micro_batches(work: Workload) -> tuple[Workload, float] | None:
    """The same layout and batch in smaller micro-batches that fit.

    Returns:
        The largest that fit, and the GiB that they need; None where none does.
    """
    for micro in range(work.micro_batch - 1, 0, -1):
        smaller = replace(work, micro_batch=micro)
        if trainer_problems(smaller):
            continue
        needed = rank_memory(smaller, chunked_logits=True).total_gib
        if needed <= HEADROOM * work.cluster.gpu.memory_gib:
            return smaller, needed
    return None


def nearest_fitting(work: Workload, *, constants: Constants = FITTED) -> Estimate | None:
    """The layout that fits and changes least of a configuration that does not; the faster one of equals.

    Args:
        work: What was asked for.
        constants: Efficiencies.

    Returns:
        The layout with its estimate; None when nothing fits these GPUs.
    """
    best: tuple[int, float, Estimate] | None = None
    for other in candidates(
        work.shape,
        work.cluster,
        seq_len=work.seq_len,
        sequences=work.global_batch,
        precision=work.precision,
        stack=work.stack,
    ):
        if rank_memory(other, chunked_logits=True).total_gib > HEADROOM * work.cluster.gpu.memory_gib:
            continue
        changed = sum(
            getattr(work.degrees, name) != getattr(other.degrees, name) for name in Degrees.__dataclass_fields__
        ) + sum(getattr(work, name) != getattr(other, name) for name in ("micro_batch", "stages_per_rank", "recompute"))
        if best is not None and changed > best[0]:
            continue
        found = estimate(other, constants=constants)
        if best is None or (changed, found.seconds) < best[:2]:
            best = (changed, found.seconds, found)
    return best[2] if best else None
