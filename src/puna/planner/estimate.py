"""Everything that is expected of one configuration, in one object: what a dry run and the planner print.

found = estimate(work)
found.seconds, found.tokens_per_second_gpu, found.tflops("causal"), found.memory.total_gib, found.traffic
"""

from dataclasses import dataclass

from puna.planner import memory, step_time, work
from puna.planner.constants import FITTED, Constants
from puna.planner.layout import Workload
from puna.planner.memory import RankMemory
from puna.planner.shape import FlopsConvention
from puna.planner.step_time import Breakdown


@dataclass(frozen=True)
class Traffic:
    """What one kind of parallelism moves.

    Attributes:
        kind: `tensor`, `context`, `pipeline` or `data`.
        link: `NVLink` or `network`: the slowest that it crosses.
        bytes_per_step: Sent by one rank in a step.
        seconds: At the link's nominal bandwidth.
        exposed_seconds: What of it is expected to be waited for.
    """

    kind: str
    link: str
    bytes_per_step: float
    seconds: float
    exposed_seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is expected.

    Attributes:
        work: The configuration.
        breakdown: Seconds of a step by cause.
        memory: Bytes of the fullest rank by kind.
        traffic: Communication by kind.
        bubble_share: Idle share of a step from the pipeline's ends.
    """

    work: Workload
    breakdown: Breakdown
    memory: RankMemory
    traffic: tuple[Traffic, ...]
    bubble_share: float

    @property
    def seconds(self) -> float:
        """Seconds of an optimizer step."""
        return float(self.breakdown.total)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the whole cluster."""
        return self.work.tokens / self.seconds

    @property
    def tokens_per_second_gpu(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens_per_second / self.work.cluster.n_gpus

    def tflops(self, convention: FlopsConvention) -> float:
        """TFLOP/s a GPU under a convention."""
        return (
            self.tokens_per_second_gpu
            * self.work.shape.flops_per_token(self.work.seq_len, convention=convention)
            / 1e12
        )

    def mfu(self, convention: FlopsConvention) -> float:
        """Share of the 16-bit peak, as everybody prints it, whatever the precision."""
        return self.tflops(convention) * 1e12 / self.work.cluster.gpu.bf16_flops

    @property
    def fits(self) -> bool:
        """Whether the fullest rank fits the GPU."""
        return self.memory.total_gib <= self.work.cluster.gpu.memory_gib


def estimate(given: Workload, *, constants: Constants = FITTED, chunked_logits: bool = True) -> Estimate:
    """What is expected of a configuration.

    Args:
        given: The configuration; `Workload.check` says whether it can be built.
        constants: Efficiencies.
        chunked_logits: The loss never holds all logits (ours does not).
    """
    spent = step_time.step_seconds(given, constants)
    spent = Breakdown(**{name: float(getattr(spent, name)) for name in Breakdown.__dataclass_fields__})
    return Estimate(
        work=given,
        breakdown=spent,
        memory=memory.rank_memory(given, chunked_logits=chunked_logits),
        traffic=_traffic(given, spent),
        bubble_share=spent.bubble / spent.total,
    )


def _traffic(given: Workload, spent: Breakdown) -> tuple[Traffic, ...]:
    counted, gpu, degrees = work.amounts(given), given.cluster.gpu, given.degrees
    n = counted.micro_batches
    inner_cp, inner_dp = degrees.tp * degrees.cp, degrees.tp * degrees.cp * degrees.data_parallel
    kinds = (
        ("tensor", counted.tp_seconds * n, degrees.tp, 1, spent.tensor),
        ("context", counted.cp_seconds * n, inner_cp, degrees.tp, spent.context),
        ("pipeline", counted.pp_seconds * n, given.cluster.n_gpus, gpu.node_gpus, spent.pipeline),
        ("data", counted.fsdp_seconds * n + counted.step_seconds, inner_dp, degrees.tp, spent.data),
    )
    found = []
    for kind, seconds, span, inner, exposed in kinds:
        inside = span <= gpu.node_gpus
        bandwidth = gpu.link_bandwidth
        if not inside:
            bandwidth = min(gpu.link_bandwidth, gpu.network_bandwidth * max(1, gpu.node_gpus // inner))
        if seconds:
            link = "NVLink" if inside else "network"
            found.append(Traffic(kind, link, seconds * bandwidth, seconds, float(exposed)))
    return tuple(found)
