"""What `puna plan` does: answers a question with layouts and a recipe, scores predictions, fits constants.

Binds the planner to what a user sees. The recipe that is written holds the layout under the names of the trainer's
`parallel` table; tokenizer and shards are the user's to name.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.core import console
from puna.core.errors import UsageError
from puna.core.files import atomic_open
from puna.model.config import SIZES
from puna.planner import fit as fitting
from puna.planner import goodput
from puna.planner.constants import FITTED, as_code
from puna.planner.estimate import Estimate
from puna.planner.hardware import Cluster, read_cluster
from puna.planner.layout import Workload
from puna.planner.published import Published, read_published
from puna.planner.search import Found, reasons, search
from puna.planner.shape import Shape, from_config, is_sparse, named_shape

STORAGE_BYTES_PER_SECOND = 2e9
"""Taken for what a node writes to its storage."""

PROVENANCE = "tuned software on published clusters, to which the planner is fitted; this trainer was not measured"

LOW_PRECISION = {"ampere": ("bf16",), "hopper": ("bf16", "fp8"), "blackwell": ("bf16", "fp8", "fp4")}
"""What the tensor cores of each architecture multiply in."""


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        model: A size, a published name, or a folder.
        gpus: The cluster as typed.
        seq_len: Tokens of a sequence.
        batch_tokens: Tokens of a step.
        precision: bf16, fp8 or fp4.
        network_gbit: Gb/s of network a node, or None.
        fixed: Degrees that must be so.
        top: Layouts to show.
    """

    model: str
    gpus: str
    seq_len: int
    batch_tokens: int
    precision: Any = "bf16"
    network_gbit: float | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    top: int = 5


def read_count(text: str, option: str) -> int:
    """`8192`, `8k`, `4M`, `1.5M`: k, M and G count in 1024s, as batches of tokens do.

    Raises:
        UsageError: It is no count.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)i?\s*", text.replace(",", "").replace("_", ""))
    value = float(match.group(1)) * 1024 ** " kmg".index(match.group(2).lower() or " ") if match else 0
    if value < 1:
        raise UsageError(f"{option} is {text!r}; write a count of tokens, for example 8192, 128k or 4M")
    return round(value)


def size_name(model: str) -> str | None:
    """The name in the table of sizes that is meant, or None."""
    plain = re.sub(r"^(meta-)?llama[-_ ]?3(\.\d)?[-_ ]", "", model.strip(), flags=re.IGNORECASE).lower()
    return next((name for name in SIZES if name.lower() == plain), None)


def find_shape(model: str) -> Shape:
    """The shape of a size, a folder, or a published name.

    Raises:
        UsageError: It is none of them.
    """
    if (name := size_name(model)) is not None:
        return from_config(SIZES[name])
    if Path(model).is_dir():
        from puna.checkpoint.format import load_config

        return from_config(load_config(Path(model)))
    shape = None if is_sparse(model) else named_shape(model)
    if shape is None:
        why = "is a mixture of experts or a hybrid, which is not modelled" if is_sparse(model) else "is not known"
        raise UsageError(
            f"model {model!r} {why}. Sizes are {', '.join(SIZES)}. A Hugging Face Llama folder, a published name such "
            "as llama2-13b, or a shape such as 'llama L40 d4096 h32 kv8 f14336 v128256' will do too."
        )
    return shape


def recipe_name(model: str, gpus: str) -> str:
    """File name of a plan: `70b-512xH100.toml`."""
    stem = f"{size_name(model) or Path(model).name}-{read_cluster(gpus)}".lower()
    return re.sub(r"[^a-z0-9.]+", "-", stem) + ".toml"


def plan(question: Question, *, write: Path | None, as_json: bool = False) -> Found:
    """Search, print, write the recipe.

    Args:
        question: What is to be planned.
        write: Recipe of the best layout, or None. A file with other content is never written over.
        as_json: One JSON object as the last line.
    """
    shape = find_shape(question.model)
    cluster = read_cluster(question.gpus).with_network(question.network_gbit)
    if question.precision not in LOW_PRECISION[cluster.gpu.architecture]:
        allowed = ", ".join(LOW_PRECISION[cluster.gpu.architecture])
        raise UsageError(f"precision is {question.precision!r}, {cluster.gpu.name} multiplies in {allowed}")
    found = search(
        shape,
        cluster,
        seq_len=question.seq_len,
        batch_tokens=question.batch_tokens,
        precision=question.precision,
        top=question.top,
        fixed=question.fixed,
    )
    best = found.best[0]
    if write is not None:
        _write_recipe(question, best, write)
    if as_json:
        console.write(json.dumps({"layouts": [as_object(e) for e in found.best], "tried": found.tried}) + "\n")
        return found
    _show(question, cluster, found)
    if write is not None:
        console.say(f"The first layout is in {write}; look at it with: puna show {write}")
    return found


def _show(question: Question, cluster: Cluster, found: Found) -> None:
    best = found.best[0]
    work = best.work
    console.say(
        f"{question.model} on {cluster}: {work.global_batch:,} sequences of {work.seq_len:,} tokens a step "
        f"({work.tokens:,} tokens{_as_asked(question, work)}), {work.precision}; {found.tried:,} layouts can be built, "
        f"{found.fitting:,} fit"
    )
    console.table("", ["#", "layout", *_COLUMNS], [_row(i, e) for i, e in enumerate(found.best, 1)])
    for index, layout in enumerate(found.best, 1):
        pieces = f", {layout.work.stages_per_rank} pieces a rank" if layout.work.stages_per_rank > 1 else ""
        console.say(f"\n{index}. {layout.work.degrees}{pieces}. Of {layout.seconds:.3g} s a step,")
        for reason in reasons(layout):
            console.say(f"   {reason}")
    for line in run_rows(best):
        console.say(line)


def _as_asked(question: Question, work: Workload) -> str:
    asked = question.batch_tokens
    return "" if work.tokens == asked else f"; {asked:,} were asked for, a step holds whole sequences"


_COLUMNS = ("micro-batches", "recompute", "step s", "tok/s/GPU", "TFLOPS", "MFU", "GiB")


def _row(index: int, found: Estimate) -> Sequence[str]:
    work = found.work
    return (
        str(index),
        short_layout(work),
        f"{work.micro_batches} of {work.micro_batch}",
        work.recompute,
        f"{found.seconds:.3g}",
        f"{found.tokens_per_second_gpu:,.0f}",
        f"{found.tflops('causal'):.0f}",
        f"{found.mfu('full'):.0%}",
        f"{found.memory.total_gib:.0f}",
    )


def short_layout(work: Workload) -> str:
    """Like `8x8 cp2 tp4 pp8x10`: copies x shards, then the other degrees, the last with its pieces a rank."""
    d = work.degrees
    parts = [f"dp{d.dp_replicate}x{d.dp_shard}" if d.dp_replicate > 1 else f"dp{d.dp_shard}"]
    parts += [f"{name}{getattr(d, name)}" for name in ("cp", "tp") if getattr(d, name) > 1]
    if d.pp > 1:
        parts.append(f"pp{d.pp}x{work.stages_per_rank}" if work.stages_per_rank > 1 else f"pp{d.pp}")
    return " ".join(parts)


def run_rows(best: Estimate) -> Sequence[str]:
    """What a long run of a layout may expect: checkpoints and goodput."""
    shape, n = best.work.shape, best.work.cluster.n_gpus
    stall = goodput.stall_seconds(shape, n)
    nodes = max(1, n // best.work.cluster.gpu.node_gpus)
    writing = goodput.checkpoint_seconds(shape, writers=nodes, bytes_per_second=STORAGE_BYTES_PER_SECOND)
    expected = goodput.expected_goodput(n, stall=stall, write_seconds=writing)
    size = goodput.checkpoint_bytes(shape)
    return (
        f"\nSpeeds are those of {PROVENANCE}.",
        "TFLOPS count half of the attention (causal), MFU all of it (full) over the 16-bit peak.",
        f"Checkpoint: {console.short_bytes(size)}, {console.short_bytes(size / n)} a GPU, {stall:.2g} s of "
        f"waiting each.",
        f"At Llama 3's rate of failures: one in {expected.hours_to_interruption:.3g} h; with a checkpoint every "
        f"{console.short_time(expected.interval_seconds)} and restarts of 5 minutes, {expected.share:.1%} of "
        f"the time counts.",
    )


def as_object(found: Estimate) -> dict[str, Any]:
    """An estimate in JSON types."""
    work = found.work
    return {
        "parallel": {name: getattr(work.degrees, name) for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp")},
        "stages_per_rank": work.stages_per_rank,
        "micro_batch": work.micro_batch,
        "micro_batches": work.micro_batches,
        "recompute": work.recompute,
        "precision": work.precision,
        "step_seconds": found.seconds,
        "tokens_per_second_gpu": found.tokens_per_second_gpu,
        "tflops_causal": found.tflops("causal"),
        "tflops_full": found.tflops("full"),
        "mfu_full": found.mfu("full"),
        "memory_gib": found.memory.total_gib,
        "memory_by_kind_gib": {
            name: getattr(found.memory, name) / 2**30 for name in type(found.memory).__dataclass_fields__
        },
        "seconds_by_cause": {
            name: getattr(found.breakdown, name) for name in type(found.breakdown).__dataclass_fields__
        },
        "traffic": [vars(traffic) for traffic in found.traffic],
        "reasons": reasons(found),
    }


def recipe_text(question: Question, best: Estimate, path: Path) -> str:
    """The recipe of a layout, ready to be completed with tokenizer and shards."""
    work, name = best.work, size_name(question.model)
    lines = [
        f"# puna train {path}",
        f"# {question.model} on {work.cluster}: {best.seconds:.3g} s a step, {best.tokens_per_second_gpu:,.0f} "
        f"tokens/s a GPU, "
        f"{best.memory.total_gib:.0f} GiB a GPU expected.",
        "# Name your tokenizer (or start_from) and your shards.",
        "",
        f'out = "runs/{path.stem}"',
    ]
    if name is None and Path(question.model).is_dir():
        lines += [f"start_from = {json.dumps(question.model)}"]
    elif name is None:
        lines += ['tokenizer = "my/tokenizer"', "", "[model]", *_shape_lines(work)]
    else:
        lines += ['tokenizer = "my/tokenizer"', "", "[model]", f'size = "{name}"']
        if work.seq_len > SIZES[name].max_seq_len:
            lines.append(f"max_seq_len = {work.seq_len}")
    lines += [
        "",
        "[data]",
        'shards = ["my/shards"]',
        f"rows = {work.micro_batch * work.degrees.data_parallel}",
        f"sequence_length = {work.seq_len}",
        "",
        "[train]",
        f"accumulation = {work.micro_batches}",
        "",
        "[parallel]",
        *(f"{axis} = {getattr(work.degrees, axis)}" for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp")),
        f'recompute = "{work.recompute}"',
        "compile = true",
    ]
    if work.stages_per_rank > 1:
        lines += ['schedule = "interleaved"', f"stages_per_rank = {work.stages_per_rank}"]
    if work.precision == "fp8":
        lines.append('float8 = "rowwise"')
    if work.precision == "fp4":
        lines.append("# planned with fp4, in which `puna train` cannot multiply: started as it is, this trains in bf16")
    return "\n".join(lines) + "\n"


def _shape_lines(work: Workload) -> list[str]:
    """A shape that is no size of ours, field by field."""
    shape = work.shape
    lines = [] if shape.gated else ["# planned with two feed-forward matrices; `puna train` has three (SwiGLU)"]
    lines += [f"{n} = {getattr(shape, n)}" for n in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim")]
    return [
        *lines,
        f"head_dim = {shape.head_width}",
        f"tie_embeddings = {'true' if shape.tied else 'false'}",
        f"max_seq_len = {work.seq_len}",
    ]


def _write_recipe(question: Question, best: Estimate, path: Path) -> None:
    text = recipe_text(question, best, path)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise UsageError(
            f"{path} is there with other content and was not written over. Use --write OTHER.toml or --no-write."
        )
    with atomic_open(path) as file:
        file.write(text)


def evaluate_file(path: Path, *, as_json: bool = False) -> dict[str, Any]:
    """Score the planner's predictions on a file of published throughputs."""
    rows, skipped = read_published(path)
    errors = fitting.relative_errors(rows)
    found = fitting.score(errors)
    result = {
        "n": found.n,
        "median_abs_error": found.median if found.n else None,
        "p90_abs_error": found.p90 if found.n else None,
        "skipped": dict(Counter(reason for _, reason in skipped)),
    }
    if as_json:
        console.write(json.dumps(result) + "\n")
        return result
    console.say(f"{path}: {_score_text(found)} of the step time")
    console.table("", ["source", "n", "median", "p90", "bias"], by_group(rows, errors, fitting.sources(rows)))
    console.table("the ten worst", ["line", "error", "configuration"], worst(rows, errors, 10))
    for reason, count in result["skipped"].items():
        lines = [str(line) for line, why in skipped if why == reason]
        shown = ", ".join(lines[:8]) + (", ..." if len(lines) > 8 else "")
        console.say(f"skipped {count} (line {shown}): {reason}")
    return result


def fit_file(path: Path, *, as_json: bool = False) -> dict[str, Any]:
    """Fit the constants on a file and say how well they predict what they have not seen."""
    rows, _ = read_published(path)
    if len(rows) < 30:
        raise UsageError(f"{path} has {len(rows)} usable rows; a fit needs 30. `puna plan --evaluate {path}` says why.")
    constants = fitting.fit(rows)
    scores = {
        "fitted": fitting.score(fitting.relative_errors(rows, constants)),
        "leave_one_source_out": fitting.score(fitting.leave_out(rows, fitting.sources(rows))),
        "leave_one_family_out": fitting.score(fitting.leave_out(rows, fitting.families(rows))),
        "in_use": fitting.score(fitting.relative_errors(rows, FITTED)),
    }
    result = {name: {"median": s.median, "p90": s.p90} for name, s in scores.items()} | {"n": len(rows)}
    if as_json:
        console.write(json.dumps(result) + "\n")
        return result
    console.say(as_code(constants))
    for name, found in scores.items():
        console.say(f"# {name.replace('_', ' ')}: {_score_text(found)}")
    console.say("# To use them, replace FITTED in src/puna/planner/constants.py")
    return result


def _score_text(found: fitting.Score) -> str:
    if not found.n:
        return "no usable row"
    return f"{found.n} rows, median error {found.median:.1%}, 90th percentile {found.p90:.1%}"


def by_group(rows: Sequence[Published], errors: Any, groups: Sequence[str]) -> list[tuple[str, str, str, str, str]]:
    """Error by group: name, rows, median and 90th percentile of the size, median with its sign."""
    table = []
    for group in dict.fromkeys(groups):
        inside = [float(e) for e, name in zip(errors, groups, strict=True) if name == group]
        found = fitting.score(np.array(inside))
        bias = sorted(inside)[len(inside) // 2]
        table.append((group[:70], str(found.n), f"{found.median:.1%}", f"{found.p90:.1%}", f"{bias:+.1%}"))
    return table


def worst(rows: Sequence[Published], errors: Any, count: int) -> list[tuple[str, str, str]]:
    """The worst rows: line, error with its sign, configuration."""
    order = sorted(range(len(rows)), key=lambda i: -abs(errors[i]))[:count]
    return [(str(rows[i].line), f"{errors[i]:+.0%}", describe(rows[i])) for i in order]


def describe(row: Published) -> str:
    """One published row in words."""
    work = row.work
    return (
        f"{row.model} on {work.cluster}, {work.degrees}, {work.micro_batches} x {work.micro_batch} of {work.seq_len}, "
        f"{work.precision}, {work.recompute} ({row.source[:40]})"
    )
