"""What the three training stages share: which settings decide nothing, the first weights, and what a run costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core import console
from puna.core.errors import ConfigError, UsageError
from puna.core.files import fingerprint
from puna.model.adapter import packed_bytes
from puna.model.adapter_config import AdapterConfig
from puna.model.config import ModelConfig
from puna.model.transformer import Transformer
from puna.stages.stage import PlanRow
from puna.tokenizer.bpe import Tokenizer
from puna.train.config import TrainConfig
from puna.train.parallel_config import ParallelConfig, Work, check

_NAMES = (
    "log_every_steps",
    "save_every_steps",
    "save_every_seconds",
    "keep_last",
    "keep_every_steps",
    "tiers",
    "tracking",
    "device",
    "activations",
    "threads",
)

NEUTRAL = tuple(f"train.{name}" for name in _NAMES)
"""Settings that change how a run is done, not what comes out (threads: up to the last bits)."""

_ADAMW_BYTES = 16  # fp32 weight, gradient and two moments
_EXPECTED_MFU = 0.5  # of the measured matmul rate, on a GPU
_WIDEST_MFU = 0.85  # on a CPU, of a model so wide that products are all that counts
_NARROW_WIDTH = 125  # on a CPU: at this width what is done element by element takes as long as the products
_BLOCK_SECONDS = 0.003  # on a CPU: a block forward and backward takes so long however little it computes


def language_model(path: Path) -> ModelConfig:
    """The shape of the model that a post-training stage begins with.

    Raises:
        UsageError: It is a reward model, which writes no text.
    """
    from puna.checkpoint.format import load_config

    shape = load_config(path)
    if shape.head == "score":
        raise UsageError(f"{path} is a reward model: it scores text and writes none. Name a language model.")
    return shape


def load_start(path: Path) -> tuple[Transformer, ModelConfig, Tokenizer]:
    """The model that a post-training stage begins with, in fp32, and its tokenizer.

    Raises:
        UsageError: It is a reward model, which writes no text.
    """
    import torch

    from puna.checkpoint.format import load_model, load_tokenizer

    model, shape = load_model(path, dtype=torch.float32)
    if shape.head == "score":
        raise UsageError(f"{path} is a reward model: it scores text and writes none. Name a language model.")
    return model, shape, load_tokenizer(path)


def meet(
    parallel: ParallelConfig,
    train: TrainConfig,
    shape: ModelConfig,
    *,
    rows: int,
    sequence_length: int,
    accumulations: Sequence[int] = (),
) -> Any:
    """The other processes of the run with their device, or None when it runs on one.

    Args:
        parallel: The layout.
        train: The loop.
        shape: The model.
        rows: Rows of a batch.
        sequence_length: Tokens of a row.
        accumulations: Batches of a step over the run; empty: always the loop's.

    Raises:
        ConfigError: The layout cannot be.
    """
    from puna.train.machine import choose_machine

    machine = choose_machine(train.device, train.precision)
    works = [Work(rows, sequence_length, n, machine.device.type) for n in accumulations or (train.accumulation,)]
    if parallel.is_single and console.processes() == 1:
        for work in works:
            check(parallel, shape, work)
        return None
    from puna.train import parallel as ranks  # FSDP and pipelines: a second to import

    return ranks.meet(parallel, machine, shape, works)


def first_model(shape: ModelConfig, start_from: Path | None, *, seed: int, ranks: Any = None) -> Transformer:
    """The model that a run begins with, or this process's part of it: of a seed, or from a checkpoint.

    Args:
        shape: Its shape; rotary frequencies and context may differ from the checkpoint's, they have no weights.
        start_from: The checkpoint, or None.
        seed: Of new weights.
        ranks: The other processes.
    """
    import torch

    from puna.checkpoint.format import load_config, read_weights
    from puna.model.init import init_weights

    if ranks is not None:
        model = ranks.build(shape)
        if start_from is None:
            ranks.init_weights(seed)
        else:
            ranks.load_weights(start_from, load_config(start_from))
        return model
    model = Transformer(shape)
    if start_from is None:
        return init_weights(model, seed)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in read_weights(start_from, load_config(start_from)):
            own[name].copy_(tensor)
    return model


def replicate(model: Transformer, parallel: ParallelConfig, train: TrainConfig) -> Any:
    """The other processes of a run in which each holds the whole model, or None when it runs on one.

    Args:
        model: The same on every process.
        parallel: From `check_layout`.
        train: The loop.
    """
    prepare_alone(model, parallel)
    if parallel.is_single:
        return None
    from puna.train.machine import choose_machine
    from puna.train.replicas import Replicas

    return Replicas(model, choose_machine(train.device, train.precision), parallel)


def check_layout(
    parallel: ParallelConfig, train: TrainConfig, shape: ModelConfig, *, rows: int, sequence_length: int
) -> ParallelConfig:
    """The layout with every degree known, before a model is read.

    Raises:
        ConfigError: It does not fit the number of processes, the model or the rows.
    """
    from puna.train.machine import choose_machine

    device = choose_machine(train.device, train.precision).device.type
    resolved = parallel.resolve(console.processes())
    check(resolved, shape, Work(rows, sequence_length, train.accumulation, device))
    return resolved


def share_of(ranks: Any) -> dict[str, int]:
    """Which share of the rows this process reads: its number, and of how many."""
    return {"rank": ranks.data_rank, "world": ranks.config.data_ranks} if ranks else {"rank": 0, "world": 1}


def prepare_alone(model: Transformer, parallel: ParallelConfig) -> None:
    """What of a layout holds for one process too: recomputation, the compiler, float8."""
    from puna.train.blocks import prepare_blocks

    if (parallel.recompute, parallel.compile, parallel.float8) != ("none", False, "none"):
        prepare_blocks(model.layers, parallel, model.split)


def adapted_model(start_from: Path, adapter: AdapterConfig, train: TrainConfig) -> Transformer:
    """A frozen model with new adapters, read and packed one matrix at a time, in the type that it will be trained in.

    Args:
        start_from: The base; an adapter's folder stands for its merged model.
        adapter: The settings.
        train: Says where the run will be.

    Raises:
        UsageError: It is a reward model.
    """
    import torch

    from puna.checkpoint.format import load_config, read_weights, resolve
    from puna.model.adapter import adapt, fill_packed
    from puna.train.machine import choose_machine

    shape = load_config(start_from)
    if shape.head == "score":
        raise UsageError(f"{start_from} is a reward model: it scores text and writes none. Name a language model.")
    dtype = choose_machine(train.device, train.precision).dtype
    with torch.device("meta"):
        model = Transformer(shape)
    double = adapter.double_quantization if adapter.kind == "qlora" else None
    fill_packed(model, read_weights(start_from, shape), dtype=dtype, double_quantization=double)
    base = resolve(start_from).folder
    named = start_from if base.parent.name == "checkpoints" else base  # a checkpoint goes, its run stays
    adapt(model, adapter, base=str(named), base_fingerprint=fingerprint(base))
    total, trained = shape.parameters(), sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = f"; blocks packed to {console.short_bytes(packed_bytes(model))}" if adapter.kind == "qlora" else ""
    console.say(f"{adapter.kind}: {trained:,} parameters are trained beside {total:,} frozen ones{packed}")
    return model


def whole_copies(parallel: ParallelConfig, what: str) -> None:
    """Refuse a layout that cuts a model which every process must hold whole.

    Raises:
        ValueError: It has more than dp_replicate.
    """
    cut = [f"{axis}={n}" for axis in ("dp_shard", "cp", "tp", "pp") if (n := getattr(parallel, axis)) != 1]
    if cut or parallel.offload != "none":
        raise ValueError(
            f"{what} is trained by processes that each hold the whole model: set parallel.dp_replicate and leave "
            f"{', '.join(cut) or 'offload'} out. A base that does not fit: adapter.kind='qlora' packs it"
        )


def rows_alone(parallel: ParallelConfig, what: str) -> None:
    """Refuse a layout that deals out more than rows and shards.

    Raises:
        ValueError: It does.
    """
    cut = [f"{axis}={n}" for axis in ("cp", "tp", "pp") if (n := getattr(parallel, axis)) != 1]
    if cut:
        raise ValueError(
            f"{what} reads single places of its rows, which only whole layers have: set parallel.dp_shard and "
            f"dp_replicate, and leave {', '.join(cut)} out"
        )


def check_context(shape: ModelConfig, sequence_length: int) -> None:
    """Refuse rows that are longer than the model's context.

    Raises:
        ConfigError: They are.
    """
    if sequence_length > shape.max_seq_len:
        raise ConfigError(
            [
                f"data.sequence_length is {sequence_length}, the model's context is {shape.max_seq_len} tokens. Use "
                f"data.sequence_length={shape.max_seq_len} or less; a new model can be given a larger model.max_seq_len"
            ]
        )


def work_seconds(product_seconds: float, width: int, *, blocks: int, device: str) -> float:
    """How long training takes, about.

    On a CPU a narrow model spends most of its time between its products: work element by element grows with the width,
    products with its square, and calling a block costs what it costs. Against measured steps of one core (widths 16 to
    256, 2 to 8 layers, 64 to 2,048 tokens) it is within a factor of 1.6.

    Args:
        product_seconds: Of all products at the measured rate.
        width: Of the model.
        blocks: Blocks passed forward and backward in the whole run.
        device: `cpu` or `cuda`.
    """
    if device != "cpu":
        return product_seconds / _EXPECTED_MFU
    return product_seconds * (1 + _NARROW_WIDTH / width) / _WIDEST_MFU + blocks * _BLOCK_SECONDS


def cost_rows(
    shape: ModelConfig,
    train: TrainConfig,
    *,
    rows: int,
    sequence_length: int,
    share: float = 1.0,
    adapter: AdapterConfig | None = None,
    tokens: int = 0,
) -> Sequence[PlanRow]:
    """What a run costs, for `--dry-run`.

    Args:
        shape: The model.
        train: Length of the run.
        rows: Rows of a batch.
        sequence_length: Tokens of a row.
        share: Mean document length over the row's, as far as it is known: attention costs that much less.
        tokens: Of the whole run, where the batch grows; 0: every step has the same.
        adapter: What is trained instead of the weights.

    Returns:
        Parameters, tokens, FLOPs, memory, disk and time.
    """
    from puna.train.machine import choose_machine
    from puna.train.matmul_rate import matmul_rate

    batch = rows * sequence_length
    tokens = tokens or batch * train.accumulation * train.steps
    causal = shape.flops_per_token(sequence_length * share, convention="causal")
    full = shape.flops_per_token(sequence_length * share, convention="full")
    machine = choose_machine(train.device, train.precision)
    rate = matmul_rate(machine.device, machine.dtype)
    per_token = 4 * (4 * shape.dim + (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim + 3 * shape.ffn_dim)
    activations = batch * shape.n_layers * per_token
    trained = shape.parameters() if adapter is None else adapter.parameters(shape)
    weights = _ADAMW_BYTES * trained
    if adapter is not None:
        weights += round(adapter.frozen_bytes(shape, bytes_per_value=machine.dtype.itemsize))
    checkpoint = 12 * trained
    blocks = shape.n_layers * train.accumulation * train.steps
    seconds = work_seconds(tokens * causal / rate, shape.dim, blocks=blocks, device=machine.device.type)
    room = f"{console.short_bytes(weights)} weights and AdamW, {console.short_bytes(activations)} activations"
    pace = f"at {tokens * causal / (rate * seconds):.0%} of {rate / 1e9:.3g} GFLOP/s on {machine.device}"
    return [
        ("parameters", f"{shape.parameters():,}" + ("" if adapter is None else f" frozen; {trained:,} trained")),
        ("tokens", f"{tokens:,} in {train.steps:,} steps of {tokens // train.steps:,}"),
        ("FLOPs per token", f"{console.short_number(causal)} causal, {console.short_number(full)} full attention"),
        ("FLOPs in all", f"{tokens * causal:.3g} (causal)"),
        ("memory, about", room),
        ("memory to save behind", f"{console.short_bytes(checkpoint)}, else saving holds up training"),
        ("disk, about", console.short_bytes(checkpoint * (train.keep_last + 1))),
        ("time, about", f"{console.short_time(seconds)} {pace}"),
    ]
