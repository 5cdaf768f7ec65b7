"""Llama 3's transformer: embed, L times (attention, feed-forward), normalize, head. Readable in one sitting.

Inside, a batch is one flat run of T tokens, whatever its documents are: `DocumentLayout` says where they end. Tokens
may be given as `[B, S]` (each row one document, unless a layout says otherwise) or flat `[T]`.

Parameter names, which `checkpoint/huggingface.py` maps to other layouts (`nn.Linear` shapes, out x in; no biases):

    embedding.weight                         [V, D]
    layers.{i}.attention_norm.weight         [D]
    layers.{i}.attention.qkv.weight          [(N + 2 K) H, D]   rows: N query, then K key, then K value heads
    layers.{i}.attention.output.weight       [D, N H]
    layers.{i}.feed_forward_norm.weight      [D]
    layers.{i}.feed_forward.gate_up.weight   [2 F, D]           rows: gate, then up
    layers.{i}.feed_forward.down.weight      [D, F]
    norm.weight                              [D]
    head.weight                              [V, D]             absent when embeddings are tied
    score.weight                             [1, D]             in its place in reward and value models

Rotary pairs lie as in Hugging Face files (i with i + H/2), so no row is permuted on the way there.

Source: The Llama 3 Herd of Models (2407.21783), section 3.2.

B batch, S sequence, T packed tokens, D width, F ffn, V vocabulary, L layers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from puna.model import cpu_kernels
from puna.model.attention import Attention
from puna.model.config import ModelConfig
from puna.model.kv_cache import CacheStep
from puna.model.layout import DocumentLayout
from puna.model.rope import frequencies, rotation


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension. Source: 1910.07467, equation 4."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalize the last dimension."""
        if cpu_kernels.suits(x):
            return cpu_kernels.rms_norm(x, self.weight, self.eps)
        return nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), with gate and up in one matrix. Source: SwiGLU, 2002.05202, section 2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Transform each token by itself."""
        if cpu_kernels.suits(x):  # tokens along the rows: gate and up are then whole, contiguous halves
            gate_up_FFT = self.gate_up.weight @ x.flatten(0, -2).T
            return nn.functional.linear(cpu_kernels.swiglu(gate_up_FFT).T, self.down.weight).view(x.shape)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_TD: Float[Tensor, "T D"],
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout,
        cache: tuple[CacheStep, int] | None = None,
        only_W: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "W D"]:
        """One layer; arguments as in `Attention.forward`."""
        mixed_WD = self.attention(self.attention_norm(x_TD), turn, layout, cache, only_W)
        x_WD = (x_TD if only_W is None else x_TD[only_W]) + mixed_WD
        return x_WD + self.feed_forward(self.feed_forward_norm(x_WD))


class Transformer(nn.Module):
    """A Llama 3 model. Weights are uninitialized as PyTorch leaves them: use `init_weights` or load a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self._frequencies: dict[torch.device, Tensor] = {}  # not a buffer: computed, never loaded or cast
        has_head = config.head == "tokens" and not config.tie_embeddings
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False) if has_head else None
        self.score = nn.Linear(config.dim, 1, bias=False) if config.head == "score" else None

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The matrix that turns hidden states into logits: the embedding itself when tied."""
        assert self.score is None, "a reward or value model has no logits"
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def forward(
        self,
        tokens: Int[Tensor, "B S"] | Int[Tensor, " T"],
        layout: DocumentLayout | None = None,
        *,
        positions: Int[Tensor, " T"] | None = None,
        cache: CacheStep | None = None,
    ) -> Float[Tensor, "*tokens V"]:
        """Logits of the next token at every place.

        Args:
            tokens: `[B, S]`, or flat `[T]`.
            layout: The documents of the flat run; by default each row is one document (flat: all is one).
            positions: Position of each token in its document, flat; by default counted from 0 in each.
            cache: A step of a kv cache. Then tokens are the flat new tokens of its rows, and layout and positions
                come from the step.

        Returns:
            Logits of the shape of tokens, and V.
        """
        return self.logits(self.hidden(tokens, layout, positions=positions, cache=cache))

    def hidden(
        self,
        tokens: Int[Tensor, "B S"] | Int[Tensor, " T"],
        layout: DocumentLayout | None = None,
        *,
        positions: Int[Tensor, " T"] | None = None,
        cache: CacheStep | None = None,
        only: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "*tokens D"]:
        """The normalized hidden states before the head (for losses that never hold all logits). See `forward`.

        Args:
            tokens: `[B, S]`, or flat `[T]`.
            layout: The documents.
            positions: Of each token in its document.
            cache: A step of a kv cache.
            only: Flat places of the tokens whose states are wanted; the last layer then computes nothing for others.

        Returns:
            `[*tokens, D]`, or `[W, D]` of the places in `only`.
        """
        if cache is not None:
            assert layout is None and positions is None, "a cache step brings its own layout and positions"
            layout, positions = cache.layout, cache.positions
        if layout is None:
            length = tokens.shape[-1]
            layout = DocumentLayout([length] * (tokens.numel() // length), device=tokens.device)
        assert layout.n_tokens == tokens.numel(), f"the layout holds {layout.n_tokens} tokens, got {tokens.numel()}"
        turn = rotation(layout.positions if positions is None else positions.flatten(), self._frequency(tokens.device))
        x_TD = self.embedding(tokens.flatten())
        for number, layer in enumerate(self.layers):
            wanted = only if number == self.config.n_layers - 1 else None
            x_TD = layer(x_TD, turn, layout, None if cache is None else (cache, number), wanted)
        return self.norm(x_TD) if only is not None else self.norm(x_TD).view(*tokens.shape, -1)

    def _frequency(self, device: torch.device) -> Float[Tensor, " pairs"]:
        if device not in self._frequencies:
            with torch.inference_mode(False):  # kept: an inference tensor could not serve the next training step
                self._frequencies[device] = frequencies(self.config).to(device)
        return self._frequencies[device]

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The head alone."""
        return nn.functional.linear(hidden, self.head_weight)

    def scores(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
        """The score head of a reward or value model, in fp32 or wider."""
        assert self.score is not None, "only a reward or value model has scores"
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return (hidden.to(wide) @ self.score.weight[0].to(wide)[:, None]).squeeze(-1)

    def next_logits(self, tokens_T: Int[Tensor, " T"], *, cache: CacheStep) -> Float[Tensor, "rows V"]:
        """Logits after the last new token of each row of a cache step; the head sees no other token."""
        return self.logits(self.hidden(tokens_T, cache=cache)[cache.last])
