"""The rate of matrix products that this machine really reaches: the ceiling that `mfu` is measured against.

A vendor's peak is not reachable, and a CPU in a container has no known one, so it is measured: the best of a few large
products in the run's own precision. Each figure is measured once in a process.
"""

import time
from functools import lru_cache

import torch

from puna.model.products import product

_SIDES = {"cpu": (1024, 1024, 1024), "cuda": (8192, 8192, 8192)}  # rows, inner, columns
_REPEATS = 6


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Best measured rate of a large matrix product.

    Args:
        device: Where.
        dtype: Precision of the factors.

    Returns:
        FLOP/s; a multiply-add counts two.
    """
    return _measured(device, dtype, torch.get_num_threads())


@lru_cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    rows, inner, columns = _SIDES.get(device.type, _SIDES["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inner, device=device, generator=generator).to(dtype)
    right = torch.randn(inner, columns, device=device, generator=generator).to(dtype)
    best = float("inf")
    for multiply in (torch.mm, product) * _REPEATS:  # the same but for fp32 on a CPU, where either may be faster
        _wait(device)
        start = time.perf_counter()
        multiply(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * rows * inner * columns / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
