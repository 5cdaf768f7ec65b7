"""Matrix products of a CPU's training step, by oneDNN where it can take them: often faster there than MKL.

PyTorch's own `mm` asks MKL. In fp32 on an AMD processor with AVX-512 oneDNN makes large products a tenth faster, and
those with few rows and many columns (the head over a chunk of tokens) by a third; on a busy machine the difference is
larger still (`benchmarks/products.py`). PyTorch reaches oneDNN in fp32 by one operator, x W^T for an `x` that lies row
by row and a `W` of any strides, and its result is new memory. So a product goes there if its left factor, or the
transpose of its right one, lies row by row; the others stay with MKL, since copying a large factor costs what oneDNN
saves. Small products stay too: oneDNN takes ten microseconds to begin, and a millisecond for a shape that it sees for
the first time.

The operator is PyTorch's, but not of its documented interface; where a version lacks it, everything goes to MKL.

M, N, K: rows, columns and summed length of a product.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_PLAIN = Tensor, torch.nn.Parameter

SMALLEST = 2**25
"""Multiply-adds from which oneDNN is asked: a third of a millisecond on two cores."""


def _operator(overload: str) -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), overload, None)


_LINEAR, _LINEAR_PLUS = _operator("default"), _operator("binary")


def product(left: Float[Tensor, "M K"], right: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """The product left @ right, in new memory: row by row, or by columns if that is how both factors lie."""
    if _LINEAR is not None and _suits(left, right):
        if left.is_contiguous():
            return _LINEAR(left, right.T, None, "none", [], "")
        if right.T.is_contiguous():
            return _LINEAR(right.T, left, None, "none", [], "").T
    return left @ right


def plus_product(
    total: Float[Tensor, "M N"], left: Float[Tensor, "M K"], right: Float[Tensor, "K N"]
) -> Float[Tensor, "M N"]:
    """The sum total + left @ right, in new memory."""
    if _LINEAR_PLUS is not None and left.is_contiguous() and _suits(left, right):
        return _LINEAR_PLUS(left, total, right.T, None, "add")
    return torch.addmm(total, left, right)


def accumulate(
    total: Float[Tensor, "M N"] | None, left: Float[Tensor, "M K"], right: Float[Tensor, "K N"]
) -> Float[Tensor, "M N"]:
    """The sum total + left @ right, where None is nothing yet; the total's own memory may be used."""
    if total is None:
        return product(left, right)
    if _LINEAR_PLUS is not None and left.is_contiguous() and _suits(left, right):
        return plus_product(total, left, right)
    return total.addmm_(left, right)


def _suits(left: Tensor, right: Tensor) -> bool:
    return (
        type(left) in _PLAIN
        and type(right) in _PLAIN
        and left.dtype == right.dtype == torch.float32
        and left.device.type == "cpu"
        and left.shape[0] * left.shape[1] * right.shape[1] >= SMALLEST
    )
