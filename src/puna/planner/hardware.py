"""The machines: what a GPU can do, how GPUs are joined, and how a user names a cluster.

Figures are those of the vendors' data sheets, dense (without 2:4 sparsity), one direction of a link; memory is what
CUDA reports for the card, a little less than the label. A node is the group of GPUs that NVLink joins: 8 in an HGX
box, 72 in a GB200 or GB300 rack (64 of them are used as a rule).

Sources: NVIDIA data sheets of A100 (2021), H100 (2022), H200 (2024), HGX B200 and B300, GB200 and GB300 NVL72 (2024,
2025); network defaults are those of the DGX reference designs (one port a GPU: HDR 200 Gb/s, NDR 400 Gb/s, XDR 800
Gb/s).
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from puna.core.errors import UsageError

Precision = Literal["bf16", "fp8", "fp4"]
Architecture = Literal["ampere", "hopper", "blackwell"]


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator in its usual box.

    Attributes:
        name: As it is called here.
        architecture: Which fitted efficiencies hold.
        bf16_flops: Peak of dense bf16 or fp16 products, FLOP/s.
        fp8_flops: Peak in 8 bits; that of bf16 where the card has none.
        fp4_flops: Peak in 4 bits; that of fp8 where the card has none.
        memory_gib: Memory that CUDA reports, GiB.
        memory_bandwidth: Bytes/s.
        link_bandwidth: NVLink, bytes/s a direction and GPU.
        node_gpus: GPUs that NVLink joins.
        network_bandwidth: Bytes/s a direction and GPU between nodes.
        watts: Power limit of the data sheet; a lower one slows the clock.
        ultra: The second, faster Blackwell.
    """

    name: str
    architecture: Architecture
    bf16_flops: float
    fp8_flops: float
    fp4_flops: float
    memory_gib: float
    memory_bandwidth: float
    link_bandwidth: float
    node_gpus: int
    network_bandwidth: float
    watts: float
    ultra: bool = False

    def peak(self, precision: Precision) -> float:
        """Peak FLOP/s of matrix products in a precision."""
        return {"bf16": self.bf16_flops, "fp8": self.fp8_flops, "fp4": self.fp4_flops}[precision]


def _gpu(
    name: str,
    architecture: Architecture,
    tflops: tuple[float, float, float],
    memory: tuple[float, float],
    link_gb: float,
    node_gpus: int,
    network_gbit: float,
    watts: float,
) -> Gpu:
    bf16, fp8, fp4 = (value * 1e12 for value in tflops)
    return Gpu(
        name, architecture, bf16, fp8, fp4, memory[0], memory[1] * 1e12, link_gb * 1e9, node_gpus,
        network_gbit * 1e9 / 8, watts, ultra=name.endswith("300"),
    )  # fmt: skip


# name, architecture, TFLOPS (bf16, fp8, fp4), memory (GiB, TB/s), NVLink GB/s, GPUs a node, network Gb/s a GPU, W
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40GB", "ampere", (312, 312, 312), (39.4, 1.555), 300, 8, 200, 400),
        _gpu("A100", "ampere", (312, 312, 312), (79.1, 2.039), 300, 8, 200, 400),
        _gpu("H100", "hopper", (989, 1979, 1979), (79.1, 3.35), 450, 8, 400, 700),
        _gpu("H100-96GB", "hopper", (989, 1979, 1979), (95.0, 2.40), 450, 8, 400, 500),
        _gpu("H200", "hopper", (989, 1979, 1979), (139.8, 4.80), 450, 8, 400, 700),
        _gpu("B200", "blackwell", (2250, 4500, 9000), (178.0, 7.70), 900, 8, 400, 1000),
        _gpu("GB200", "blackwell", (2500, 5000, 10000), (184.0, 8.00), 900, 64, 400, 1200),
        _gpu("B300", "blackwell", (2250, 4500, 13500), (267.0, 7.70), 900, 8, 800, 1100),
        _gpu("GB300", "blackwell", (2500, 5000, 15000), (276.0, 8.00), 900, 64, 800, 1400),
    )
}
"""Every kind known here. H100-96GB is the 500 W card that torchtitan's tables were measured on (its README)."""

_SPELLINGS = (
    (r"GB300", "GB300"),
    (r"GB200", "GB200"),
    (r"B300", "B300"),
    (r"B200", "B200"),
    (r"H200|GH200", "H200"),
    (r"H100.*96|H100.*500 ?W", "H100-96GB"),
    (r"H100|H800", "H100"),
    (r"A100.*40 ?G", "A100-40GB"),
    (r"A100|A800", "A100"),
)


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind.

    Attributes:
        gpu: The kind.
        n_gpus: How many.
    """

    gpu: Gpu
    n_gpus: int

    def __str__(self) -> str:
        """Like `512xH100`."""
        return f"{self.n_gpus}x{self.gpu.name}"

    def with_network(self, gbit_per_node: float | None) -> "Cluster":
        """The same cluster with so many Gb/s of network a node; None keeps the default."""
        if gbit_per_node is None:
            return self
        bandwidth = gbit_per_node * 1e9 / 8 / self.gpu.node_gpus
        return replace(self, gpu=replace(self.gpu, network_bandwidth=bandwidth))


def find_gpu(text: str) -> Gpu:
    """The GPU that a name means: `H100`, `DGX-H100`, `A100-80GB`, `h100 sxm`.

    Raises:
        UsageError: It is none of the table.
    """
    if re.search(r"PCI|[AH][12]00[ -]?NVL", text, re.IGNORECASE):
        raise UsageError(f"GPU {text!r} has another clock and other links than the SXM card; it is not modelled")
    for pattern, name in _SPELLINGS:
        if re.search(rf"(?:{pattern})(?!\d)", text, re.IGNORECASE):
            return GPUS[name]
    near = get_close_matches(text.upper(), GPUS, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"GPU {text!r} is not known; known are {', '.join(GPUS)}.{hint}")


MOST_GPUS = 2**20
"""Of a cluster that is planned."""


def read_cluster(text: str) -> Cluster:
    """Read `512xH100`, `512 x H100` or `H100` (one GPU).

    Raises:
        UsageError: It is no cluster.
    """
    text = re.sub(r"^(\s*[\d_,]+\s*)X", r"\1x", text)
    text = re.sub(r"^\s*([A-Za-z][\w -]*?)\s*[x*]\s*(\d+)\s*$", r"\2x\1", text)  # H100x8 means 8xH100
    match = re.fullmatch(r"\s*(?:([\d_,]+)\s*[x*]\s*)?([A-Za-z][\w -]*?)\s*", text)
    if match is None or re.search(r"[a-z0-9]x[A-Z]", match.group(2)):
        raise UsageError(f"cluster {text!r} is not understood; write a count and a kind, for example 512xH100")
    count = int((match.group(1) or "1").replace(",", "").replace("_", ""))
    if count < 1:
        raise UsageError(f"cluster {text!r} has no GPU; write a count of at least 1, for example 8xH100")
    if count > MOST_GPUS:
        raise UsageError(f"cluster {text!r} has more than {MOST_GPUS:,} GPUs; nothing so large can be planned")
    return Cluster(find_gpu(match.group(2)), count)
