"""The settings of an adapter: which matrices get low-rank additions, and how large they are. No torch here.

Source: LoRA, 2106.09685; rank-stabilized scaling, 2312.03732; DoRA, 2402.09353; QLoRA, 2305.14314.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from puna.core.config import Config
from puna.model.config import ModelConfig

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]

ALL_LINEAR: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every matrix of a block."""


class AdapterConfig(Config):
    """A frozen model and small matrices that are trained in its place: W + scale * B A, with B `[out, rank]`."""

    kind: Literal["lora", "dora", "qlora"] = "lora"
    """lora; dora: the length of each row of W + scale * B A is trained apart from its direction; qlora: lora over a
    base whose blocks are kept in four bits (NF4)."""
    rank: int = Field(default=16, ge=1)
    """Columns of B and rows of A."""
    alpha: float = Field(default=32.0, gt=0.0)
    """The scale is alpha / rank."""
    rslora: bool = False
    """The scale is alpha / sqrt(rank) instead, so that large ranks learn as fast as small ones."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the inputs of A that are set to zero in training. 0 takes the fast path on a CPU."""
    targets: tuple[Target, ...] = ALL_LINEAR
    """Matrices by their usual names, in every block; lm_head is the head of a model that does not tie it."""
    double_quantization: bool = True
    """qlora: keep the scales of the four-bit blocks in eight bits (0.127 instead of 0.5 bits a weight)."""
    seed: int = 0
    """Of the first A; B begins at zero, so the first step sees the base model."""

    @field_validator("targets")
    @classmethod
    def _names_each_once(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one matrix, and none twice")
        return value

    @model_validator(mode="after")
    def _head_has_no_dropout(self) -> "AdapterConfig":
        if "lm_head" in self.targets and self.dropout:
            raise ValueError("lm_head cannot have dropout: the loss takes the head as one matrix; set dropout 0")
        return self

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def packing(self) -> str:
        """How the base's blocks are kept, as a word for names and hashes; empty: as they are."""
        return f"nf4-{'double' if self.double_quantization else 'plain'}" if self.kind == "qlora" else ""

    def parameters(self, shape: ModelConfig) -> int:
        """How many numbers the adapter of a model has."""
        heads, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        sizes = {"q_proj": (heads, shape.dim), "k_proj": (kv, shape.dim), "v_proj": (kv, shape.dim)}
        sizes |= {"o_proj": (shape.dim, heads), "gate_proj": (shape.ffn_dim, shape.dim)}
        sizes |= {"up_proj": (shape.ffn_dim, shape.dim), "down_proj": (shape.dim, shape.ffn_dim)}
        own = {t: self.rank * sum(sizes[t]) + (sizes[t][0] if self.kind == "dora" else 0) for t in sizes}
        head = shape.vocab_size + shape.dim
        own["lm_head"] = self.rank * head + (shape.vocab_size if self.kind == "dora" else 0)
        return sum(own[t] * (1 if t == "lm_head" else shape.n_layers) for t in self.targets)

    def frozen_bytes(self, shape: ModelConfig, *, bytes_per_value: int) -> float:
        """Memory of the frozen base."""
        heads = 2 * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
        matrices = shape.n_layers * shape.dim * (heads + 3 * shape.ffn_dim)
        bits = {"": 8 * bytes_per_value, "nf4-double": 4.127, "nf4-plain": 4.5}[self.packing]
        return matrices * bits / 8 + (shape.parameters() - matrices) * bytes_per_value


@dataclass(frozen=True)
class Adapted:
    """What a model with adapters knows of them.

    Attributes:
        config: Their settings.
        base: Path of the base, as a person named it.
        base_fingerprint: Of the base; empty when it is not known.
    """

    config: AdapterConfig
    base: str = ""
    base_fingerprint: str = ""
