"""First weights of a model, the same for one seed on every device, layout and number of ranks.

Each parameter draws from its own generator, seeded by the seed and its name, so no order of creation enters. Matrices
start at standard deviation D_in^(-1/2), cut at three deviations; the two that write into the residual stream are
divided by sqrt(2 L), so that its size does not grow with depth (GPT-2, section 2.3). The embedding and an untied head
start at 0.02: a tied head then gives small first logits, and the first loss is log V. Norms start at one.

Llama 3's report does not say how its weights start; this follows common open recipes.
"""

import hashlib
import math

import torch
from torch import Tensor

from puna.model.split import take_part, whole_shape
from puna.model.transformer import Transformer

EMBEDDING_STD = 0.02


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> Transformer:
    """Fill every parameter in place.

    Args:
        model: The whole model, on any device.
        seed: Equal seeds give equal weights.

    Returns:
        The same model.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(first_part(name, model, seed))
    return model


def first_part(name: str, model: Transformer, seed: int) -> Tensor:
    """The first value of a parameter, as far as this process holds it under tensor parallelism, fp32 on the CPU.

    The whole parameter is drawn and cut, so that no number depends on the layout.

    Args:
        name: The parameter's name.
        model: The model, of which only shapes are asked.
        seed: Of the whole model.
    """
    config = model.config
    shape = whole_shape(name, config)
    if len(shape) == 1:
        return torch.ones(shape)
    std = shape[1] ** -0.5
    if name in ("embedding.weight", "head.weight"):
        std = EMBEDDING_STD
    elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
        std /= math.sqrt(2 * config.n_layers)
    generator = torch.Generator().manual_seed(seed_of(name, seed))
    drawn = torch.empty(shape, dtype=torch.float32)
    torch.nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
    return take_part(drawn, name, config, model.split)


def seed_of(name: str, seed: int) -> int:
    """The seed of what has a name."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # generators take 63 bits
