"""Quantization-aware training: weights and inputs are rounded as they will be later, gradients pass straight through.

    weights        int4 or int8 by groups of columns, symmetric:  s = max|w| / ((2^bits - 1) / 2),  q = round(w / s)
    activations    int8 by token, asymmetric:  s = (max - min) / 255,  z = -128 - round(min / s),  q = round(x / s) + z

Rounding has no gradient; the straight-through estimator takes that of the identity, and zero where a value was clipped.
Scales are constants for the gradient. The rounding is torchao's (`Int8DynActIntxWeightConfig`), so its kernels compute
what was trained.

Source: straight-through estimator: 1308.3432; quantization-aware training of Llama 3 as in torchao.

E rows, D columns, G groups of a row.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int8
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from puna.core.config import Config
from puna.core.errors import UsageError

BITS = {"int4": 4, "int8": 8}


class QuantizationConfig(Config):
    """What the matrices of the blocks are trained for."""

    weights: Literal["int4", "int8"] = "int4"
    """Type of the weights."""
    group_size: int = Field(default=32, ge=2)
    """Columns that share a scale."""
    activations: Literal["int8", "none"] = "int8"
    """Inputs of the matrices: int8 with a scale for each token, or as they are."""


def quantize_weight(
    weight_ED: Float[Tensor, "E D"], config: QuantizationConfig
) -> tuple[Int8[Tensor, "E D"], Float[Tensor, "E G"]]:
    """Codes and scales of a matrix."""
    scaled_EGg, scales_EG = _scaled(weight_ED.detach(), config)
    half = 2 ** (BITS[config.weights] - 1)
    return scaled_EGg.round_().clamp_(-half, half - 1).to(torch.int8).flatten(1), scales_EG


def dequantize_weight(codes_ED: Int8[Tensor, "E D"], scales_EG: Float[Tensor, "E G"]) -> Float[Tensor, "E D"]:
    """The matrix that codes and scales stand for."""
    groups = codes_ED.to(scales_EG.dtype).unflatten(1, (scales_EG.shape[1], -1))
    return (groups * scales_EG[..., None]).flatten(1)


def check_fits(columns: int, config: QuantizationConfig) -> None:
    """Refuse groups that do not fill a row.

    Raises:
        UsageError: They do not.
    """
    if columns % config.group_size:
        raise UsageError(
            f"group_size {config.group_size} does not divide a matrix of {columns} columns; choose another"
        )


def fake_quantized_linear(
    x: Float[Tensor, "... D"], weight_ED: Float[Tensor, "E D"], config: QuantizationConfig
) -> Float[Tensor, "... E"]:
    """The product x W^T with both rounded."""
    weight = _FakeWeight.apply(weight_ED, config)
    if config.activations == "int8":
        x = _FakeTokens.apply(x)  # pyright: ignore[reportAssignmentType]
    return linear(x, weight)  # pyright: ignore[reportArgumentType]


def _scaled(weight_ED: Tensor, config: QuantizationConfig) -> tuple[Tensor, Tensor]:
    groups = weight_ED.unflatten(1, (-1, config.group_size))
    largest = groups.abs().amax(-1)
    scales = (largest / ((2 ** BITS[config.weights] - 1) / 2)).clamp(min=torch.finfo(weight_ED.dtype).smallest_normal)
    return groups * (1.0 / scales)[..., None], scales


class _FakeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_ED: Tensor, config: QuantizationConfig) -> Tensor:
        scaled, scales = _scaled(weight_ED, config)
        half = 2 ** (BITS[config.weights] - 1)
        rounded = scaled.round_()
        ctx.save_for_backward(((rounded >= -half) & (rounded <= half - 1)).flatten(1))
        return (rounded.clamp_(-half, half - 1) * scales[..., None]).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class _FakeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype not in (torch.float32, torch.float64) else x
        low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
        zero = (-128 - (low / scale).round()).clamp(-128, 127)
        codes = (wide * (1.0 / scale)).round_() + zero
        ctx.save_for_backward((codes >= -128) & (codes <= 127))
        return ((codes.clamp_(-128, 127) - zero) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        return (grads[0] * ctx.saved_tensors[0],)
