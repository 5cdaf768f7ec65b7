"""The part of a model and of a batch that one process holds, and the exchanges between the processes that share them.

Three axes, each its own group of processes; on one process all are 1 and nothing here runs:

- tp, tensor parallel: heads, feed-forward columns and vocabulary are dealt out. Between the matrix products each
  process holds 1/tp of the tokens (sequence parallel): `gathered` products, `reduce_scatter` after them.
- cp, context parallel: tokens are dealt out head to tail: of 2 cp chunks, process r holds chunk r and chunk
  2 cp - 1 - r, so that causal attention costs each the same. Keys and values are gathered whole (`model/context.py`).
- pp, pipeline parallel: layers are dealt out; the first stage has the embedding, the last one norm and head.

Parameters keep their names; `tensor_part` says which rows or columns of the whole one a process holds. Fused
projections are cut inside each of their parts, so a process has whole heads and matching gate and up columns.

Source: Megatron-LM (1909.08053, section 3), sequence parallelism (2205.05198, section 4.2.2), Llama 3's context
parallelism (2407.21783, section 3.3.2).

T tokens of a micro-batch, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from puna.model.config import ModelConfig
from puna.model.projection import Projection


@dataclass(frozen=True)
class Split:
    """Coordinates of one process.

    Attributes:
        tp: Processes that share each layer.
        tp_rank: This one's number among them.
        tp_group: Their process group.
        cp: Processes that share each sequence.
        cp_rank: This one's number among them.
        cp_group: Their process group.
        layers: First and one past the last layer held; None means all.
        has_embedding: Whether the embedding is here.
        has_head: Whether final norm and head are here.
    """

    tp: int = 1
    tp_rank: int = 0
    tp_group: Any = None
    cp: int = 1
    cp_rank: int = 0
    cp_group: Any = None
    layers: tuple[int, int] | None = None
    has_embedding: bool = True
    has_head: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this process holds the whole model and whole batches."""
        return self.tp == self.cp == 1 and self.layers is None and self.has_embedding and self.has_head

    def layer_range(self, config: ModelConfig) -> range:
        """Numbers of the layers that are held."""
        return range(config.n_layers) if self.layers is None else range(*self.layers)

    def vocab_rows(self, config: ModelConfig) -> slice:
        """Rows of the embedding and of the head that are held: even chunks, the last may be shorter."""
        rows = -(-config.vocab_size // self.tp)
        return slice(min(config.vocab_size, self.tp_rank * rows), min(config.vocab_size, (self.tp_rank + 1) * rows))

    def own(self, x_T: Any) -> Any:
        """This process's tokens of a per-token array or tensor: head and tail chunk."""
        if self.cp == 1:
            return x_T
        chunk = x_T.shape[0] // (2 * self.cp)
        head, tail = self.cp_rank * chunk, (2 * self.cp - 1 - self.cp_rank) * chunk
        parts = (x_T[head : head + chunk], x_T[tail : tail + chunk])
        return torch.cat(parts) if isinstance(x_T, Tensor) else np.concatenate(parts)

    def gather(self, x_TD: Tensor) -> Tensor:
        """All tokens of the tensor-parallel group, from each one's share."""
        return x_TD if self.tp == 1 else gather(x_TD, self.tp_group)

    def gathered(self, linear: nn.Module, x_TD: Tensor) -> Tensor:
        """A linear layer on all tokens of the group; what is kept for the backward is this process's share of them."""
        if self.tp == 1:
            return linear(x_TD)
        plain = linear.is_plain if isinstance(linear, Projection) else type(linear) is nn.Linear
        if not plain:  # float8, adapters: what they keep is theirs to say
            return linear(self.gather(x_TD))
        assert isinstance(linear, nn.Linear), "plain ones are"
        return self.gathered_product(x_TD, linear.weight)

    def gathered_product(self, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        """`gather(x) @ weight.T`; the share alone is kept, and gathered again in the backward (2205.05198, 4.2.2)."""
        if self.tp == 1:
            return nn.functional.linear(x_TD, weight_ED)
        return _GatheredProduct.apply(x_TD, weight_ED, self.tp_group)  # pyright: ignore[reportReturnType]

    def reduce_scatter(self, x_TD: Tensor) -> Tensor:
        """The sum over the tensor-parallel group, of which each gets its share of the tokens."""
        return x_TD if self.tp == 1 else reduce_scatter(x_TD, self.tp_group)


WHOLE = Split()
"""One process that has everything."""


def tensor_part(name: str, config: ModelConfig, split: Split) -> tuple[int, list[slice]] | None:
    """Which part of a parameter a process holds under tensor parallelism.

    Args:
        name: The parameter's name.
        config: Shape of the whole model.
        split: The process.

    Returns:
        The dimension that is dealt out and the slices held along it, in order; None when every process holds all of it.
    """
    if name.endswith(("norm.weight", "score.weight")):
        return None
    if name in ("embedding.weight", "head.weight"):
        return 0, [split.vocab_rows(config)]
    query, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    dimension, widths = {
        "attention.qkv.weight": (0, (query, kv, kv)),
        "attention.output.weight": (1, (query,)),
        "feed_forward.gate_up.weight": (0, (config.ffn_dim, config.ffn_dim)),
        "feed_forward.down.weight": (1, (config.ffn_dim,)),
    }[name.split(".", 2)[2]]
    slices, start = [], 0
    for width in widths:
        own = width // split.tp
        slices.append(slice(start + split.tp_rank * own, start + (split.tp_rank + 1) * own))
        start += width
    return dimension, slices


def whole_shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape of a whole parameter."""
    if name.endswith("norm.weight"):
        return (config.dim,)
    if name in ("embedding.weight", "head.weight"):
        return config.vocab_size, config.dim
    if name == "score.weight":
        return 1, config.dim
    query, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "attention.qkv.weight": (query + 2 * kv, config.dim),
        "attention.output.weight": (config.dim, query),
        "feed_forward.gate_up.weight": (2 * config.ffn_dim, config.dim),
        "feed_forward.down.weight": (config.dim, config.ffn_dim),
    }[name.split(".", 2)[2]]


def take_part(whole: Tensor, name: str, config: ModelConfig, split: Split) -> Tensor:
    """This process's part of a whole parameter."""
    part = tensor_part(name, config, split)
    if part is None or split.tp == 1:
        return whole
    dimension, slices = part
    pieces = [whole.narrow(dimension, s.start, s.stop - s.start) for s in slices]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grads[0], ctx.group), None


class _GatheredProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: Any) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(_all_gather(x, group), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), grad = ctx.saved_tensors, grads[0]
        again, waiting = _begin_all_gather(x, ctx.group) if ctx.needs_input_grad[1] else (None, None)
        grad_x = _reduce_scatter(grad @ weight, ctx.group) if ctx.needs_input_grad[0] else None
        if waiting is not None:  # it came beside the product
            waiting.wait()
        return grad_x, None if again is None else grad.T @ again, None


def _begin_all_gather(x: Tensor, group: Any) -> tuple[Tensor, Any]:
    """The gathered tensor and what to wait for; the compiler orders exchanges itself."""
    if torch.compiler.is_compiling():
        return _all_gather(x, group), None
    x = x.contiguous()
    out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    return out, dist.all_gather_single(out, x, group=group, async_op=True)


def _all_gather(x: Tensor, group: Any) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    dist.all_gather_single(out, x, group=group)
    return out


def _reduce_scatter(x: Tensor, group: Any) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    dist.reduce_scatter_single(out, x, group=group)
    return out


def gather(x: Tensor, group: Any) -> Tensor:
    """Concatenate the tensors of a group along the first dimension; the gradient is the sum of all, each its share."""
    return _Gather.apply(x, group)  # pyright: ignore[reportReturnType]


def reduce_scatter(x: Tensor, group: Any) -> Tensor:
    """Sum the tensors of a group and give each its share along the first dimension; the gradient is gathered."""
    return _ReduceScatter.apply(x, group)  # pyright: ignore[reportReturnType]
