"""Putting adapters on a model: everything else is frozen, and the optimizer sees A, B and magnitudes only."""

import torch
from torch import nn

from puna.core.errors import UsageError
from puna.model.adapter_config import AdapterConfig
from puna.model.init import seed_of
from puna.model.projection import LowRank, projections, row_lengths
from puna.model.transformer import Transformer


@torch.no_grad()
def adapt(model: Transformer, config: AdapterConfig) -> Transformer:
    """Freeze a model in place and put adapters on it.

    A is drawn uniformly from +-1/sqrt(D), from a generator of its own for each matrix; B is zero; magnitudes are the
    lengths of the base's rows. So the first step sees the base.

    Args:
        model: A whole language model with its weights; its blocks may be packed already.
        config: Which matrices, and how.

    Returns:
        The same model.

    Raises:
        UsageError: The model has no head of its own, and the settings name lm_head.

    Source: 2106.09685, section 4.1; A's distribution as in its authors' code.
    """
    if "lm_head" in config.targets and model.head is None:
        raise UsageError(
            "adapter.targets names lm_head, but the model's head is its embedding. Leave lm_head out of adapter.targets."
        )
    model.requires_grad_(False)
    model.adapter = config
    for name, projection in projections(model):
        projection.adapt(config)
        for part, first, rows in projection.part_rows():
            if part in projection.adapters:
                adapter = projection.adapters[part]
                assert isinstance(adapter, LowRank), "just made"
                _begin(adapter, seed_of(f"{name}.{part}.A", config.seed))
                if adapter.magnitude is not None:
                    adapter.magnitude.copy_(row_lengths(projection.base().narrow(0, first, rows).float()))
    return model


def _begin(adapter: LowRank, seed: int) -> None:
    bound = adapter.A.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    adapter.A.copy_(torch.empty(adapter.A.shape).uniform_(-bound, bound, generator=generator))
    adapter.B.zero_()


def pack(model: Transformer, *, double_quantization: bool = True) -> Transformer:
    """Keep the matrices of the blocks in four bits, in place; embedding, head and norms stay as they are."""
    for _, projection in projections(model.layers):
        if projection.packed is None:
            projection.pack(double_quantization)
    return model


def trained_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
