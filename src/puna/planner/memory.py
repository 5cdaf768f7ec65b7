"""Memory of the fullest rank, by kind, in bytes.

Weights, gradients and optimizer states follow from the ZeRO stage (1910.02054): AdamW in mixed precision keeps 2 bytes
of weight for compute, 4 of gradient sum, and 12 of master weight and two moments; FSDP keeps all 16 divided and gathers
two blocks at a time. Activations follow 2205.05198, section 4, recounted for a gated feed-forward and a fused attention
kernel, which keeps no scores. A block keeps of a token, in values of 2 bytes:

    all of them           5 D     + (2 q + 2 kv + 4 F) / tp     the gate's three inputs and its result each count
    compiled              2 D     + (2 q + 2 kv + 2 F) / tp     norms and the gate are computed again from their inputs
    products kept         3 D     + (2 q + 2 kv + 2 F) / tp     of which 2 D are whole (sums before scattering)
    every other product   2 D     + (2 q + kv + F) / tp

D is divided by tp with sequence parallelism, and then 2 D more are whole (the inputs of the products) unless they are
gathered again in the backward pass.

A pipeline's first rank holds pp micro-batches in flight (interleaving: 1 + (pp - 1) / (pp v) times as many, never more
than there are); its last one holds the logits: with a loss in fp32, log-probabilities, their gradient and that of the
logits, 12 bytes each.
"""

from dataclasses import dataclass
from typing import Literal

from puna.planner.layout import Recompute, Workload
from puna.planner.work import stage_layers

ZeroStage = Literal[0, 1, 2, 3]

GIB = 2**30
CONTEXT_BYTES = 2.0 * GIB
"""CUDA context, cuBLAS and NCCL buffers of a process; PyTorch's own counts, which are what is published, lack them."""
FRAGMENTS = 0.04
"""Of what is allocated: the caching allocator's holes."""
LOGIT_CHUNK_BYTES = 4.0 * (32 << 20)
"""Of a loss that is computed piece by piece: logits, their fp32 copy and gradient of one piece (ours)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of the fullest rank.

    Attributes:
        weights: For compute, and where they are divided (FSDP) the master copy too.
        gradients: Sums over micro-batches.
        optimizer: Moments, and the master copy where weights are whole.
        activations: Kept for the backward pass, in flight together.
        logits: Scores over the vocabulary.
        buffers: Gathered blocks, communication, the allocator's holes, the CUDA context.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def total_gib(self) -> float:
        """All of it, GiB."""
        return self.total / GIB


def rank_memory(work: Workload, *, chunked_logits: bool = False) -> RankMemory:
    """Memory of the fullest rank.

    Args:
        work: The configuration.
        chunked_logits: The loss is computed piece by piece and never holds all logits (ours does).
    """
    shape, degrees = work.shape, work.degrees
    parameters = rank_parameters(work)
    group = degrees.dp_shard * degrees.cp if work.zero else 1
    if work.zero == 3:
        weights, gradients, optimizer = (parameters * b / group for b in (4, 4, 8))
        # with a pipeline, weights stay gathered and gradient sums stay whole until the last micro-batch
        gathered = parameters * (2 + 4) if work.gathers_once else 2 * 2 * shape.layer_parameters / degrees.tp
        gathered += 2 * shape.head_parameters / degrees.tp + 4 * shape.layer_parameters / degrees.tp
        if group == 1:
            gathered = 0.0
    else:
        weights = 2 * parameters
        gradients = 4 * parameters / (group if work.zero == 2 and not work.gathers_once else 1)
        optimizer = 12 * parameters / group
        gathered = 0.0
    kept = activation_bytes(work)
    tokens = work.micro_batch * work.seq_len / degrees.cp
    logits = tokens * shape.vocab_size / degrees.tp * work.stack.logit_bytes
    if chunked_logits:
        logits = min(logits, LOGIT_CHUNK_BYTES)
    else:
        logits += 4 * tokens * shape.dim  # the hidden states before the head and their gradient, of all tokens
    if degrees.pp > 1:  # the last rank has few micro-batches in flight, the first one many
        last = kept / min(degrees.pp, work.micro_batches) + logits
        logits = max(0.0, last - kept)
    held = weights + gradients + optimizer + kept + logits + gathered
    return RankMemory(weights, gradients, optimizer, kept, logits, gathered + FRAGMENTS * held + CONTEXT_BYTES)


def rank_parameters(work: Workload) -> float:
    """Weights of the fullest rank before dp_shard divides them."""
    shape, degrees = work.shape, work.degrees
    layers, _ = stage_layers(work)
    if degrees.pp == 1:
        return shape.parameters() / degrees.tp
    return (layers * (shape.layer_parameters + 2 * shape.dim) + shape.head_parameters) / degrees.tp


def block_bytes(work: Workload, recompute: Recompute = "none") -> float:
    """Activations that one block keeps of a token.

    Args:
        work: The configuration.
        recompute: How much is computed again: none, selective or alternate; see the head of the file.
    """
    shape, tp, stack = work.shape, work.degrees.tp, work.stack
    query, kv, ffn = shape.query_dim, shape.kv_dim, shape.ffn_dim
    residual, inner = {
        "none": (2, 2 * query + 2 * kv + (2 if shape.gated else 1) * ffn)
        if stack.pointwise_again
        else (5, 2 * query + 2 * kv + (4 if shape.gated else 2) * ffn),
        "selective": (3, 2 * query + 2 * kv + (2 if shape.gated else 1) * ffn),
        "alternate": (2, 2 * query + kv + ffn),
    }[recompute]
    shared = tp if work.sequence_parallel else 1
    values = residual * shape.dim / shared + inner / tp
    if tp > 1 and work.sequence_parallel and recompute == "selective":
        values += 2 * shape.dim * (1 - 1 / tp)
    elif tp > 1 and work.sequence_parallel and not stack.gathers_again and recompute == "none":
        values += 2 * shape.dim * (1 if stack.pointwise_again else 1 - 1 / tp)
    return 2 * values


def activation_bytes(work: Workload) -> float:
    """Activations in flight on the first rank of the pipeline."""
    degrees = work.degrees
    layers, _ = stage_layers(work)
    tokens = work.micro_batch * work.seq_len / degrees.cp
    block = tokens * block_bytes(work)
    if work.stack.attention == "scores" and work.recompute not in ("attention", "full"):
        # scores before and after softmax and the dropout mask: 5 a s of 2205.05198, equation 2
        block += 5 * tokens * work.seq_len * work.shape.n_heads / degrees.tp
    edge = 2 * tokens * work.shape.dim / (degrees.tp if work.sequence_parallel else 1)
    again = {
        "none": block,
        "attention": block,
        "selective": tokens * block_bytes(work, "selective"),
        "alternate": tokens * block_bytes(work, "alternate"),
        "full": edge,
    }[work.recompute]
    kept = work.checkpointed * again + (1 - work.checkpointed) * block
    flight = float(min(degrees.pp, work.micro_batches))
    if work.stages_per_rank > 1:
        woven = degrees.pp * (1 + (degrees.pp - 1) / (degrees.pp * work.stages_per_rank))
        flight = min(woven, work.micro_batches)
    extra = block if work.recompute in ("selective", "alternate", "full") else 0.0  # what is being computed again
    return flight * layers * kept + extra
