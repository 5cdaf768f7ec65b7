"""Choosing a model in a recipe: a size from the table, any field of it changed, the vocabulary from the tokenizer."""

import difflib

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.model.config import SIZES, ModelConfig, RopeScaling


class ModelChoice(Config):
    """The shape of a new model."""

    size: str = "demo-2m"
    """A name of the table of sizes; the other fields change what differs from it."""
    dim: int | None = Field(default=None, gt=0)
    """Width of the residual stream."""
    n_layers: int | None = Field(default=None, gt=0)
    """Transformer blocks."""
    n_heads: int | None = Field(default=None, gt=0)
    """Query heads."""
    n_kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of a head; none means dim / n_heads."""
    ffn_dim: int | None = Field(default=None, gt=0)
    """Inner width of the feed-forward."""
    max_seq_len: int | None = Field(default=None, gt=0)
    """Longest context in tokens that the model is meant for."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's long-context scaling; none keeps that of the size."""
    tie_embeddings: bool | None = None
    """Use the embedding matrix as the head."""
    init_seed: int = 0
    """Seed of the first weights."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelChoice":
        if self.size not in SIZES:
            near = difflib.get_close_matches(self.size, SIZES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"sizes are {', '.join(SIZES)}"
            raise ValueError(f"size is {self.size!r}; {hint}")
        self.resolve(vocab_size=SIZES[self.size].vocab_size)
        return self

    def resolve(self, *, vocab_size: int) -> ModelConfig:
        """The model's config.

        Args:
            vocab_size: Tokens of the tokenizer.
        """
        own = {name: getattr(self, name) for name in ModelConfig.model_fields if hasattr(self, name)}
        changed = {name: value for name, value in own.items() if value is not None}
        base = {name: getattr(SIZES[self.size], name) for name in ModelConfig.model_fields}
        if {"dim", "n_heads"} & changed.keys() and "head_dim" not in changed:
            base["head_dim"] = 0  # from dim and n_heads
        return ModelConfig(**{**base, **changed, "vocab_size": vocab_size})


class ContextChoice(Config):
    """How the context of a continued model changes. Rotary embeddings have no weights: nothing else changes."""

    max_seq_len: int | None = Field(default=None, gt=0)
    """Longest context in tokens; none keeps the model's."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies; none keeps the model's."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's long-context scaling; none keeps the model's."""

    def apply(self, shape: ModelConfig) -> ModelConfig:
        """The model's config with what changes."""
        values = {name: getattr(shape, name) for name in ModelConfig.model_fields}
        changed = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}
        return ModelConfig(**{**values, **changed})
