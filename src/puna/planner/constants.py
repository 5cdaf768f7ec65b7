"""The fitted constants: few, each with a physical meaning, and where they come from.

`puna plan --fit FILE.csv` reproduces `FITTED` from a file of published throughputs. Every constant is pulled towards
the prior below (log-normal, with the given spread), so what the data cannot tell keeps a sensible value, and a family
of software that nobody published stays at the factor 1.
"""

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class Constants:
    """Efficiencies of machine and software.

    Attributes:
        product_efficiency: Share of the peak that large matrix products reach: 16 bits on Ampere, Hopper, Blackwell;
            8 bits on Hopper, Blackwell; 4 bits on Blackwell.
        attention_efficiency: Share of the 16-bit peak that causal attention kernels reach, forward and backward
            together: Ampere with FlashAttention 1 and 2, Hopper with 1, 2 and its own, Blackwell.
        ultra_speed: Speed of the second Blackwell over the first at equal peak.
        product_roofline: How much of the bytes of a matrix product is not hidden behind its FLOPs.
        narrow_heads: Loss of attention kernels at half of 128 wide heads.
        fused_traffic: Elementwise bytes moved over those counted, fused.
        eager_traffic: The same, operation by operation.
        cast_traffic: Bytes of casts to low precision over those counted.
        score_traffic: Bytes of unfused attention scores over those counted.
        host_seconds_per_layer: Exposed launch time of a pass through a block, s (half of it when fused).
        link_efficiency: Share of NVLink that collectives of tensor parallelism reach.
        network_efficiency: Share of the network that collectives reach.
        tensor_exposed: Share of tensor-parallel communication that stays visible where a stack overlaps it.
        context_exposed: Visible share of gathering keys and values.
        pipeline_exposed: Visible share of sending between stages.
        data_exposed: Visible share of weight and gradient traffic that fits beside compute.
        hop_seconds: Latency of a collective a node in its ring, s.
        optimizer_traffic: Bytes of the optimizer over those counted.
        step_overhead_seconds: Of every step: logging, gradient norm, waiting for the host.
        jitter_per_doubling: Slower by this share for every doubling of the GPUs beyond 8.
        family_factors: One a family of software, in the order of FAMILIES.
    """

    FAMILIES: ClassVar[tuple[str, ...]] = (
        "torch-compile", "torch-eager", "llm-foundry", "nvidia", "megatron-2021", "nanotron",
    )  # fmt: skip

    product_efficiency: tuple[float, ...] = (0.80, 0.72, 0.72, 0.62, 0.62, 0.45)
    attention_efficiency: tuple[float, ...] = (0.40, 0.50, 0.25, 0.31, 0.50, 0.40)
    ultra_speed: float = 1.1
    product_roofline: float = 0.5
    narrow_heads: float = 0.3
    fused_traffic: float = 1.0
    eager_traffic: float = 1.8
    cast_traffic: float = 1.0
    score_traffic: float = 1.0
    host_seconds_per_layer: float = 50e-6
    link_efficiency: float = 0.7
    network_efficiency: float = 0.7
    tensor_exposed: float = 0.35
    context_exposed: float = 0.3
    pipeline_exposed: float = 0.3
    data_exposed: float = 0.15
    hop_seconds: float = 10e-6
    optimizer_traffic: float = 1.3
    step_overhead_seconds: float = 0.02
    jitter_per_doubling: float = 0.01
    family_factors: tuple[float, ...] = (1.0,) * 6


PRIOR = Constants()
"""Where a fit starts and what it is pulled to: rules of thumb, kernels' own benchmarks, and 1 for every ratio."""


def as_code(constants: Constants) -> str:
    """Constants as the Python text below, four digits each."""
    lines = []
    for field in fields(constants):
        value = getattr(constants, field.name)
        text = ", ".join(f"{v:.4g}" for v in value) if isinstance(value, tuple) else f"{value:.4g}"
        lines.append(f"    {field.name}=({text})," if isinstance(value, tuple) else f"    {field.name}={text},")
    return "\n".join(["FITTED = Constants(", *lines, ")"])


# fmt: off
FITTED = Constants(
    product_efficiency=(0.8179, 0.6945, 0.7078, 0.6527, 0.6024, 0.4415),
    attention_efficiency=(0.3637, 0.5099, 0.1917, 0.3167, 0.5021, 0.3129),
    ultra_speed=1.164,
    product_roofline=0.5918,
    narrow_heads=0.2322,
    fused_traffic=1.094,
    eager_traffic=1.779,
    cast_traffic=1.054,
    score_traffic=0.9026,
    host_seconds_per_layer=5.51e-05,
    link_efficiency=0.7282,
    network_efficiency=0.7509,
    tensor_exposed=0.3304,
    context_exposed=0.3016,
    pipeline_exposed=0.25,
    data_exposed=0.2059,
    hop_seconds=1.082e-05,
    optimizer_traffic=1.301,
    step_overhead_seconds=0.02756,
    jitter_per_doubling=0.008038,
    family_factors=(0.9835, 1.015, 1.046, 1.018, 0.9647, 1.013),
)
# fmt: on
"""From `puna plan --fit` over 367 published dense configurations."""
