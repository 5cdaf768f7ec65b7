"""NF4: a frozen matrix in four bits a weight, as QLoRA keeps it.

Blocks of 64 consecutive weights are divided by their largest magnitude, and each is rounded to the nearest of sixteen
values: quantiles of the normal distribution, scaled to [-1, 1], with an exact zero. Double quantization keeps those
magnitudes in eight bits too: less their mean, in blocks of 256, rounded to the nearest value of an eight-bit float
whose exponent has a length of its own. Codes and scales are those of bitsandbytes, two codes a byte, the first one in
the high half, so a base that was packed here is the base that other tools see.

    bits a weight: 4 + 8/64 + 32/(64 * 256) = 4.127; without double quantization 4 + 32/64 = 4.5

Source: QLoRA, 2305.14314, sections 3 and appendix E; dynamic exponent: 8-bit optimizers, 2110.02861, section 2.2.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import prod

import torch
from torch import Tensor

BLOCK = 64
SCALE_BLOCK = 256
# fmt: off
VALUES = (  # 2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


@dataclass(frozen=True)
class NF4:
    """A packed matrix.

    Attributes:
        shape: Of the matrix.
        codes: `[n / 2]` uint8, two weights each.
        scales: `[n / 64]`: fp32 magnitudes of the blocks, or uint8 codes of them.
        steps: `[n / 64 / 256]` fp32: largest magnitude of a block of scales; None without double quantization.
        mean: What was taken off the scales before they were rounded; a scalar.
    """

    shape: tuple[int, ...]
    codes: Tensor
    scales: Tensor
    steps: Tensor | None = None
    mean: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, matrix: Tensor, *, double: bool = True) -> "NF4":
        """Pack a matrix.

        Args:
            matrix: Any shape and float type.
            double: Keep the scales in eight bits.
        """
        blocks = _blocks(matrix.float().flatten(), BLOCK)
        scales = blocks.abs().amax(1)
        units = blocks * _inverse(scales)[:, None]
        _, middles = _table(matrix.device)
        codes = torch.bucketize(units, middles, out_int32=True).to(torch.uint8).view(-1, 2)
        packed = (codes[:, 0] << 4) | codes[:, 1]
        plain = cls(tuple(matrix.shape), packed, scales)
        return plain._with_packed_scales() if double else plain

    def _with_packed_scales(self) -> "NF4":
        mean = self.scales.mean()
        blocks = _blocks(self.scales - mean, SCALE_BLOCK)
        steps = blocks.abs().amax(1)
        _, middles = _scale_table(self.scales.device)
        codes = torch.bucketize(blocks / steps.clamp(min=1e-38)[:, None], middles)
        return replace(self, scales=codes.to(torch.uint8).flatten()[: len(self.scales)], steps=steps, mean=mean)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that the codes stand for: in fp32, then rounded to a type."""
        values, _ = _table(self.codes.device)
        pairs = torch.stack((values.repeat_interleave(16), values.repeat(16)), 1)  # of every byte
        flat = pairs.index_select(0, self.codes.int()).view(-1, BLOCK)
        flat.mul_(self._plain_scales()[:, None])
        return flat.flatten()[: prod(self.shape)].view(self.shape).to(dtype)

    def _plain_scales(self) -> Tensor:
        if self.steps is None or self.mean is None:
            return self.scales
        values, _ = _scale_table(self.scales.device)
        blocks = _blocks(values.index_select(0, self.scales.int()), SCALE_BLOCK) * self.steps[:, None]
        return blocks.flatten()[: len(self.scales)] + self.mean

    def to(self, device: torch.device | str) -> "NF4":
        """The same on a device."""
        moved = {n: None if (t := getattr(self, n)) is None else t.to(device) for n in ("steps", "mean")}
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), **moved)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.steps, self.mean) if t is not None)


def _blocks(flat: Tensor, size: int) -> Tensor:
    """`[n, size]`, the last one filled with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _inverse(largest: Tensor) -> Tensor:
    """1 / x; rows of zeros stay zero."""
    return 1.0 / largest.clamp(min=1e-38)


def _with_middles(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted values, and the borders between their neighbourhoods."""
    return values, (values[1:] + values[:-1]) / 2


@cache
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _with_middles(torch.tensor(VALUES, device=device))


@cache
def _scale_table(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _with_middles(dynamic_values().to(device))


def dynamic_values() -> Tensor:
    """The 256 values of the signed eight-bit float with a dynamic exponent, sorted, fp32.

    Exponent 10^-e has 2^(6-e) linear steps between 0.1 and 1; zero and one are there themselves.
    """
    positive = []
    for i in range(7):
        edges = torch.linspace(0.1, 1.0, 2**i + 1, dtype=torch.float32)
        positive.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    own = torch.cat(positive)
    return torch.cat((own, -own, torch.tensor([0.0, 1.0]))).sort().values
