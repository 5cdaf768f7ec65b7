"""The shape of a Llama 3 model as numbers: config, the table of sizes, parameter and FLOP counts. No torch here.

Everything that can be known about a model before it exists is computed here exactly: the planner, the scaling laws and
the checkpoint writer ask this file, and the tests hold it against the real models.

FLOPs come under two conventions, and every user must say which one it means. `full` counts attention as if no causal
mask existed (6 N + 12 L N_heads H S: PaLM, appendix B; torchtitan, OLMo, llm-foundry); `causal` counts the half that a
causal kernel computes (6 N + 6 L N_heads H S: Megatron-LM). N excludes the input embedding and includes the head.
Recomputed activations are never counted.

Source: The Llama 3 Herd of Models (arXiv 2407.21783), table 3 (sizes); model cards of Llama 3.1 and 3.2 (rope scaling).
"""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.config import Config

FlopsConvention = Literal["causal", "full"]


class RopeScaling(Config):
    """Llama 3.1's frequency scaling: slow rotations are slowed further, fast ones kept, a smooth ramp in between."""

    factor: float = Field(default=8.0, ge=1.0)
    """How much longer the context gets: slow frequencies are divided by this (3.1: 8, 3.2 1B and 3B: 32)."""
    low_freq_factor: float = Field(default=1.0, gt=0.0)
    """Wavelengths above original_max_seq_len / low_freq_factor are scaled in full."""
    high_freq_factor: float = Field(default=4.0, gt=0.0)
    """Wavelengths below original_max_seq_len / high_freq_factor are left alone."""
    original_max_seq_len: int = Field(default=8192, gt=0)
    """Context length in tokens that the model was pretrained with before the extension."""

    @model_validator(mode="after")
    def _ramp_has_a_width(self) -> "RopeScaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must be greater than low_freq_factor {self.low_freq_factor}"
            )
        return self


class ModelConfig(Config):
    """The shape of one model. The defaults are the plain case: as many kv heads as query heads, untied, no scaling."""

    dim: int = Field(gt=0)
    """Width of the residual stream (D)."""
    n_layers: int = Field(gt=0)
    """Transformer blocks (L)."""
    n_heads: int = Field(gt=0)
    """Query heads (N)."""
    n_kv_heads: int = Field(gt=0)
    """Key and value heads (K); each serves n_heads / n_kv_heads query heads."""
    ffn_dim: int = Field(gt=0)
    """Inner width of the SwiGLU feed-forward (F)."""
    vocab_size: int = Field(gt=0)
    """Tokens in the vocabulary with the special ones (V)."""
    head_dim: int = Field(default=0, ge=0)
    """Width of one head (H); 0 means dim / n_heads."""
    max_seq_len: int = Field(default=8192, gt=0)
    """Longest context in tokens that the model is meant for."""
    rope_theta: float = Field(default=500_000.0, gt=0.0)
    """Base of the rotary frequencies (2407.21783, section 3.2)."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's long-context scaling, or none."""
    norm_eps: float = Field(default=1e-5, gt=0.0)
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding matrix as the head (Llama 3.2 1B and 3B do)."""
    head: Literal["tokens", "score"] = "tokens"
    """What the head gives: logits over the vocabulary, or one number (reward and value models)."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> "ModelConfig":
        if self.head_dim == 0:
            if self.dim % self.n_heads:
                raise ValueError(f"dim {self.dim} must be a multiple of n_heads {self.n_heads}, or set head_dim")
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary embeddings turn pairs")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head == "score" and self.tie_embeddings:
            raise ValueError("a score head cannot be tied to the embeddings; set tie_embeddings false")
        return self

    def parameters(self) -> int:
        """The exact number of parameters; a tied head counts once."""
        head = 0 if self.tie_embeddings else self._head_rows * self.dim
        return self.vocab_size * self.dim + head + self.n_layers * self._layer_parameters() + self.dim

    def matmul_parameters(self) -> int:
        """Parameters that every token is multiplied with: weights and head, not the embedding and the norms."""
        return self._head_rows * self.dim + self.n_layers * (self._layer_parameters() - 2 * self.dim)

    def flops_per_token(self, seq_len: float, *, convention: FlopsConvention = "causal") -> float:
        """Floating-point operations of one training step (forward and backward) per token.

        Args:
            seq_len: Tokens that attend to one another: the sequence length, or the mean document length weighted by
                tokens (sum of squares / sum) when documents are packed.
            convention: `causal` counts half of the attention scores, `full` all of them.

        Returns:
            FLOPs per token; a multiply-add counts two.

        Source: 2204.02311 (PaLM), appendix B.
        """
        attention = {"full": 12, "causal": 6}[convention] * self.n_layers * self.n_heads * self.head_dim * seq_len
        return 6 * self.matmul_parameters() + attention

    def kv_bytes_per_token(self, *, bytes_per_value: int = 2) -> int:
        """Bytes that one token occupies in the kv cache (8B in bf16: 128 KiB)."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * bytes_per_value

    @property
    def _head_rows(self) -> int:
        return 1 if self.head == "score" else self.vocab_size

    def _layer_parameters(self) -> int:
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim


def _size(
    dim: int,
    n_layers: int,
    heads: tuple[int, int],
    ffn_dim: int,
    vocab_size: int,
    max_seq_len: int,
    *,
    scaling: float | None = None,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        rope_scaling=None if scaling is None else RopeScaling(factor=scaling),
        tie_embeddings=tied,
    )


# name: dim, layers, (query heads, kv heads), ffn, vocabulary, context
SIZES: dict[str, ModelConfig] = {
    "demo-2m": _size(160, 6, (5, 5), 448, 2_304, 512, tied=True),
    "demo-4m": _size(224, 6, (7, 7), 608, 4_352, 512, tied=True),
    "demo-9m": _size(256, 8, (8, 4), 704, 8_448, 1_024, tied=True),
    "30m": _size(448, 10, (7, 7), 1_216, 16_640, 2_048, tied=True),
    "125m": _size(768, 12, (12, 4), 2_048, 33_024, 4_096, tied=True),
    "1B": _size(2_048, 16, (32, 8), 8_192, 128_256, 131_072, scaling=32.0, tied=True),
    "3B": _size(3_072, 28, (24, 8), 8_192, 128_256, 131_072, scaling=32.0, tied=True),
    "8B": _size(4_096, 32, (32, 8), 14_336, 128_256, 131_072, scaling=8.0),
    "70B": _size(8_192, 80, (64, 8), 28_672, 128_256, 131_072, scaling=8.0),
    "405B": _size(16_384, 126, (128, 8), 53_248, 128_256, 131_072, scaling=8.0),
}
"""Every size in one table: small ones for two CPU cores, then the Llama 3.1 and 3.2 models as published."""
