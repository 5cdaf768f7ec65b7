"""The linear maps of the transformer: a matrix, what may be added to it by adapters, and how it may be packed.

Without either it is `nn.Linear`. With an adapter the base is frozen and the map is

    lora    y = W x + s B A drop(x)
    dora    y = m / |V| * (W x + s B A x),  V = W + s B A, |V| the length of each row, constant in the gradient

A fused matrix (query, key and value) has an adapter for each of its parts, as other tools know them. The base is asked
for its matrix in the forward and again in the backward and never kept, so a packed one (`nf4.py`) is unpacked for the
moment only. `factors` gives the adapters as two matrices to the kernels of `adapted_kernels.py`.

Source: 2106.09685, equation 3; 2402.09353, equations 5 and 11 (with dropout as in PEFT).

E rows (outputs), D columns (inputs), R rank, P adapted parts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from puna.model.adapter_config import AdapterConfig
from puna.model.fake_quantization import QuantizationConfig, check_fits, fake_quantized_linear
from puna.model.nf4 import NF4


class LowRank(nn.Module):
    """The addition to one matrix: A `[R, D]`, B `[E, R]`, and DoRA's magnitude `[E]`.

    Args:
        rows: E.
        columns: D.
        config: Kind, rank and scale.
    """

    def __init__(self, rows: int, columns: int, config: AdapterConfig) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(config.rank, columns))
        self.B = nn.Parameter(torch.zeros(rows, config.rank))
        self.magnitude = nn.Parameter(torch.empty(rows)) if config.kind == "dora" else None
        self.scale, self.dropout = config.scale, config.dropout

    def delta(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """What the adapter adds: s B A x."""
        return linear(linear(x, self.A), self.B * self.scale)

    def merged(self, base_ED: Float[Tensor, "E D"]) -> Float[Tensor, "E D"]:
        """The whole matrix, differentiable in A, B and magnitude."""
        return merge(base_ED, self.A, self.B * self.scale, self.magnitude)

    def row_scale(self, base_ED: Float[Tensor, "E D"]) -> Float[Tensor, " E"]:
        """DoRA's m / |V|."""
        assert self.magnitude is not None, "only DoRA has magnitudes"
        with torch.no_grad():
            lengths_E = row_lengths(base_ED + (self.B * self.scale) @ self.A)
        return self.magnitude / lengths_E


def merge(
    base_ED: Float[Tensor, "E D"],
    A: Float[Tensor, "R D"],
    B: Float[Tensor, "E R"],
    magnitude_E: Float[Tensor, " E"] | None = None,
) -> Float[Tensor, "E D"]:
    """W + B A (B holds the scale), with each row brought to its magnitude if there are any."""
    directions_ED = torch.addmm(base_ED, B, A)
    if magnitude_E is None:
        return directions_ED
    return (magnitude_E / row_lengths(directions_ED))[:, None] * directions_ED


def row_lengths(matrix_ED: Float[Tensor, "E D"]) -> Float[Tensor, " E"]:
    """The Euclidean length of each row; a constant for the gradient."""
    return torch.linalg.vector_norm(matrix_ED.detach(), dim=1)


class Factors(NamedTuple):
    """The adapters of a fused matrix: rows `first : first + n` get B's same rows times A's rows `R number : ...`.

    Attributes:
        A: `[P R, D]`.
        B: `[E, R]`, scaled; zero in rows without an adapter.
        blocks: First row, rows and number of each adapted part.
    """

    A: Float[Tensor, "PR D"]
    B: Float[Tensor, "E R"]
    blocks: tuple[tuple[int, int, int], ...]


class Projection(nn.Linear):
    """One linear map without bias, of one part or several stacked by rows.

    Args:
        columns: Inputs.
        parts: Outputs of each part by its usual name: `{"q_proj": 4096, "k_proj": 1024, "v_proj": 1024}`.
    """

    def __init__(self, columns: int, parts: Mapping[str, int]) -> None:
        super().__init__(columns, sum(parts.values()), bias=False)
        self.parts = dict(parts)
        self.adapters = nn.ModuleDict()
        self.packed: NF4 | None = None
        self.quantization: QuantizationConfig | None = None  # train for it
        self.adapted = True  # False: as if there were no adapters

    @property
    def is_plain(self) -> bool:
        """Whether this is a matrix that is there as it is used, and trained if anything is."""
        return not self.adapters and self.packed is None and self.quantization is None

    @property
    def is_low_rank(self) -> bool:
        """Whether `factors` say all: no magnitudes, and no dropout at this moment."""
        own = [a for a in self.adapters.values() if isinstance(a, LowRank)]
        if self.quantization is not None:
            return False
        return all(a.magnitude is None and not (a.dropout and self.training) for a in own) or not self.adapted

    def adapt(self, config: AdapterConfig) -> None:
        """Freeze the matrix, pack it if asked, and put adapters on the parts that the settings name."""
        names = [name for name in self.parts if name in config.targets]
        if self.packed is None and config.kind == "qlora" and "lm_head" not in self.parts:
            self.take_packed(NF4.of(self.weight.detach(), double=config.double_quantization), self.weight.dtype)
        for name in names:
            self.adapters[name] = LowRank(self.parts[name], self.in_features, config).to(self._like)

    def take_packed(self, packed: NF4, dtype: torch.dtype) -> None:
        """Keep the matrix in four bits from now on.

        Args:
            packed: The matrix.
            dtype: What it is unpacked into.
        """
        self.packed, self._dtype = packed, dtype
        self.register_parameter("weight", None)

    @property
    def _like(self) -> Tensor:
        if self.packed is None:
            return self.weight
        return torch.empty((), dtype=self._dtype, device=self.packed.codes.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast; a packed matrix moves, and is unpacked into the new type."""
        super()._apply(fn, recurse)
        if self.packed is not None:
            like = fn(self._like)
            self.packed, self._dtype = self.packed.to(like.device), like.dtype
        return self

    def base(self) -> Float[Tensor, "E D"]:
        """The matrix without adapters, unpacked for the moment."""
        return self.weight if self.packed is None else self.packed.unpack(self._dtype)

    def part_rows(self) -> Iterator[tuple[str, int, int]]:
        """Each part with its first row and its rows."""
        first = 0
        for name, rows in self.parts.items():
            yield name, first, rows
            first += rows

    def factors(self) -> Factors:
        """The adapters as matrices; empty where there are none or they are off."""
        like = self._like
        found = [
            (first, rows, adapter)
            for name, first, rows in self.part_rows()
            if self.adapted and (adapter := self.adapter_of(name)) is not None
        ]
        if not found:
            return Factors(like.new_empty(0, self.in_features), like.new_empty(self.out_features, 0), ())
        rank = len(found[0][2].A)
        by_first = {first: adapter.B * adapter.scale for first, _, adapter in found}
        B = [by_first[f] if f in by_first else like.new_zeros(n, rank) for _, f, n in self.part_rows()]
        blocks = tuple((first, rows, number) for number, (first, rows, _) in enumerate(found))
        A: list[Tensor] = [adapter.A for _, _, adapter in found]
        return Factors(A[0] if len(A) == 1 else torch.cat(A), B[0] if len(B) == 1 else torch.cat(B), blocks)

    def adapter_of(self, part: str) -> LowRank | None:
        """The adapter of a part, if it has one."""
        return next((a for name, a in self.adapters.items() if name == part and isinstance(a, LowRank)), None)

    def matrix(self) -> Float[Tensor, "E D"]:
        """The whole matrix with its adapters, differentiable in them."""
        base_ED = self.base()
        if not self.adapters or not self.adapted:
            return base_ED
        parts = []
        for name, first, rows in self.part_rows():
            adapter, part = self.adapter_of(name), base_ED.narrow(0, first, rows)
            parts.append(part if adapter is None else adapter.merged(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, input: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """W x and what the adapters add."""
        if self.is_plain:
            return linear(input, self.weight)
        if self.quantization is not None:
            return fake_quantized_linear(input, self.weight, self.quantization)
        out = _FrozenLinear.apply(input, self.base)
        if not self.adapters or not self.adapted:
            return out  # pyright: ignore[reportReturnType]
        parts = []
        assert isinstance(out, Tensor)
        for (name, first, rows), y in zip(self.part_rows(), out.split(list(self.parts.values()), -1), strict=True):
            adapter = self.adapter_of(name)
            parts.append(y if adapter is None else self._add(adapter, input, y, first, rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _add(self, adapter: LowRank, x: Tensor, y: Tensor, first: int, rows: int) -> Tensor:
        drops = self.training and adapter.dropout > 0
        dropped = dropout(x, adapter.dropout) if drops else x
        if adapter.magnitude is None:
            return y + adapter.delta(dropped)
        scale_E = adapter.row_scale(self.base().narrow(0, first, rows))
        if not drops:
            return scale_E * (y + adapter.delta(x))
        y_dropped = _FrozenLinear.apply(dropped, lambda: self.base().narrow(0, first, rows))
        assert isinstance(y_dropped, Tensor)
        return y + (scale_E - 1) * y_dropped + scale_E * adapter.delta(dropped)


class _FrozenLinear(torch.autograd.Function):
    """x W^T for a matrix that gets no gradient: it is made when it is needed, in the forward and in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Callable[[], Tensor]) -> Tensor:
        ctx.base = base
        return linear(x, base())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return (grads[0] @ ctx.base() if ctx.needs_input_grad[0] else None), None


def projections(model: nn.Module) -> Iterator[tuple[str, Projection]]:
    """Every projection of a model with its name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Projection))


def train_for(model: nn.Module, config: QuantizationConfig) -> None:
    """Round the matrices of a model's blocks, and their inputs, in every forward from now on.

    Raises:
        UsageError: The groups do not fit a matrix.
    """
    for name, projection in projections(model):
        if "lm_head" not in projection.parts:
            assert projection.is_plain, f"{name} has an adapter or is packed"
            check_fits(projection.in_features, config)
            projection.quantization = config


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model alone, for as long as the context lasts: the reference of DPO and PPO without a second copy."""
    found = [module for _, module in projections(model)]
    before = [module.adapted for module in found]
    for module in found:
        module.adapted = False
    try:
        yield
    finally:
        for module, value in zip(found, before, strict=True):
            module.adapted = value
