"""AdamW over two groups: matrices decay, vectors (norms) do not; and gradient clipping by the global norm.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    x = x - lr (wd x + m^ / (sqrt(v^) + eps))        m^, v^ corrected for their start at zero

PyTorch's fused kernel does this in one pass over memory, on CPU and CUDA. `adamw8bit` is torchao's: moments in eight
bits with a scale for each 256 of them, a quarter of the memory.

Source: Decoupled weight decay (1711.05101), algorithm 2; betas and decay as open Llama recipes use them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import AdamW, Optimizer

from puna.core.config import Config
from puna.core.errors import need


class OptimConfig(Config):
    """The optimizer."""

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps both moments in eight bits (torchao, one process): about 2 instead of 8 bytes a weight."""
    step: Literal["after_backward", "in_backward"] = "after_backward"
    """in_backward steps each weight as soon as its gradient is there and frees it, so gradients are never held
    together. The global norm is known only when all steps are made: it cannot clip (clip_norm must be 0), and a
    gradient that is not finite is found too late to save this step. One process, no accumulation."""
    lr: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate (Llama 3: 8B 3e-4, 70B 1.5e-4, 405B 8e-5)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and the second moment per step."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decay of matrices, times the learning rate; norms do not decay."""
    clip_norm: float = Field(default=1.0, ge=0.0)
    """Largest global gradient norm; larger gradients are scaled down to it. 0 never clips."""
    rate_factors: dict[str, float] = Field(default_factory=dict)
    """Learning-rate factors of parameters whose names begin so: `{ critic = 3.0 }`."""

    @model_validator(mode="after")
    def _cannot_clip_what_is_stepped(self) -> "OptimConfig":
        if self.step == "in_backward" and self.clip_norm:
            raise ValueError("step 'in_backward' knows the global norm too late to clip by it: set clip_norm = 0")
        return self


def build_optimizer(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> Optimizer:
    """The optimizer of a model.

    Args:
        named: Parameters with their names; matrices (two dimensions or more) decay.
        config: Its settings.

    Raises:
        MissingError: adamw8bit is asked for, and torchao is not installed.
    """
    found: dict[tuple[float, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in named:
        factor = next((f for start, f in config.rate_factors.items() if name.startswith(start)), 1.0)
        found.setdefault((factor, parameter.dim() < 2), []).append((name, parameter))
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": 0.0 if is_vector else config.weight_decay, "rate_factor": factor}
        for (factor, is_vector), chosen in sorted(found.items(), key=lambda item: item[0])
    ]
    if config.kind == "adamw8bit":
        eight = need("torchao.optim", extra="lowbit")
        return eight.AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        own = rate * group.get("rate_factor", 1.0)
        if isinstance(group["lr"], Tensor):  # compiled optimizers keep it in a tensor
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def scale_and_clip(
    gradients: Sequence[Tensor], *, count: float, clip_norm: float, norm_of_sum: float | None = None
) -> float:
    """Divide summed gradients by the count of their targets, and limit their global norm, in place.

    Args:
        gradients: Gradients of a sum of losses.
        count: Number of terms in that sum.
        clip_norm: Largest norm of the mean's gradient; 0 means no limit.
        norm_of_sum: Global norm of the gradients as they are, where they are shards; None computes it.

    Returns:
        The norm before clipping. When it is not finite, the gradients are left as they are.

    Source: Pascanu et al. 2013 (1211.5063), algorithm 1.
    """
    norm = (float(torch.nn.utils.get_total_norm(gradients)) if norm_of_sum is None else norm_of_sum) / count
    factor = 1.0 / count
    if clip_norm and norm > clip_norm:
        factor *= clip_norm / norm
    if 0.0 < factor < float("inf") and norm < float("inf"):
        torch._foreach_mul_(list(gradients), factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def optimizer_tensors(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state by kind (`exp_avg`, `exp_avg_sq`, `step`) and parameter name; not copies.

    A moment in eight bits is two kinds: its `codes`, of the parameter's shape, and its `scale`, one for each 256.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for kind, value in optimizer.state.get(parameter, {}).items():
                if hasattr(value, "codes"):
                    found.setdefault(f"{kind}.codes", {})[name] = value.codes
                    found.setdefault(f"{kind}.scale", {})[name] = value.scale
                else:
                    found.setdefault(kind, {})[name] = value
    return found


def begin_optimizer_state(optimizer: Optimizer, has_state: Callable[[str], bool]) -> None:
    """Make the state that AdamW makes at its first step, so that a checkpoint can be loaded into it.

    Args:
        optimizer: Before its first step.
        has_state: Whether a parameter, by name, had a gradient before; the others get no state.
    """
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if has_state(name):
                own: Any = optimizer
                eight = hasattr(own, "_new_buffer")
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device="cpu" if eight else parameter.device),
                    "exp_avg": own._new_buffer(parameter, True) if eight else torch.zeros_like(parameter),
                    "exp_avg_sq": own._new_buffer(parameter, False) if eight else torch.zeros_like(parameter),
                }
