"""The shape of a model as the planner needs it, for our own sizes and for what other people publish.

Counts of parameters and FLOPs are exact given the shape. FLOPs per token come under three conventions, and printed
TFLOPS of different projects differ by up to a third for the same speed:

    full        6 N + 12 L D S     PaLM appendix B; torchtitan, OLMo, llm-foundry, nanotron, NeMo until 25.04
    causal      6 N + 6 L D S      Megatron-LM today, Megatron-Bridge from 25.09
    recompute   (8 N + 16 L D S)   Megatron in 2021: the forward pass of full recomputation counts as work

with N without the input embedding and with the head, D the width of all query heads together.

Sources: The Llama 3 Herd of Models (2407.21783), table 3; Llama 2 (2307.09288); MPT configs of llm-foundry; Efficient
Large-Scale Language Model Training (2104.04473), table 1; Nemotron-4 (2402.16819, 2406.11704); GPT-3 (2005.14165);
OLMo 2 and 3 model cards. nanotron's sizes follow from their parameter counts: Llama shapes with as many kv heads as
heads and 131,072 tokens.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from puna.model.config import SIZES, ModelConfig

FlopsConvention = Literal["full", "causal", "recompute"]


@dataclass(frozen=True)
class Shape:
    """One dense transformer.

    Attributes:
        dim: Width of the residual stream.
        n_layers: Blocks.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        ffn_dim: Inner width of the feed-forward.
        vocab_size: Tokens.
        head_dim: Width of a head; 0 means dim / n_heads.
        gated: Three feed-forward matrices (SwiGLU) rather than two.
        tied: Head and embedding are one matrix.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0
    gated: bool = True
    tied: bool = False

    @property
    def query_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_width

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together."""
        return self.n_kv_heads * self.head_width

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrices of one block."""
        attention = self.dim * (2 * self.query_dim + 2 * self.kv_dim)
        return attention + (3 if self.gated else 2) * self.dim * self.ffn_dim

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.dim

    def parameters(self) -> int:
        """All weights, norms included; a tied head counts once."""
        norms = (2 * self.n_layers + 1) * self.dim
        return self.n_layers * self.layer_parameters + self.head_parameters * (1 if self.tied else 2) + norms

    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with."""
        return self.n_layers * self.layer_parameters + self.head_parameters

    def flops_per_token(self, seq_len: float, *, convention: FlopsConvention = "causal") -> float:
        """FLOPs of a training step per token under a convention (see the file's head)."""
        attention = 12 * self.n_layers * self.query_dim * seq_len
        full = 6 * self.matmul_parameters() + attention
        recomputed = full + (2 * self.n_layers * self.layer_parameters + attention / 3)
        return {"full": full, "causal": full - attention / 2, "recompute": recomputed}[convention]


def from_config(config: ModelConfig) -> Shape:
    """The shape of one of our models."""
    return Shape(
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        ffn_dim=config.ffn_dim,
        vocab_size=config.vocab_size,
        head_dim=config.head_dim,
        tied=config.tie_embeddings,
    )


def _llama(name: str, *, vocab_size: int | None = None, all_heads: bool = False) -> Shape:
    shape = from_config(SIZES[name])
    if all_heads:
        shape = replace(shape, n_kv_heads=shape.n_heads)
    return shape if vocab_size is None else replace(shape, vocab_size=vocab_size)


def _gpt(dim: int, n_layers: int, n_heads: int, vocab_size: int = 51_200) -> Shape:
    return Shape(dim, n_layers, n_heads, n_heads, 4 * dim, vocab_size, gated=False, tied=True)


# a pattern for the name in lower case without spaces, dots, dashes and underscores; the first that fits is taken
PUBLISHED: tuple[tuple[str, Shape], ...] = (
    (r"llama3?\d*405b", _llama("405B")),
    (r"llama(3|31|32|33)70b", _llama("70B")),
    (r"llama(3|31|32|33)8b", _llama("8B")),
    (r"llama(3|31|32|33)3b", _llama("3B")),
    (r"llama(3|31|32|33)1b", _llama("1B")),
    (r"llama1?65b", Shape(8192, 80, 64, 64, 22_016, 32_000)),
    (r"llama2?7b", Shape(4096, 32, 32, 32, 11_008, 32_000)),
    (r"llama2?13b", Shape(5120, 40, 40, 40, 13_824, 32_000)),
    (r"llama2?3[34]b", Shape(8192, 48, 64, 8, 22_016, 32_000)),
    (r"llama2?70b", Shape(8192, 80, 64, 8, 28_672, 32_000)),
    (r"nanotronllama13", _llama("1B", vocab_size=131_072, all_heads=True)),
    (r"nanotronllama3[56]", _llama("3B", vocab_size=131_072, all_heads=True)),
    (r"nanotronllama80", _llama("70B", vocab_size=131_072, all_heads=True)),
    (r"nanotronllama8", _llama("8B", vocab_size=131_072, all_heads=True)),
    (r"gpt3?175b|gpt3175b|gpt3xl?175", _gpt(12_288, 96, 96)),
    (r"nemotron4?15b", Shape(6144, 32, 48, 8, 24_576, 256_000, gated=False)),
    (r"nemotron4?340b", Shape(18_432, 96, 96, 8, 73_728, 256_000, gated=False)),
    (r"olmo[23]?7b", Shape(4096, 32, 32, 32, 11_008, 100_352)),
    (r"olmo[23]?13b", Shape(5120, 40, 40, 40, 13_824, 100_352)),
    (r"olmo[23]?32b", Shape(5120, 64, 40, 8, 27_648, 100_352)),
    (r"mistral7b", Shape(4096, 32, 32, 8, 14_336, 32_000)),
    (r"qwen(2|25|3)?32b", Shape(5120, 64, 40, 8, 27_648, 151_936)),
    (r"qwen(2|25)?72b", Shape(8192, 80, 64, 8, 29_568, 152_064)),
    (r"qwen(2|25)7b", Shape(3584, 28, 28, 4, 18_944, 152_064)),
    (r"qwen(2|25)14b", Shape(5120, 48, 40, 8, 13_824, 152_064)),
    (r"qwen38b", Shape(4096, 36, 32, 8, 12_288, 151_936)),
    (r"qwen314b", Shape(5120, 40, 40, 8, 17_408, 151_936)),
    (r"gemma27b$|gemma227b", Shape(4608, 46, 32, 16, 36_864, 256_000, head_dim=128, tied=True)),
    (r"(?<!rene)gemma7b", Shape(3072, 28, 16, 16, 24_576, 256_000, head_dim=256, tied=True)),
)
"""Dense models that others publish speeds of."""

SPARSE = re.compile(
    r"deepseek|mixtral|moe|[-_ ]a\d+(\.\d+)?b|gptoss|kimi|nemotron3(?!40b)|nemotronh|mamba|jamba|dbrx|grok|llama4|scout"
    r"|maverick|switch|\d+x\d+b|qwen3(next|30b|235b)|hybrid|glm45|minimax"
)
"""Mixtures of experts and hybrids: the planner does not model them."""


def read_shape(model: str) -> Shape | None:
    """The shape behind a published model name.

    `L32 d4096 [h32] [v51200] [N=...]` in the name wins; then the table; then a size such as `7B` alone, which is given
    Llama's proportions.

    Returns:
        The shape; None for what is not dense or cannot be told.
    """
    if is_sparse(model):
        return None
    if (shape := named_shape(model)) is not None:
        return shape
    size = re.search(r"(\d+(?:\.\d+)?)\s*([bBmMtT])(?![a-zA-Z])", model)
    if size is None:
        return None
    number = float(size.group(1)) * {"m": 1e6, "b": 1e9, "t": 1e12}[size.group(2).lower()]
    if not number:
        return None
    return proportioned(number, gated="gpt" not in _plain(model))


def is_sparse(model: str) -> bool:
    """Whether a name is that of a mixture of experts or a hybrid."""
    return bool(SPARSE.search(_plain(model)) or SPARSE.search(model.lower()))


def _plain(model: str) -> str:
    return re.sub(r"[\s._\-/()]+", "", model.lower())


def named_shape(model: str) -> Shape | None:
    """The shape that a name gives by letters or by the table; None where it says a size alone, or nothing."""
    plain = _plain(model)
    layers, width = re.search(r"\bL(\d+)\b", model), re.search(r"\b[dD](\d+)\b", model)
    if layers and width:
        return _from_letters(model, plain, int(layers.group(1)), int(width.group(1)))
    for pattern, shape in PUBLISHED:
        if re.search(pattern, plain):
            return shape
    return None


def _from_letters(model: str, plain: str, n_layers: int, dim: int) -> Shape:
    heads = re.search(r"\b[hH](\d+)\b", model)
    kv = re.search(r"\b(?:kv|g)(\d+)\b", model)
    vocab = re.search(r"\b[vV](\d+)\b", model)
    ffn = re.search(r"\b(?:f|ffn)(\d+)\b", model)
    n_heads = int(heads.group(1)) if heads else dim // (64 if dim <= 1024 else 112 if dim == 7168 else 128)
    gated = "llama" in plain
    own = int(ffn.group(1)) if ffn else 4 * dim if not gated else 256 * math.ceil(dim * 8 / 3 / 256)
    vocab_size = int(vocab.group(1)) if vocab else 50_368 if "mpt" in plain else 51_200
    return Shape(
        dim, n_layers, n_heads, int(kv.group(1)) if kv else n_heads, own, vocab_size, gated=gated, tied=not gated
    )  # fmt: skip


def proportioned(parameters: float, *, gated: bool = True) -> Shape:
    """A shape of about so many parameters: width 100 to 130 times the depth, heads of 128."""
    # 12 L D^2 with L = D / 110 (2001.08361, figure 5, holds a wide optimum)
    dim = max(256, 128 * round((parameters * 110 / 12) ** (1 / 3) / 128))
    vocab_size = 128_256 if gated else 51_200
    n_heads = max(1, dim // 128)
    ffn_dim = 256 * math.ceil(dim * 7 / 2 / 256) if gated else 4 * dim
    unit = Shape(dim, 1, n_heads, max(1, n_heads // 4) if gated else n_heads, ffn_dim, vocab_size, gated=gated)
    if n_heads % unit.n_kv_heads:
        unit = replace(unit, n_kv_heads=n_heads)
    outside = unit.head_parameters * (2 if gated else 1)
    return replace(unit, n_layers=max(1, round((parameters - outside) / unit.layer_parameters)), tied=not gated)
