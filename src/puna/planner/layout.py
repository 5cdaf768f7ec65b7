"""What is to be timed: a model on a cluster in a layout with a batch, and the software that runs it.

A `Stack` holds the facts about a training stack that decide how work becomes time: whether attention is a fused kernel,
whether elementwise operations are fused, which communication hides behind compute. They are read from its
documentation, not fitted; only one factor a family, close to 1, is (`constants.py`).
"""

from dataclasses import dataclass
from typing import Literal

from puna.core.errors import UsageError
from puna.planner.hardware import Cluster, Precision
from puna.planner.shape import Shape

Recompute = Literal["none", "attention", "selective", "alternate", "full"]
"""What the backward pass computes again: nothing; attention alone (2205.05198); all but products and attention (what
`parallel.recompute=selective` does); every other product and all elementwise work (torchtitan's per-operation
checkpointing, and every-other-block); or the whole block."""


AttentionKernel = Literal["scores", "flash1", "flash2", "hopper"]


@dataclass(frozen=True)
class Stack:
    """Software.

    Attributes:
        family: Under which its fitted factor is kept; an unknown family has the factor 1.
        attention: `scores` go through memory; or one fused kernel: `flash1` (FlashAttention in Triton, 2022), `flash2`
            (torch's default), `hopper` written for that card (FlashAttention 3, cuDNN 9). Blackwell has one only.
        fused: Elementwise operations are fused (torch.compile, TransformerEngine).
        hides_data_parallel: Gradient reduction runs beside the backward pass.
        hides_tensor_parallel: Products and their collectives are cut and overlapped (user buffers, async TP).
        hides_context_parallel: Keys and values are passed around beside the attention that uses them.
        expands_keys: Context parallelism moves keys and values repeated for every query head: torch's works on the
            arguments of the attention operator, after models have repeated them.
        scales_from_values: A cast to 8 bits first reads a tensor for its largest value (torchao), rather than taking
            the scale from earlier steps or from small blocks.
        shards_every_micro_batch: FSDP gathers and reduces at every micro-batch, not once a step.
        gradient_bytes: Of one gradient value on the wire.
        gathers_again: Inputs of tensor-parallel products are gathered again in the backward pass, not kept whole.
        pointwise_again: A compiler computes norms and gates again in the backward pass instead of keeping them.
        logit_bytes: At the peak of the loss, of one logit.
    """

    family: str = "unseen"
    attention: AttentionKernel = "flash2"
    fused: bool = True
    hides_data_parallel: bool = True
    hides_tensor_parallel: bool = False
    hides_context_parallel: bool = True
    expands_keys: bool = False
    scales_from_values: bool = False
    shards_every_micro_batch: bool = True
    gradient_bytes: int = 4
    gathers_again: bool = False
    pointwise_again: bool = False
    logit_bytes: float = 12.0


STACKS: dict[str, Stack] = {
    "puna": Stack(
        "torch-compile", hides_context_parallel=False, scales_from_values=True, gathers_again=True, pointwise_again=True
    ),
    "torch-compile": Stack(
        "torch-compile", hides_context_parallel=False, expands_keys=True, scales_from_values=True, pointwise_again=True
    ),
    "torch-eager": Stack(
        "torch-eager", fused=False, hides_context_parallel=False, expands_keys=True, scales_from_values=True
    ),
    "llm-foundry": Stack("llm-foundry", attention="flash1", fused=False, gradient_bytes=2),
    "nvidia": Stack(
        "nvidia", attention="hopper", hides_tensor_parallel=True, gradient_bytes=2, gathers_again=True, logit_bytes=8.0
    ),
    "megatron-2021": Stack(
        "megatron-2021", attention="scores", fused=False, hides_data_parallel=False, gathers_again=True
    ),
    "nanotron": Stack("nanotron", fused=False, hides_data_parallel=False, gradient_bytes=4),
    "unseen": Stack(),
}
"""By family. fp32 gradient reduction is torch FSDP2's and ours; llm-foundry's PURE and DEFAULT policies reduce in
bf16."""


DEGREES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
"""The degrees of parallelism, in the order in which they are read; recipes name them so."""


@dataclass(frozen=True)
class Degrees:
    """How a run is spread over processes.

    Attributes:
        dp_replicate: Copies of the sharded model; each reads other rows.
        dp_shard: Ranks that divide weights, gradients and optimizer states (what of it: `Workload.zero`).
        cp: Ranks that share a sequence.
        tp: Ranks that share a matrix.
        pp: Ranks that share the layers.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def data_parallel(self) -> int:
        """Ranks that read different rows."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        """Like `dp_shard 8 x tp 2`; `one process` when all are 1."""
        parts = [f"{name} {getattr(self, name)}" for name in DEGREES if getattr(self, name) > 1]
        return " x ".join(parts) or "one process"


@dataclass(frozen=True)
class Workload:
    """One configuration.

    Attributes:
        shape: The model.
        cluster: The machine.
        degrees: How it is spread.
        seq_len: Tokens of a sequence.
        global_batch: Sequences of an optimizer step.
        micro_batch: Sequences of one forward pass of a data-parallel rank.
        stages_per_rank: Model pieces a pipeline rank holds (interleaving); 1 is plain 1F1B.
        zero: What dp_shard divides: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too (FSDP).
        recompute: What the backward pass computes again.
        precision: Of the products inside the blocks.
        sequence_parallel: Norms and residuals are divided over tp as well (only with tp > 1).
        stack: The software.
        checkpointed: Share of the blocks that recompute applies to.
    """

    shape: Shape
    cluster: Cluster
    degrees: Degrees
    seq_len: int
    global_batch: int
    micro_batch: int = 1
    stages_per_rank: int = 1
    zero: Literal[0, 1, 2, 3] = 3
    recompute: Recompute = "none"
    precision: Precision = "bf16"
    sequence_parallel: bool = True
    stack: Stack = STACKS["puna"]
    checkpointed: float = 1.0

    @property
    def micro_batches(self) -> int:
        """Forward passes of a data-parallel rank in one step."""
        return max(1, round(self.global_batch / (self.degrees.data_parallel * self.micro_batch)))

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch * self.seq_len

    @property
    def gathers_once(self) -> bool:
        """Whether weights are gathered once a step: with a pipeline, FSDP keeps them between micro-batches."""
        return self.zero < 3 or self.degrees.pp > 1 or not self.stack.shards_every_micro_batch

    def problems(self) -> list[str]:
        """Why this layout cannot be built; empty when it can."""
        found, d, shape = [], self.degrees, self.shape
        if d.world_size != self.cluster.n_gpus:
            found.append(f"{d} is {d.world_size} processes, the cluster has {self.cluster.n_gpus}")
        if shape.n_heads % d.tp or shape.ffn_dim % d.tp:
            found.append(f"tp {d.tp} does not divide {shape.n_heads} heads and the feed-forward of {shape.ffn_dim}")
        elif shape.n_kv_heads % d.tp and d.tp % shape.n_kv_heads:
            found.append(f"tp {d.tp} and {shape.n_kv_heads} kv heads do not divide each other")
        if d.pp * self.stages_per_rank > shape.n_layers + (2 if d.pp > 1 else 0):
            pieces = f"{d.pp} x {self.stages_per_rank} pipeline pieces"
            found.append(f"{pieces} are more than {shape.n_layers} layers, embedding and head")
        if self.global_batch % (d.data_parallel * self.micro_batch):
            found.append(
                f"{self.global_batch} sequences do not split into {d.data_parallel} data-parallel ranks with "
                f"micro-batches of {self.micro_batch}"
            )
        if self.seq_len % (2 * d.cp * d.tp if d.cp > 1 else d.tp):
            found.append(f"{self.seq_len} tokens do not split evenly over cp {d.cp} and tp {d.tp}")
        return found

    def check(self) -> None:
        """Raise UsageError when the layout cannot be built."""
        if found := self.problems():
            raise UsageError("the layout cannot be built: " + "; ".join(found))
