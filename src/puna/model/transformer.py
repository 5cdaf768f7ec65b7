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

Rotary pairs lie as in Hugging Face files (i with i + H/2), so no row is permuted on the way there. With a `Split` the
same names hold this process's part. Adapters add `.adapters.{q_proj ...}.{A, B, magnitude}` to a matrix's name.

Source: The Llama 3 Herd of Models (2407.21783), section 3.2.

B batch, S sequence, T packed tokens, D width, F ffn, V vocabulary, L layers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from puna.model import adapted_kernels, cpu_kernels
from puna.model.adapter_config import Adapted
from puna.model.attention import Attention
from puna.model.config import ModelConfig
from puna.model.context import ContextLayout
from puna.model.kv_cache import CacheStep
from puna.model.layout import DocumentLayout
from puna.model.linear_cross_entropy import linear_cross_entropy
from puna.model.projection import Projection
from puna.model.rope import frequencies, rotation
from puna.model.split import WHOLE, Split
from puna.model.vocab_parallel import embed, split_cross_entropy


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

    def __init__(self, config: ModelConfig, split: Split = WHOLE) -> None:
        super().__init__()
        self.split, ffn_dim = split, config.ffn_dim // split.tp
        self.gate_up = Projection(config.dim, {"gate_proj": ffn_dim, "up_proj": ffn_dim})
        self.down = Projection(ffn_dim, {"down_proj": config.dim})

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Transform each token by itself."""
        gate, up = self.split.gathered(self.gate_up, x).chunk(2, dim=-1)
        return self.split.reduce_scatter(self.down(nn.functional.silu(gate) * up))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, split: Split = WHOLE) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, split)
        self.feed_forward_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config, split)

    def forward(
        self,
        x_TD: Float[Tensor, "T D"],
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout | ContextLayout,
        cache: tuple[CacheStep, int] | None = None,
        only_W: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "W D"]:
        """One layer; arguments as in `Attention.forward`."""
        if cache is None and self.attention.split.tp == 1 and cpu_kernels.suits(x_TD) and self._is_low_rank():
            return self._on_cpu(x_TD, turn, layout, only_W)
        mixed_WD = self.attention(self.attention_norm(x_TD), turn, layout, cache, only_W)
        x_WD = (x_TD if only_W is None else x_TD[only_W]) + mixed_WD
        return x_WD + self.feed_forward(self.feed_forward_norm(x_WD))

    def _on_cpu(
        self,
        x_TD: Tensor,
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout | ContextLayout,
        only_W: Tensor | None,
    ) -> Tensor:
        """The same by `cpu_kernels`, the norms' weights folded into the projections behind them."""
        x_WD = self.attention.on_cpu(x_TD, self.attention_norm.weight, self.attention_norm.eps, turn, layout, only_W)
        gate_up, down, norm = self.feed_forward.gate_up, self.feed_forward.down, self.feed_forward_norm
        if gate_up.is_plain and down.is_plain:
            return cpu_kernels.feed_forward(x_WD, gate_up.weight * norm.weight, down.weight, norm.eps)
        merged = adapted_kernels.Merged(gate_up, norm_D=norm.weight), adapted_kernels.Merged(down)
        return adapted_kernels.feed_forward(x_WD, *merged, norm.eps)

    def _is_low_rank(self) -> bool:
        """Whether the kernels know all that is added to the matrices."""
        attention, ffn = self.attention, self.feed_forward
        return all(p.is_plain or p.is_low_rank for p in (attention.qkv, attention.output, ffn.gate_up, ffn.down))


class Transformer(nn.Module):
    """A Llama 3 model. Weights are uninitialized as PyTorch leaves them: use `init_weights` or load a checkpoint.

    Args:
        config: Shape of the whole model.
        split: What of it this process holds.
    """

    def __init__(self, config: ModelConfig, split: Split = WHOLE) -> None:
        super().__init__()
        self.config, self.split = config, split
        self.adapter: Adapted | None = None  # set by `adapter.adapt`
        vocab = split.vocab_rows(config)
        n_rows = vocab.stop - vocab.start
        self.embedding = nn.Embedding(n_rows, config.dim) if split.has_embedding else None
        self.layers = nn.ModuleList()
        for number in split.layer_range(config):  # a stage's layers keep the names that they have in the whole model
            self.layers.add_module(str(number), Block(config, split))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps) if split.has_head else None
        self._frequencies: dict[torch.device, Tensor] = {}  # not a buffer: computed, never loaded or cast
        own_head = split.has_head and config.head == "tokens" and not config.tie_embeddings
        self.head = Projection(config.dim, {"lm_head": n_rows}) if own_head else None
        self.score = nn.Linear(config.dim, 1, bias=False) if config.head == "score" else None

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The matrix that turns hidden states into logits: the embedding itself when tied."""
        assert self.score is None, "a reward or value model has no logits"
        if self.head is not None:
            return self.head.matrix()
        assert self.embedding is not None, "this process holds no head"
        return self.embedding.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

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
        received: Tensor | None = None,
        only: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "*tokens D"]:
        """The normalized hidden states before the head (for losses that never hold all logits). See `forward`.

        Args as in `forward`, and:
            received: On a pipeline stage without an embedding, what the stage before gave.
            only: Flat places of the tokens whose states are wanted; the last layer then computes nothing for others.
                For a whole model only.

        Returns:
            `[*tokens, D]`, or `[W, D]` of the places in `only`. A model that is split gives its own share of the
            tokens, flat; a pipeline stage without the head gives the residual stream.
        """
        if cache is not None:
            assert layout is None and positions is None, "a cache step brings its own layout and positions"
            layout, positions = cache.layout, cache.positions
        if layout is None:
            length = tokens.shape[-1]
            layout = DocumentLayout([length] * (tokens.numel() // length), device=tokens.device)
        assert layout.n_tokens == tokens.numel(), f"the layout holds {layout.n_tokens} tokens, got {tokens.numel()}"
        own = layout if self.split.cp == 1 else ContextLayout(layout, self.split)
        turn = rotation(own.positions if positions is None else positions.flatten(), self._frequency(tokens.device))
        x_TD = self._embed(tokens.flatten()) if received is None else received
        for number, layer in enumerate(self.layers):
            wanted = only if number == self.config.n_layers - 1 else None
            x_TD = layer(x_TD, turn, own, None if cache is None else (cache, number), wanted)
        if self.norm is not None:
            x_TD = self.norm(x_TD)
        flat = tokens.dim() == 1 or only is not None or not self.split.is_whole
        return x_TD if flat else x_TD.view(*tokens.shape, -1)

    def cross_entropy(self, hidden: Float[Tensor, "T D"], targets_T: Int[Tensor, " T"]) -> Float[Tensor, ""]:
        """Sum of the cross-entropies of the targets, straight from hidden states.

        Args:
            hidden: From `hidden`, flat; a split model's own share.
            targets_T: Of all tokens of the batch; `IGNORE` where nothing is asked.

        Returns:
            The sum in nats over this process's tokens: equal in a tensor-parallel group, to be added up over a
            context-parallel one.
        """
        if self.split.is_whole:
            return linear_cross_entropy(hidden, self.head_weight, targets_T)
        hidden_TD = self.split.gather(hidden)
        targets_t = self.split.own(targets_T)
        return split_cross_entropy(
            hidden_TD,
            self.head_weight,
            targets_t,
            self.split,
            vocab_size=self.config.vocab_size,
            first=self.split.vocab_rows(self.config).start,
        )

    def _embed(self, tokens_T: Tensor) -> Tensor:
        assert self.embedding is not None, "this process holds no embedding"
        if self.split.is_whole:
            return self.embedding(tokens_T)
        return embed(self.embedding, self.split.own(tokens_T), self.split, self.split.vocab_rows(self.config).start)

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
