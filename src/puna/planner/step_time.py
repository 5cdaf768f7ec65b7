"""From amounts to seconds: the one formula of the planner, in plain arithmetic.

A micro-batch costs compute plus what of its communication is not hidden:

    compute = products / (peak e) (1 + c ridge (1/M + 1/N + 1/K)) + attention / (peak e_a) + traffic / bandwidth + host
    exposed = s max(0, C - compute) + x min(C, compute)         for weights that FSDP moves every micro-batch
    step    = (micro_batches + bubble) micro + once a step + optimizer, all times (1 + j log2(nodes)) and the stack's
    factor

The second term of `compute` is the roofline of a matrix product in another form: bytes moved over FLOPs done is
(1/M + 1/N + 1/K), and `ridge` turns it into time. Every function takes numbers or NumPy arrays of equal length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.planner.constants import FITTED, Constants
from puna.planner.hardware import Architecture
from puna.planner.layout import AttentionKernel, Workload
from puna.planner.work import Amounts, amounts


@dataclass(frozen=True)
class Row:
    """Amounts with the facts that choose constants; each attribute a number, or an array over many rows.

    Attributes:
        amounts: What is to be done.
        peak16: FLOP/s in 16 bits.
        peak_low: FLOP/s in the precision of the blocks.
        bandwidth: Memory, bytes/s.
        power: Watts over those of the usual card, at most 1.
        ultra: 1 on the second Blackwell, else 0.
        product: Index into `Constants.product_efficiency`.
        attention: Index into `Constants.attention_efficiency`.
        fused: 1 or 0.
        hides_dp: 1 or 0.
        hides_tp: 1 or 0.
        hides_cp: 1 or 0.
        family: Index of the family, -1 for an unseen one.
    """

    amounts: Any
    peak16: Any
    peak_low: Any
    bandwidth: Any
    power: Any
    ultra: Any
    product: Any
    attention: Any
    fused: Any
    hides_dp: Any
    hides_tp: Any
    hides_cp: Any
    family: Any


@dataclass(frozen=True)
class Breakdown:
    """Seconds of one optimizer step, by what they are spent on; they add up to `total`.

    Attributes:
        products: Matrix products of the blocks and the head.
        attention: Attention, repeated parts of it included.
        recompute: Products done again in the backward pass.
        elementwise: Memory traffic of norms, activations, casts.
        host: Launching kernels.
        tensor: Exposed communication of tensor parallelism.
        context: Exposed gathering of keys and values.
        pipeline: Exposed sending between stages.
        data: Exposed gathering of weights and reducing of gradients.
        bubble: Waiting at the ends of the pipeline.
        optimizer: The update.
        jitter: Stragglers, and the stack's own factor.
    """

    products: Any
    attention: Any
    recompute: Any
    elementwise: Any
    host: Any
    tensor: Any
    context: Any
    pipeline: Any
    data: Any
    bubble: Any
    optimizer: Any
    jitter: Any

    @property
    def total(self) -> Any:
        """Seconds of the step."""
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


_PRODUCTS = (
    ("ampere", "bf16"), ("hopper", "bf16"), ("blackwell", "bf16"), ("hopper", "fp8"), ("blackwell", "fp8"),
    ("blackwell", "fp4"),
)  # fmt: skip
_ATTENTION = (
    ("ampere", "flash1"), ("ampere", "flash2"), ("hopper", "flash1"), ("hopper", "flash2"), ("hopper", "hopper"),
    ("blackwell", "flash2"),
)  # fmt: skip
_USUAL_WATTS = {"ampere": 400, "hopper": 700, "blackwell": 1000}


def row(work: Workload) -> Row:
    """Collect what the formula needs of a workload."""
    gpu, stack = work.cluster.gpu, work.stack
    precision = work.precision if (gpu.architecture, work.precision) in _PRODUCTS else "bf16"
    if gpu.architecture == "hopper" and work.precision == "fp4":
        precision = "fp8"
    return Row(
        amounts=amounts(work),
        peak16=gpu.bf16_flops,
        peak_low=gpu.peak(precision),
        bandwidth=gpu.memory_bandwidth,
        power=min(1.0, gpu.watts / _USUAL_WATTS[gpu.architecture]),
        product=_PRODUCTS.index((gpu.architecture, precision)),
        ultra=float(gpu.ultra),
        attention=_attention_index(gpu.architecture, stack.attention),
        fused=float(stack.fused),
        hides_dp=float(stack.hides_data_parallel),
        hides_tp=float(stack.hides_tensor_parallel),
        hides_cp=float(stack.hides_context_parallel),
        family=Constants.FAMILIES.index(stack.family) if stack.family in Constants.FAMILIES else -1,
    )


def _attention_index(architecture: Architecture, kernel: AttentionKernel) -> int:
    if architecture == "blackwell" or kernel == "scores" or (kernel == "hopper" and architecture == "ampere"):
        kernel = "flash2"
    return _ATTENTION.index((architecture, kernel))


def step_seconds(work: Workload, constants: Constants = FITTED) -> Breakdown:
    """Time of one optimizer step.

    Args:
        work: The configuration; it is not checked for being buildable.
        constants: Efficiencies.
    """
    return breakdown(row(work), constants)


def breakdown(given: Row, k: Constants) -> Breakdown:
    """The formula of the file's head, for one row or arrays of rows."""
    a: Amounts = given.amounts
    # a lower power limit slows the clock: by the cube root where voltage follows it, in proportion at the voltage's
    # floor
    clock = given.power**0.5 * k.ultra_speed**given.ultra
    rate = given.peak_low * np.asarray(k.product_efficiency)[given.product] * clock
    wide = 1 + k.product_roofline * a.ridge * a.product_penalty
    products = a.product_flops / rate * wide
    again = a.repeat_product_flops / rate * wide
    index16 = np.asarray((0, 1, 2, 1, 2, 2))[given.product]
    head = a.head_flops / (given.peak16 * np.asarray(k.product_efficiency)[index16] * clock)
    attention_rate = given.peak16 * np.asarray(k.attention_efficiency)[given.attention] * clock
    attention = (a.attention_flops + a.repeat_attention_flops) / attention_rate * (1 + k.narrow_heads * a.narrow_heads)
    traffic = np.where(given.fused > 0, k.fused_traffic, k.eager_traffic)
    moved = (a.elementwise_bytes + a.cast_bytes * k.cast_traffic) * traffic + a.score_bytes * k.score_traffic
    elementwise = moved / given.bandwidth
    host = a.layer_passes * np.where(given.fused > 0, 0.5, 1.0) * k.host_seconds_per_layer
    compute = products + head + again + attention + elementwise + host

    tensor = a.tp_seconds / k.link_efficiency * np.where(given.hides_tp > 0, k.tensor_exposed, 1.0)
    context = a.cp_seconds / k.network_efficiency * np.where(given.hides_cp > 0, k.context_exposed, 1.0)
    pipeline = a.pp_seconds / k.network_efficiency * k.pipeline_exposed
    wire = a.fsdp_seconds / k.network_efficiency + a.fsdp_hops * k.hop_seconds
    data = _exposed(wire, compute, k.data_exposed)
    micro = compute + tensor + context + pipeline + data

    n = a.micro_batches
    once = a.step_seconds / k.network_efficiency + a.step_hops * k.hop_seconds
    hidden = _exposed(once, micro, k.data_exposed)
    once = np.where(given.hides_dp > 0, hidden, once)
    optimizer = a.optimizer_bytes / given.bandwidth * k.optimizer_traffic + k.step_overhead_seconds
    bubble = a.bubble * micro
    plain = n * micro + bubble + once + optimizer
    factors = np.asarray((*k.family_factors, 1.0))[given.family]
    jitter = plain * ((1 + k.jitter_per_doubling * a.doublings) * factors - 1)
    return Breakdown(
        products=n * (products + head),
        attention=n * attention,
        recompute=n * again,
        elementwise=n * elementwise,
        host=n * host,
        tensor=n * tensor,
        context=n * context,
        pipeline=n * pipeline,
        data=n * data + once,
        bubble=bubble,
        optimizer=optimizer,
        jitter=jitter,
    )


def _exposed(communication: Any, compute: Any, share: Any) -> Any:
    """What of a transfer beside compute is seen: what is left over, and a share of what is hidden (contention)."""
    return np.maximum(0.0, communication - compute) + share * np.minimum(communication, compute)
