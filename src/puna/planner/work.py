"""How much there is to do: the amounts behind a step of one rank, in FLOPs, bytes and counts; no efficiency in here.

All amounts are those of the slowest pipeline rank. Per micro-batch: products of the blocks, of the head, attention,
elementwise traffic, collectives of tensor, context and pipeline parallelism, and of FSDP where it gathers every time.
Per step: gradient reduction, the optimizer. `step_time.py` turns amounts into seconds with the fitted constants; as
both are plain arithmetic, the fit runs the same formulas over arrays of all published rows at once.

Communication is given in seconds at the nominal bandwidth, since the link depends on who talks to whom: tensor
parallelism lives inside a node where it fits, then context, then sharding; pipeline stages are furthest apart. A group
with k members in each node has k network ports a node (and never more than NVLink).

Sources: 2205.05198, sections 4 and 5 (activations, sequence parallelism, recomputation); 2104.04473, section 2
(pipeline bubble); 2205.14135 (attention costs 2 products forward and 5 backward with recomputation inside the kernel).
"""

import math
from dataclasses import dataclass, fields

from puna.planner.layout import Workload

# share of products, attention and elementwise work that the backward pass repeats
_REPEATED = {
    "none": (0.0, 0.0, 0.0),
    "attention": (0.0, 1.0, 0.0),
    "selective": (0.0, 0.0, 1.0),
    "alternate": (0.5, 0.5, 1.0),
    "full": (1.0, 1.0, 1.0),
}
_RESIDUAL_PASSES = 10  # reads and writes of [T, D] in a block: two norms (2 each), two residual additions (3 each)
_SCORE_PASSES = 9  # of [heads, S, S] without a fused kernel: product, scale and mask, softmax, dropout, product


@dataclass(frozen=True)
class Amounts:
    """What one rank does.

    Attributes:
        micro_batches: Per step.
        bubble: Idle micro-batch times at the ends of a step, per micro-batch time: (pp - 1) / stages_per_rank.
        product_flops: Of the blocks, forward and backward, a micro-batch; in the low precision if there is one.
        product_penalty: Mean of 1/M + 1/N + 1/K over these products: how far they are from square and large.
        head_flops: Of the output head, forward and backward.
        attention_flops: Causal half, 3.5 times the forward pass.
        narrow_heads: 128 / head width - 1, at least 0: kernels feed the tensor cores worse on narrow heads.
        repeat_product_flops: Repeated in the backward pass.
        repeat_attention_flops: Repeated.
        elementwise_bytes: Traffic of elementwise operations, forward, backward and repeated.
        score_bytes: Traffic of attention scores when there is no fused kernel, otherwise 0.
        cast_bytes: Traffic of casts to 8 or 4 bits.
        layer_passes: Passes through a block of this rank (forward, backward, repeated): each costs the host some time.
        tp_seconds: Collectives of tensor parallelism at nominal bandwidth.
        cp_seconds: Gathering keys and values, and reducing their gradients.
        pp_seconds: Sending activations to the neighbouring stages.
        fsdp_seconds: Gathering weights and reducing gradients every micro-batch; 0 when done once a step.
        fsdp_hops: Network hops of these collectives: nodes in the ring times collectives.
        step_seconds: Gathering and reducing that is done once a step.
        step_hops: Network hops of that.
        optimizer_bytes: Traffic of the optimizer.
        doublings: log2 of the number of nodes: more of them, more stragglers.
        ridge: FLOPs a byte that the card balances: peak / memory bandwidth, in 16 bits.
    """

    micro_batches: float
    bubble: float
    product_flops: float
    product_penalty: float
    head_flops: float
    attention_flops: float
    narrow_heads: float
    repeat_product_flops: float
    repeat_attention_flops: float
    elementwise_bytes: float
    score_bytes: float
    cast_bytes: float
    layer_passes: float
    tp_seconds: float
    cp_seconds: float
    pp_seconds: float
    fsdp_seconds: float
    fsdp_hops: float
    step_seconds: float
    step_hops: float
    optimizer_bytes: float
    doublings: float
    ridge: float

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Fields in order."""
        return tuple(field.name for field in fields(cls))


def amounts(work: Workload) -> Amounts:
    """Count the work of the slowest rank."""
    shape, degrees = work.shape, work.degrees
    tokens = work.micro_batch * work.seq_len / degrees.cp
    layers, heads = stage_layers(work)
    again = tuple(share * work.checkpointed for share in _REPEATED[work.recompute])
    product = 2 * tokens * layers * shape.layer_parameters / degrees.tp
    attention = 2 * tokens * layers * shape.query_dim * work.seq_len / degrees.tp
    head = 6 * tokens * heads * shape.head_parameters / degrees.tp
    passes = 3 + again[2]
    fsdp, fsdp_hops, step, step_hops = _sharding_seconds(work)
    scores = 0.0
    if work.stack.attention == "scores":
        per_pass = 2 * tokens * work.seq_len * shape.n_heads / degrees.tp * layers
        scores = per_pass * _SCORE_PASSES * (3 + again[1])
    return Amounts(
        micro_batches=work.micro_batches,
        bubble=(degrees.pp - 1) / work.stages_per_rank,
        product_flops=3 * product,
        product_penalty=_product_penalty(work, tokens),
        head_flops=head,
        attention_flops=3.5 * attention,
        narrow_heads=max(0.0, 128 / shape.head_width - 1),
        repeat_product_flops=again[0] * product,
        repeat_attention_flops=again[1] * attention,
        elementwise_bytes=(
            layers * _block_bytes(work, tokens) + heads * 12 * tokens * shape.vocab_size / degrees.tp / 3
        )
        * passes,
        score_bytes=scores,
        cast_bytes=0.0 if work.precision == "bf16" else layers * passes * _cast_bytes(work, tokens),
        layer_passes=layers * (2 + again[0]),
        tp_seconds=layers * _tensor_seconds(work, tokens) * (2 + again[0]),
        cp_seconds=layers * _context_seconds(work) * (3 + again[1]),
        pp_seconds=_pipeline_seconds(work, tokens),
        fsdp_seconds=fsdp,
        fsdp_hops=fsdp_hops,
        step_seconds=step,
        step_hops=step_hops,
        optimizer_bytes=28 * _rank_parameters(work) / (_shard_group(work) if work.zero else 1),
        doublings=math.log2(max(1.0, work.cluster.n_gpus / 8)),
        ridge=work.cluster.gpu.bf16_flops / work.cluster.gpu.memory_bandwidth,
    )


def stage_layers(work: Workload) -> tuple[float, float]:
    """Blocks of the slowest rank, and its share of the head.

    Embedding and head may each take the place of a block (Llama 3 gives one block less to the first and last stage,
    2407.21783 section 3.3.2); otherwise the fullest rank is told by rounding up, and the last one has the head beside
    its blocks.
    """
    layers, pp, pieces = work.shape.n_layers, work.degrees.pp, work.degrees.pp * work.stages_per_rank
    if pp == 1:
        return layers, 1.0
    if layers % pieces and (layers + 2) % pieces == 0:
        return (layers + 2) / pp, 0.0
    if layers % pieces == 0:
        return layers / pp, 1.0
    each, more = divmod(layers, pieces)
    return each * work.stages_per_rank + math.ceil(more / pp), 0.0


def _product_penalty(work: Workload, tokens: float) -> float:
    shape, tp = work.shape, work.degrees.tp
    fan = 2 if shape.gated else 1
    products = (
        (shape.dim, (shape.query_dim + 2 * shape.kv_dim) / tp),
        (shape.query_dim / tp, shape.dim),
        (shape.dim, fan * shape.ffn_dim / tp),
        (shape.ffn_dim / tp, shape.dim),
    )
    flops = sum(k * n for k, n in products)
    return sum(k * n * (1 / k + 1 / n + 1 / tokens) for k, n in products) / flops


def _block_bytes(work: Workload, tokens: float) -> float:
    """Elementwise traffic of a block's forward pass in 16 bits."""
    shape, tp = work.shape, work.degrees.tp
    residual = _RESIDUAL_PASSES * tokens * shape.dim / (tp if work.sequence_parallel else 1)
    rotary = 2 * tokens * (shape.query_dim + shape.kv_dim) / tp
    gate = (3 if shape.gated else 2) * tokens * shape.ffn_dim / tp
    return 2 * (residual + rotary + gate)


def _cast_bytes(work: Workload, tokens: float) -> float:
    """Reading 2 bytes and writing 1 twice (a copy and its transpose) for every operand; and 2 for the largest value."""
    shape, tp = work.shape, work.degrees.tp
    each = 6 if work.stack.scales_from_values else 4
    return each * tokens * (2 * shape.dim + (shape.query_dim + shape.ffn_dim) / tp)


def _bandwidth(work: Workload, inner: int, group: int) -> float:
    """Bytes/s and GPU of a collective over `group` ranks that are `inner` ranks apart."""
    gpu = work.cluster.gpu
    if inner * group <= gpu.node_gpus:
        return gpu.link_bandwidth
    in_node = max(1, gpu.node_gpus // inner)
    return min(gpu.link_bandwidth, gpu.network_bandwidth * in_node)


def _tensor_seconds(work: Workload, tokens: float) -> float:
    """Two all-reduces (or gather and scatter pairs) of a block's forward pass."""
    tp = work.degrees.tp
    return 4 * (tp - 1) / tp * tokens * work.shape.dim * 2 / _bandwidth(work, 1, tp)


def _context_seconds(work: Workload) -> float:
    """One gather of keys and values over the whole sequence."""
    degrees, shape = work.degrees, work.shape
    width = shape.query_dim if work.stack.expands_keys else shape.kv_dim
    keys = work.micro_batch * work.seq_len * 2 * max(width / degrees.tp, shape.head_width) * 2
    return (degrees.cp - 1) / degrees.cp * keys / _bandwidth(work, degrees.tp, degrees.cp)


def _pipeline_seconds(work: Workload, tokens: float) -> float:
    """Activations out and gradients back, for every piece of the rank."""
    degrees = work.degrees
    if degrees.pp == 1:
        return 0.0
    payload = 2 * tokens * work.shape.dim / (degrees.tp if work.sequence_parallel else 1)
    inner = work.cluster.n_gpus // degrees.pp
    inside = inner < work.cluster.gpu.node_gpus and work.cluster.n_gpus <= work.cluster.gpu.node_gpus
    gpu = work.cluster.gpu
    return 2 * work.stages_per_rank * payload / (gpu.link_bandwidth if inside else gpu.network_bandwidth)


def _rank_parameters(work: Workload) -> float:
    """Weights of a rank before sharding: its blocks, and embedding or head at the ends of the pipeline."""
    layers, _ = stage_layers(work)
    ends = 1 if work.degrees.pp > 1 or work.shape.tied else 2
    return (layers * work.shape.layer_parameters + ends * work.shape.head_parameters) / work.degrees.tp


def _shard_group(work: Workload) -> int:
    return work.degrees.dp_shard * work.degrees.cp


def _sharding_seconds(work: Workload) -> tuple[float, float, float, float]:
    """Seconds and hops every micro-batch, then once a step."""
    degrees = work.degrees
    inner, group = degrees.tp, _shard_group(work)
    weights, wire = _rank_parameters(work), work.stack.gradient_bytes
    layers, _ = stage_layers(work)
    nodes = math.ceil(inner * group / work.cluster.gpu.node_gpus)
    piece = (group - 1) / group * weights / _bandwidth(work, inner, group) if group > 1 else 0.0
    per_micro = hops = step = step_hops = 0.0
    if work.zero == 0:
        group, degrees_left = 1, degrees.data_parallel * degrees.cp
        step, step_hops = _all_reduce(work, weights * wire, inner, degrees_left)
    else:
        degrees_left = degrees.dp_replicate
    if work.zero and not work.gathers_once:
        per_micro, hops = piece * (2 + 2 + wire), nodes * layers * 3
    elif work.zero:
        step, step_hops = piece * (2 + wire), nodes * layers * 2
    if work.zero and degrees_left > 1:
        more, more_hops = _all_reduce(work, weights * wire / group, inner * group, degrees_left)
        step, step_hops = step + more, step_hops + more_hops
    if nodes <= 1:
        hops, step_hops = 0.0, step_hops - nodes * layers * 2 * bool(work.zero and work.gathers_once)
    return per_micro, hops, step, max(0.0, step_hops)


def _all_reduce(work: Workload, payload: float, inner: int, group: int) -> tuple[float, float]:
    if group <= 1:
        return 0.0, 0.0
    layers, _ = stage_layers(work)
    nodes = math.ceil(inner * group / work.cluster.gpu.node_gpus)
    seconds = 2 * (group - 1) / group * payload / _bandwidth(work, inner, group)
    return seconds, (nodes * layers * 2 if nodes > 1 else 0.0)
