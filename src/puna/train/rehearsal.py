"""A step of one rank without numbers: the model of a large run, built, sharded, scheduled and run on shapes alone.

The process group is PyTorch's fake one, so one process can be any rank of a world of any size, and tensors are on the
meta device, which has shapes and no memory. What is counted is what the code does, not what a formula says of it:
shards that exist, tensors that autograd keeps, bytes that go through each group, the order of the pipeline's work.
FSDP's traffic follows from the sizes of the shards. Activations are those of eager execution; the compiler keeps fewer.

One micro-batch runs through each of the rank's stages; counts are multiplied by what the schedule does with it.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from puna.core.batch import PackedBatch
from puna.model.config import ModelConfig
from puna.model.layout import DocumentLayout
from puna.model.transformer import Transformer
from puna.train.blocks import KEPT, prepare_blocks
from puna.train.loss import next_token_loss
from puna.train.machine import Machine
from puna.train.parallel import Ranks
from puna.train.parallel_config import ParallelConfig, Work


@dataclass(frozen=True)
class Rehearsal:
    """What was counted on one rank.

    Attributes:
        parameters: Numbers that it steps.
        part_parameters: Numbers of its stages before FSDP deals them out.
        activation_bytes: Kept for the backward, by one micro-batch through all its stages.
        block_bytes: Of one block while it is computed again; 0 when nothing is.
        in_flight: Most micro-batches of a stage, times stages, that are kept at once, over its stages.
        gathered_bytes: Gathered parameters and their gradients that are there at once.
        traffic: Bytes that this rank sends in a step, by axis.
        bubble: Idle share of the pipeline's slots, if forward is half of backward.
        seconds: That the rehearsal took.
        memory_bytes: Peak of this process.
    """

    parameters: int
    part_parameters: int
    activation_bytes: int
    block_bytes: int
    in_flight: float
    gathered_bytes: int
    traffic: Mapping[str, float]
    bubble: float
    seconds: float
    memory_bytes: int


def rehearse(config: ParallelConfig, model: ModelConfig, work: Work) -> Rehearsal:
    """Build and run the first rank, which has the embedding and the most micro-batches in flight.

    Args:
        config: Every degree known, checked.
        model: The model.
        work: The step.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    start = time.perf_counter()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=config.world_size)
    try:
        return _rehearse(config, model, work, start)
    finally:
        dist.destroy_process_group()


def _rehearse(config: ParallelConfig, model: ModelConfig, work: Work, start: float) -> Rehearsal:
    plain = config.model_copy(update={"compile": False, "float8": "none", "async_tp": False, "offload": "none"})
    ranks = Ranks(plain, Machine(torch.device("meta"), torch.bfloat16, "meta"))
    ranks.build(model)
    batch = _batch(work, config)
    kept, traffic = 0, _Traffic(ranks)
    with traffic:
        for number in config.stages_of(0):
            kept += _through(ranks, traffic, number, model, batch)
    block = _one_block(ranks, model, batch) if plain.recompute != "none" else 0
    per_micro_batch = dict(traffic.bytes)
    flight, bubble = _order(ranks, work)
    parameters = sum(w.numel() for w in ranks.weights.named.values())
    parts = sum(_part_numel(stage) for stage in ranks.models)
    sends = {axis: n * work.accumulation for axis, n in per_micro_batch.items()}
    if config.shard_ranks > 1:  # parameters in bf16, forward and backward; gradients in fp32
        keeps = config.reshard_after_forward == "never" or (config.pp > 1 and config.reshard_after_forward == "auto")
        times = 1 if config.pp > 1 else work.accumulation
        sends["fsdp"] = times * parameters * (config.shard_ranks - 1) * (2.0 * (1 if keeps else 2) + 4.0)
    if config.pp > 1:  # stages send the stream both ways
        stream = batch.tokens.size // (config.cp * config.tp) * model.dim * 2
        sends["pp"] = 2.0 * stream * work.accumulation * len(ranks.models)
    if config.dp_replicate > 1:
        sends["dp_replicate"] = 2.0 * parameters * 4 * (config.dp_replicate - 1) / config.dp_replicate
    return Rehearsal(
        parameters=parameters,
        part_parameters=parts,
        activation_bytes=kept,
        block_bytes=block,
        in_flight=flight,
        gathered_bytes=_gathered(ranks, parts),
        traffic=sends,
        bubble=bubble,
        seconds=time.perf_counter() - start,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    )


def _batch(work: Work, config: ParallelConfig) -> PackedBatch:
    shape = work.rows // config.data_ranks, work.sequence_length
    zeros = np.zeros(shape, dtype=np.int64)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return PackedBatch(zeros, zeros, positions, np.full(shape[0], shape[1], dtype=np.int64), zeros.size)


def _through(ranks: Ranks, traffic: "_Traffic", number: int, model: ModelConfig, batch: PackedBatch) -> int:
    """Forward and backward of a micro-batch; the bytes that autograd kept beside the parameters.

    Through a twin of the stage with its parameters gathered: FSDP's hooks take no meta tensors.
    """
    with torch.device("meta"):
        stage = Transformer(model, ranks.split_of(number, model)).to(torch.bfloat16)
    prepare_blocks(stage.layers, ranks.config, stage.split)
    selective = ranks.config.recompute == "selective"
    traffic.kept = 0
    for layer in stage.layers if selective else ():
        layer.register_forward_pre_hook(lambda *_: setattr(traffic, "inside", True))
        layer.register_forward_hook(lambda *_: setattr(traffic, "inside", False))
    loss, kept = _forward(ranks, stage, batch)
    if selective:  # attention's output and its sums of exponentials; here they are no operator of PyTorch
        split = stage.split
        n_tokens, heads = batch.tokens.size // split.cp, model.n_heads // split.tp
        kept += traffic.kept + len(stage.layers) * n_tokens * heads * (2 * model.head_dim + 4)
    loss.backward()
    return kept


def _one_block(ranks: Ranks, model: ModelConfig, batch: PackedBatch) -> int:
    """What one block keeps when nothing is computed again."""
    split = replace(ranks.split_of(0, model), layers=(0, 1), has_embedding=False, has_head=False)
    with torch.device("meta"):
        stage = Transformer(model, split).to(torch.bfloat16)
    tokens = torch.empty(batch.tokens.size, dtype=torch.int64, device="meta")
    shape = batch.tokens.size // (split.cp * split.tp), model.dim
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    return _counted(stage, lambda: stage.hidden(tokens, DocumentLayout(batch.lengths, device="meta"), received=x))[1]


def _forward(ranks: Ranks, stage: Transformer, batch: PackedBatch) -> tuple[Tensor, int]:
    if ranks.pipeline is None:
        return _counted(stage, lambda: next_token_loss(stage, batch).sum)
    pipeline, shape = ranks.pipeline, ranks.pipeline.stream_shape(batch.tokens.size)
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    return _counted(stage, lambda: pipeline.rehearse(next_token_loss, batch, stage, x).sum())


def _counted(stage: Transformer, work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What the work gives, and the bytes that autograd keeps of it beside the parameters."""
    seen: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in stage.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not isinstance(tensor, torch.nn.Parameter):
            seen[storage._cdata] = tensor.numel() * tensor.element_size()
            held.append(tensor)
        return tensor

    held: list[Tensor] = []  # a freed storage's number would be given out again
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return result, sum(seen.values())


def _part_numel(stage: Any) -> int:
    return sum(p.numel() for p in stage.parameters())  # a DTensor's number of elements is that of the part


def _gathered(ranks: Ranks, parts: int) -> int:
    """Gathered bf16 parameters, and fp32 gradients before they are reduced, that are there at once."""
    if ranks.config.shard_ranks == 1:
        return 2 * parts
    layers = [layer for stage in ranks.models for layer in stage.layers]
    block = max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0)
    edge = parts - sum(p.numel() for m in ranks.models for layer in m.layers for p in layer.parameters())
    if ranks.config.pp > 1:  # kept gathered, and gradients whole until the last micro-batch
        return (2 + 4) * parts
    return 2 * 2 * block + 4 * block + 2 * edge


def _order(ranks: Ranks, work: Work) -> tuple[float, float]:
    """Most micro-batches in flight, in units of the rank's whole part, and the idle share of the pipeline."""
    config, n = ranks.config, work.accumulation
    if ranks.pipeline is None:
        return 1.0, 0.0
    orders = ranks.pipeline.orders(n, work.rows // config.data_ranks * work.sequence_length)
    most = now = 0
    for action in orders[0]:
        if action is None:
            continue
        kind = action.computation_type.name
        now += {"FORWARD": 1, "FULL_BACKWARD": -1, "BACKWARD_WEIGHT": -1}.get(kind, 0)
        most = max(most, now)
    per_rank = len(ranks.models)
    rounds = {"1f1b": 1, "gpipe": 1}.get(config.schedule, per_rank)
    bubble = (config.pp - 1) / (rounds * n + config.pp - 1)
    if config.schedule in ("zero-bubble", "zbv"):
        bubble /= 3  # 2401.10241, table 1: the weight half of the backward fills two of three slots
    return most / per_rank, bubble


class _Traffic(TorchDispatchMode):
    """Counts the bytes that this rank sends, by axis: a ring sends (n - 1) / n of what is gathered or reduced."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.bytes: dict[str, float] = defaultdict(float)
        self._axes = ranks.group_names()
        self.inside, self.kept = False, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d."):
            self._count(name, args)
        result = func(*args, **(kwargs or {}))
        if self.inside and name in KEPT:
            self.kept += result.numel() * result.element_size()
        return result

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        groups = [a for a in args if type(a).__name__ in ("ScriptObject", "ProcessGroup")]
        tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(t, Tensor)]
        if not tensors or not groups:
            return
        group = groups[0]
        key = group.group_name if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group).group_name
        axis, size = self._axes.get(key, ("world", 1))
        largest = max(t.numel() * t.element_size() for t in tensors)
        self.bytes[axis] += largest * (size - 1) / size * (2 if "allreduce" in name else 1)
