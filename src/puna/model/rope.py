"""Rotary position embeddings: each pair of a head's coordinates is turned by an angle that grows with the position.

Pair i of a head turns at frequency theta^(-2i/H). We pair coordinate i with i + H/2 ("rotate half"), the layout of
Hugging Face folders, so their weights are used as they are; Meta's own files pair 2i with 2i + 1 and are permuted once
when they are read. Llama 3.1 stretches the slow frequencies to reach 128K tokens: `RopeScaling`.

Source: RoFormer (2104.09864), section 3.4; The Llama 3 Herd of Models (2407.21783), section 3.4.2 (theta 500,000).

T packed tokens, N heads, H head dim.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from puna.model.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> Float[Tensor, " pairs"]:
    """Angle per position of each coordinate pair, in radians, fp32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequency = _stretch(frequency, config.rope_scaling)
    return frequency


def _stretch(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: keep fast rotations, divide slow ones by the factor, blend linearly between."""
    turns = scaling.original_max_seq_len * frequency / (2 * math.pi)  # full turns within the old context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return frequency * keep + frequency / scaling.factor * (1 - keep)


def rotation(positions_T: Int[Tensor, " T"], frequency: Float[Tensor, " pairs"]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle.

    Args:
        positions_T: Position of each token in its document.
        frequency: From `frequencies`, on the device of the positions.

    Returns:
        cos and sin, each `[T, H/2]` fp32 on the device of the positions.
    """
    angles = positions_T.float()[:, None] * frequency
    return angles.cos(), angles.sin()


def rotate(x_TNH: Float[Tensor, "T N H"], cos: Tensor, sin: Tensor) -> Float[Tensor, "T N H"]:
    """Turn every head of every token by its angles; computed in fp32, returned in the dtype of x."""
    first, second = x_TNH.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TNH.dtype)
