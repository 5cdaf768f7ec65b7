"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state of theirs.

Step t of n (t = 0 is the first) first warms up linearly; then, with w the warm-up,

    cosine     m + (1 - m) (1 + cos(pi p)) / 2,   p = (t - w) / (n - w)
    wsd        1 until the last d steps, then m + (1 - m) (1 - p) or m + (1 - m) (1 - sqrt(p)),   p = (t - (n - d)) / d
    constant   1

times the peak, where m is the final share. Llama 3 405B: warm-up 8,000 steps, cosine to 1/100 of the peak. With
`by = "tokens"`, p counts the tokens of steps t, w, n and n - d instead: it matters where the batch grows.

Source: The Llama 3 Herd of Models (2407.21783), section 3.4.1; WSD: MiniCPM (2404.06395), section 4; the 1 - sqrt
decay: Haegele et al. 2024 (2405.18392), section 3.
"""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from puna.core.config import Config


class ScheduleConfig(Config):
    """How the learning rate moves over a run."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine; wsd: warm-up, stable, decay; or constant after the warm-up."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly to its peak."""
    final_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of the peak (the 405B run: 0.01)."""
    decay_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """For wsd: share of all steps that decay, at the end."""
    decay: Literal["linear", "sqrt"] = "sqrt"
    """For wsd: the form of the decay, 1 - p or 1 - sqrt(p)."""
    by: Literal["steps", "tokens"] = "steps"
    """What the way after the warm-up is measured in; they differ where the batch grows ([[ramp]])."""


def rate_factor(
    step: int, *, steps: int, config: ScheduleConfig, tokens_at: Callable[[int], float] | None = None
) -> float:
    """The learning rate of a step as a share of the peak.

    Args:
        step: The step about to be made, 0 .. steps - 1.
        steps: Steps of the whole run.
        config: The schedule.
        tokens_at: Tokens that the first so many steps see, for a schedule by tokens; None: every step sees the same.

    Returns:
        A number in [0, 1]; 1 is the peak.
    """
    warmup, final = config.warmup_steps, config.final_ratio
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "constant":
        return 1.0
    at = tokens_at if config.by == "tokens" and tokens_at is not None else float
    here, end = at(step), at(steps)
    if config.kind == "cosine":
        start = at(warmup)
        progress = (here - start) / max(1, end - start)
        return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    decay = round(config.decay_share * end)
    progress = (here - (end - decay)) / max(1, decay)
    if progress <= 0:
        return 1.0
    progress = min(1.0, progress)
    return final + (1 - final) * (1 - (math.sqrt(progress) if config.decay == "sqrt" else progress))
