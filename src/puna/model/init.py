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

from puna.model.transformer import Transformer

EMBEDDING_STD = 0.02


@torch.no_grad()
def init_weights(model: Transformer, seed: int) -> Transformer:
    """Fill every parameter in place.

    Args:
        model: The model, on any device.
        seed: Equal seeds give equal weights.

    Returns:
        The same model.
    """
    residual_scale = 1 / math.sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        std = parameter.shape[1] ** -0.5
        if name in ("embedding.weight", "head.weight"):
            std = EMBEDDING_STD
        elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            std *= residual_scale
        generator = torch.Generator().manual_seed(_seed_of(name, seed))
        drawn = torch.empty(parameter.shape, dtype=torch.float32)
        torch.nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        parameter.copy_(drawn)
    return model


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # generators take 63 bits
