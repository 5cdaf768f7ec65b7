"""The naive twin of the transformer: one document at a time, every formula spelled out, nothing fast.

Reads the parameters of a `Transformer` by name, so that both compute from the same tensors and gradients compare too.
"""

import math

import torch
from torch import Tensor

from puna.model.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def angle(position: int, pair: int, config: ModelConfig) -> float:
    """RoFormer's angle, with Llama 3.1's stretch as Meta's reference code states it (by wavelength)."""
    frequency = config.rope_theta ** (-2 * pair / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        wavelength = 2 * math.pi / frequency
        longest = scaling.original_max_seq_len / scaling.low_freq_factor
        shortest = scaling.original_max_seq_len / scaling.high_freq_factor
        if wavelength > longest:
            frequency /= scaling.factor
        elif wavelength >= shortest:
            smooth = (scaling.original_max_seq_len / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    return position * frequency


def rotate(x_SNH: Tensor, config: ModelConfig) -> Tensor:
    half = config.head_dim // 2
    angles = torch.tensor([[angle(s, i, config) for i in range(half)] for s in range(len(x_SNH))], dtype=torch.float64)
    cos, sin = angles.cos().to(x_SNH.dtype)[:, None], angles.sin().to(x_SNH.dtype)[:, None]
    first, second = x_SNH[..., :half], x_SNH[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def attention(q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
    """One document, one head at a time."""
    n_tokens, n_heads, head_dim = q_SNH.shape
    group = n_heads // k_SKH.shape[1]
    future = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    heads = []
    for head in range(n_heads):
        scores = q_SNH[:, head] @ k_SKH[:, head // group].T / math.sqrt(head_dim)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v_SKH[:, head // group])
    return torch.stack(heads, dim=1)


def logits(parameters: dict[str, Tensor], config: ModelConfig, tokens_S: Tensor) -> Tensor:
    """Logits of one document `[S]`, `[S, V]`."""
    n_heads, n_kv_heads, head_dim = config.n_heads, config.n_kv_heads, config.head_dim
    x = parameters["embedding.weight"][tokens_S]
    for i in range(config.n_layers):
        layer = {name.removeprefix(f"layers.{i}."): p for name, p in parameters.items() if f"layers.{i}." in name}
        h = rms_norm(x, layer["attention_norm.weight"], config.norm_eps)
        qkv = (h @ layer["attention.qkv.weight"].T).view(len(x), -1, head_dim)
        q, k, v = qkv.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        o = attention(rotate(q, config), rotate(k, config), v)
        x = x + o.reshape(len(x), -1) @ layer["attention.output.weight"].T
        h = rms_norm(x, layer["feed_forward_norm.weight"], config.norm_eps)
        x = x + swiglu(h @ layer["feed_forward.gate_up.weight"].T) @ layer["feed_forward.down.weight"].T
    x = rms_norm(x, parameters["norm.weight"], config.norm_eps)
    return x @ parameters["embedding.weight" if config.tie_embeddings else "head.weight"].T
