"""Published speeds of other people's clusters, read from a CSV of one row a configuration.

Columns: source, model, n_gpus, gpu, tp, pp, vpp, cp, dp_shard, dp_replicate, seq_len, global_batch_seqs, micro_batch,
precision, act_ckpt, tflops_per_gpu, tok_s_gpu, mfu, peak_mem_gib, note; also step_seconds. All but model and n_gpus
may be missing or empty: what can be told from the rest is told; a row that stays unclear is skipped with its reason.

The measured speed is tokens/s or the step's seconds where they are printed, since these need no convention; else it
comes from TFLOPS, else from MFU, with the FLOP convention that the note names (`full` where it names none: most
projects use it).
"""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from puna.core.errors import ConfigError, MissingError, UsageError
from puna.planner import memory
from puna.planner.hardware import Cluster, Precision, find_gpu
from puna.planner.layout import STACKS, Degrees, Recompute, Stack, Workload
from puna.planner.shape import FlopsConvention, Shape, named_shape, read_shape


@dataclass(frozen=True)
class Published:
    """One usable row.

    Attributes:
        line: Line of the file, the header being 1.
        source: Who published it.
        model: As printed.
        work: The configuration.
        tokens_per_second: Measured, a GPU.
        memory_gib: Measured peak, or None.
    """

    line: int
    source: str
    model: str
    work: Workload
    tokens_per_second: float
    memory_gib: float | None

    @property
    def step_seconds(self) -> float:
        """Measured time of a step."""
        return self.work.tokens / (self.tokens_per_second * self.work.cluster.n_gpus)


_MEGATRON_2021 = r"sc21|2104\.04473|2205\.05198|2201\.11990|april2021|mt-nlg|turing|bloom|neox"
_UNREADABLE = "the file of published throughputs cannot be read"

_DEEPSPEED = r"deepspeed|2201\.11990|mt-nlg|turing|bloom|neox"
"""Its pipeline does not interleave."""

_MEGATRON = r"megatron|nemo\b|nemo[ -]|nemotron|nvidia|transformer ?engine"


class SkipRow(Exception):  # noqa: N818 - it carries a reason, nothing failed
    """A row that cannot be used, with its reason."""


def read_published(path: Path) -> tuple[list[Published], list[tuple[int, str]]]:
    """Read a file.

    Returns:
        The usable rows, and for every other one its line and the reason.

    Raises:
        MissingError: The file is not there.
        ConfigError: It is no CSV with the columns `model` and `n_gpus`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there. Give a CSV of published throughputs.") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError([f"{path} is not a CSV in UTF-8: {error}"], title=_UNREADABLE) from error
    reader = csv.DictReader(text.splitlines())
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    if missing := {"model", "n_gpus"} - set(reader.fieldnames):
        raise ConfigError(
            [f"{path} has no column {name!r}; a header line names them, parted by commas" for name in sorted(missing)],
            title=_UNREADABLE,
        )
    rows: list[Published] = []
    skipped: list[tuple[int, str]] = []
    for cells in reader:
        plain = {key: (value or "").strip() for key, value in cells.items() if isinstance(key, str)}
        try:
            rows.append(read_row(plain, reader.line_num))
        except SkipRow as reason:
            skipped.append((reader.line_num, str(reason)))
    return rows, skipped


def read_row(cells: Mapping[str, str], line: int) -> Published:
    """Understand one row.

    Raises:
        SkipRow: It cannot be used.
    """
    model = cells.get("model", "")
    shape = read_shape(model)
    if shape is None:
        raise SkipRow("not a dense transformer" if model else "no model")
    cluster = _cluster(cells)
    degrees = _degrees(cells, cluster.n_gpus)
    if (seq_len := _count(cells, "seq_len")) is None:
        raise SkipRow("no sequence length")
    stack = read_stack(cells)
    micro, batch = _count(cells, "micro_batch"), _count(cells, "global_batch_seqs")
    if named_shape(model) is None and degrees.pp > 1:  # the size alone is told: as many layers as the stages divide
        shape = replace(shape, n_layers=max(1, round(shape.n_layers / degrees.pp)) * degrees.pp)
    if batch is not None and batch < degrees.data_parallel:
        raise SkipRow("global_batch_seqs is less than the data-parallel ranks")
    if batch is not None and batch % degrees.data_parallel:
        raise SkipRow("global_batch_seqs is no multiple of the data-parallel ranks")
    if batch is None:
        # without a batch: no accumulation, and four micro-batches a stage in a pipeline
        batch = degrees.data_parallel * (micro or 1) * (4 * degrees.pp if degrees.pp > 1 else 1)
    if micro is None:
        micro = _micro_batch(stack, degrees, batch / degrees.data_parallel, seq_len)
    micro = max(1, min(int(micro), round(batch / degrees.data_parallel) or 1))
    work = Workload(
        shape=shape,
        cluster=cluster,
        degrees=degrees,
        seq_len=seq_len,
        global_batch=max(1, batch),
        micro_batch=micro,
        stages_per_rank=_stages_per_rank(cells, shape, degrees, batch / degrees.data_parallel / micro),
        zero=_zero(cells, stack, degrees),
        precision=_precision(cells),
        sequence_parallel=_sequence_parallel(cells),
        stack=stack,
    )
    work = _with_recompute(work, cells)
    speed = _tokens_per_second(cells, shape, work)
    return Published(line, cells.get("source", "") or "no source", model, work, speed, _number(cells, "peak_mem_gib"))


def _number(cells: Mapping[str, str], key: str) -> float | None:
    text = cells.get(key, "").replace(",", "").replace("_", "").lstrip("~≈<>= ")
    match = re.match(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(k(?![a-z]))?", text, re.IGNORECASE)
    if match is None:
        return None
    thousand = 1024 if key == "seq_len" else 1000  # 8k tokens of context are 8,192; 12.5k tokens/s are 12,500
    value = float(match.group(1)) * (thousand if match.group(2) else 1)
    return value if 0 < value < math.inf else None


def _count(cells: Mapping[str, str], key: str) -> int | None:
    """A number that must be whole: GPUs, degrees, sequences, tokens."""
    value = _number(cells, key)
    if value is not None and (value != int(value) or value > 1e12):
        raise SkipRow(f"{key} is no whole number")
    return None if value is None else int(value)


def _cluster(cells: Mapping[str, str]) -> Cluster:
    count = _count(cells, "n_gpus")
    if count is None:
        raise SkipRow("no number of GPUs")
    note = f"{cells.get('note', '')} {cells.get('source', '')}"
    name = cells.get("gpu", "")
    if re.search(r"96 ?GB|HBM2e|500 ?W", f"{name} {note}", re.IGNORECASE) and "H100" in name.upper():
        name = "H100-96GB"
    try:
        gpu = find_gpu(name)
    except UsageError:
        raise SkipRow(f"GPU {name or 'not given'} is not known") from None
    network = re.search(r"(\d{3,4}) ?Gb(?:ps|/s|it/s)", note)
    return Cluster(gpu, count).with_network(float(network.group(1)) if network else None)


def _degrees(cells: Mapping[str, str], n_gpus: int) -> Degrees:
    tp, pp, cp = (_count(cells, name) or 1 for name in ("tp", "pp", "cp"))
    shard, replicate = _count(cells, "dp_shard"), _count(cells, "dp_replicate")
    left = n_gpus // (tp * pp * cp)
    if left < 1:
        raise SkipRow("tp, pp and cp are more than the GPUs")
    if shard is None and replicate is None:
        shard, replicate = left, 1
    elif shard is None:
        shard = max(1, left // (replicate or 1))
    elif replicate is None:
        replicate = max(1, left // shard)
    degrees = Degrees(dp_replicate=replicate or 1, dp_shard=shard, cp=cp, tp=tp, pp=pp)
    if degrees.world_size == n_gpus:
        return degrees
    if degrees.data_parallel == left * cp:  # the published data-parallel size counts context ranks
        return Degrees(dp_shard=left, cp=cp, tp=tp, pp=pp)
    if left * tp * pp * cp == n_gpus:
        return Degrees(dp_shard=left, cp=cp, tp=tp, pp=pp)
    raise SkipRow("the degrees do not multiply to the number of GPUs")


def _stages_per_rank(cells: Mapping[str, str], shape: Shape, degrees: Degrees, micro_batches: float) -> int:
    """As printed; else the least interleaving that keeps the bubble below a twentieth, as an operator would choose."""
    text = f"{cells.get('note', '')} {cells.get('act_ckpt', '')}".lower()
    if (printed := _number(cells, "vpp")) is not None or degrees.pp == 1:
        return max(1, int(printed or 1))
    if "1f1b" in text and "interleav" not in text:
        return 1
    if re.search(_DEEPSPEED, f"{text} {cells.get('source', '')}".lower()):
        return 1
    layers = shape.n_layers
    if layers % degrees.pp and (layers + 2) % degrees.pp == 0:
        layers += 2
    fitting = [v for v in range(1, max(1, layers // degrees.pp) + 1) if layers % (degrees.pp * v) == 0] or [1]
    small = [v for v in fitting if (degrees.pp - 1) / (v * micro_batches) < 0.05]
    return small[0] if small else fitting[-1]


def read_stack(cells: Mapping[str, str]) -> Stack:
    """The software behind a row, from its source and note."""
    source, note = cells.get("source", "").lower(), cells.get("note", "").lower()
    text = f"{source} {note}"
    if re.search(_MEGATRON_2021, source):
        return STACKS["megatron-2021"]
    if re.search(r"foundry|mosaic|composer|databricks", source):
        return STACKS["llm-foundry"]
    if "nanotron" in source or "ultrascale" in source:
        return STACKS["nanotron"]
    if re.search(r"torchtitan|torchao|fms|pytorch|olmo|lingua", source):
        return _torch(text, note)
    if re.search(_MEGATRON, f"{text} {cells.get('model', '').lower()}"):
        return _megatron(cells.get("gpu", ""), text)
    return _torch(text, note) if re.search(r"fsdp|torch", text) else STACKS["unseen"]


def _torch(text: str, note: str) -> Stack:
    if re.search(r"no compile|without compile|eager", note):
        return STACKS["torch-eager"]
    return replace(STACKS["torch-compile"], hides_tensor_parallel="async" in text)


def _megatron(gpu: str, text: str) -> Stack:
    """Megatron on Ampere is of before TransformerEngine: it hides gradients alone, and flash attention is a flag."""
    if re.search(r"[av]100|a800", gpu, re.IGNORECASE):
        kernel = "flash1" if "flash" in text else "scores"
        return replace(STACKS["megatron-2021"], attention=kernel, hides_data_parallel=True)
    return STACKS["nvidia"]


def _micro_batch(stack: Stack, degrees: Degrees, sequences: float, seq_len: float) -> float:
    """Where it is not told: what the software takes by default, with `sequences` a data-parallel rank and step."""
    if degrees.pp > 1 and stack.family.startswith("torch"):
        return max(1.0, sequences // degrees.pp)  # as many micro-batches as pipeline ranks
    if degrees.pp > 1 or sequences <= 1:
        return 1.0
    return max(1.0, min(sequences, 16_384 // seq_len))  # about 16 thousand tokens


def _zero(cells: Mapping[str, str], stack: Stack, degrees: Degrees) -> "memory.ZeroStage":
    note = cells.get("note", "").lower()
    if match := re.search(r"zero-?([0123])", note):
        if "zero-3" in note or "fsdp zero" in note:
            return 3
        if re.search(r"no zero|plain dp|\bddp\b", note):
            return 0
        return {"0": 0, "1": 1, "2": 2, "3": 3}[match.group(1)]  # type: ignore[return-value]
    if "no zero" in note or "plain dp" in note:
        return 0
    if "shard_grad_op" in note:
        return 2
    if re.search(r"fsdp|hsdp|full_shard", note):
        return 3
    if stack.family in ("nvidia", "megatron-2021"):
        return 1 if degrees.dp_shard > 1 else 0
    if degrees.dp_shard == 1 and degrees.data_parallel > 1:
        return 0
    return 3 if degrees.pp == 1 else 2


def _precision(cells: Mapping[str, str]) -> Precision:
    text = cells.get("precision", "").lower()
    return "fp4" if "fp4" in text else "fp8" if re.search(r"fp8|float8|e4m3", text) else "bf16"


def _sequence_parallel(cells: Mapping[str, str]) -> bool:
    text = f"{cells.get('note', '')} {cells.get('act_ckpt', '')}".lower()
    if "sp off" in text or re.search(r"sc21|april2021|2104\.04473", cells.get("source", "").lower()):
        return False
    return not ("2205.05198" in cells.get("source", "") and "sp" not in cells.get("act_ckpt", "").lower())


def _with_recompute(work: Workload, cells: Mapping[str, str]) -> Workload:
    text = cells.get("act_ckpt", "").lower()
    if "none/selective" in text or "none / selective" in text:
        return replace(work, recompute="alternate", checkpointed=0.5)
    if "full" in text or text in ("yes", "true", "1"):
        return replace(work, recompute="full")
    if "block" in text:  # some of the blocks, whole
        return replace(work, recompute="full", checkpointed=0.4)
    if "budget" in text or "op" in text.split() or "sac" in text:
        return replace(work, recompute="alternate")
    if "select" in text:
        mode: Recompute = "attention" if work.stack.family in ("nvidia", "megatron-2021") else "alternate"
        return replace(work, recompute=mode)
    if text in ("none", "no", "off", "false", "0"):
        return work
    if text:
        raise SkipRow(f"act_ckpt {text!r} is not understood")
    if work.stack.family == "nvidia":
        return work  # its benchmarks recompute at most what costs little, and keep activations in 8 bits
    # not told: the cheapest that fits
    for mode in ("none", "alternate", "full"):
        tried = replace(work, recompute=mode)
        if memory.rank_memory(tried).total_gib <= work.cluster.gpu.memory_gib:
            return tried
    return work


def read_convention(cells: Mapping[str, str]) -> FlopsConvention:
    """The FLOP convention that a row's note names; `full` where it names none."""
    note = cells.get("note", "").lower()
    if "includes recompute" in note or "hfu-style" in note:
        return "recompute"
    return "causal" if "causal" in note and "non-causal" not in note else "full"


def _tokens_per_second(cells: Mapping[str, str], shape: Shape, work: Workload) -> float:
    found = _speed(cells, shape, work)
    if found * shape.flops_per_token(work.seq_len, convention="causal") > work.cluster.gpu.peak(work.precision):
        raise SkipRow("the speed is above the card's peak")
    return found


def _speed(cells: Mapping[str, str], shape: Shape, work: Workload) -> float:
    for key in ("tok_s_gpu", "step_seconds", "tflops_per_gpu", "mfu"):
        if cells.get(key) and _number(cells, key) is None:
            raise SkipRow(f"{key} is no positive number")
    if (printed := _number(cells, "tok_s_gpu")) is not None:
        return printed
    if (seconds := _number(cells, "step_seconds")) is not None:
        if _number(cells, "global_batch_seqs") is None:
            raise SkipRow("step_seconds without global_batch_seqs says no speed")
        return work.tokens / seconds / work.cluster.n_gpus
    convention = read_convention(cells)
    flops = shape.flops_per_token(work.seq_len, convention=convention)
    if (tflops := _number(cells, "tflops_per_gpu")) is not None:
        return tflops * 1e12 / flops
    if (mfu := _number(cells, "mfu")) is not None:
        mfu = mfu / 100 if mfu > 1.5 else mfu
        return mfu * work.cluster.gpu.bf16_flops / shape.flops_per_token(work.seq_len, convention=convention)
    raise SkipRow("no speed: neither tok_s_gpu, step_seconds, tflops_per_gpu nor mfu")
