"""Putting adapters on a model: everything else is frozen, and the optimizer sees A, B and magnitudes only."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from puna.core.errors import UsageError
from puna.model.adapter_config import Adapted, AdapterConfig
from puna.model.init import seed_of
from puna.model.nf4 import NF4
from puna.model.projection import LowRank, Projection, projections, row_lengths
from puna.model.transformer import Transformer


@torch.no_grad()
def adapt(model: Transformer, config: AdapterConfig, *, base: str = "", base_fingerprint: str = "") -> Transformer:
    """Freeze a model in place and put adapters on it.

    A is drawn uniformly from +-1/sqrt(D), from a generator of its own for each matrix; B is zero; magnitudes are the
    lengths of the base's rows. So the first step sees the base.

    Args:
        model: A whole language model with its weights; its blocks may be packed already.
        config: Which matrices, and how.
        base: Path of the model as a person named it; the adapter's folder repeats it.
        base_fingerprint: Of that model.

    Returns:
        The same model.

    Raises:
        UsageError: The model has no head of its own, and the settings name lm_head.

    Source: 2106.09685, section 4.1; A's distribution as in its authors' code.
    """
    if "lm_head" in config.targets and model.head is None:
        raise UsageError(
            "adapter.targets names lm_head, but the model's head is its embedding. Leave it out of adapter.targets."
        )
    model.requires_grad_(False)
    model.adapter = Adapted(config, base, base_fingerprint)
    for name, projection in projections(model):
        projection.adapt(config)
        for part, first, rows in projection.part_rows():
            adapter = projection.adapter_of(part)
            if adapter is not None:
                _begin(adapter, seed_of(f"{name}.{part}.A", config.seed))
                if adapter.magnitude is not None:
                    adapter.magnitude.copy_(row_lengths(projection.base().narrow(0, first, rows).float()))
    return model


def _begin(adapter: LowRank, seed: int) -> None:
    bound = adapter.A.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    adapter.A.copy_(torch.empty(adapter.A.shape).uniform_(-bound, bound, generator=generator))
    adapter.B.zero_()


@torch.no_grad()
def fill_packed(
    model: Transformer,
    weights: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    double_quantization: bool | None = None,
) -> Transformer:
    """Give a model on the meta device its weights, one by one; the blocks' matrices in four bits if asked.

    Packing sees the weights as they are stored, before they are rounded to `dtype`, so a base that is packed again
    later is the same.

    Args:
        model: On the meta device.
        weights: Every parameter by name.
        dtype: Of what is not packed.
        double_quantization: Pack, with double quantization or without; None packs nothing.
    """
    modules = dict(model.named_modules())
    for name, tensor in weights:
        module = modules[name.removesuffix(".weight")]
        if double_quantization is not None and isinstance(module, Projection) and name.startswith("layers."):
            module.take_packed(NF4.of(tensor, double=double_quantization), dtype)
        else:
            module.register_parameter("weight", nn.Parameter(tensor.to(dtype)))
    return model


def packed_bytes(model: nn.Module) -> int:
    """Memory of what is packed."""
    return sum(p.packed.nbytes for _, p in projections(model) if p.packed is not None)


def trained_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
