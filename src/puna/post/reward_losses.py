"""The loss of a reward model, one value per pair of scores, as formulas on plain tensors.

    L = -p log sigma(d) - (1 - p) log sigma(-d) + c (s_better + s_worse)^2,      d = s_better - s_worse - m

A score means nothing by itself, only differences do: Bradley and Terry's model says that the better answer wins with
probability sigma(difference). `m` is a margin by which it should win (Llama 2 took it from the strength of the
preference, Llama 3 dropped it), `p` the probability that the label is right, and the last term keeps scores around
zero, so that those of different prompts can be compared.

K answers in a ranking give K (K - 1) / 2 pairs, which are not independent: each counts 1 / C(K, 2), so that a prompt
counts once however many answers it has.

Source: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1 (1 / C(K, 2)); Touvron et al. 2023,
arXiv:2307.09288, equation 2 and table 27 (margins); Eisenstein et al. 2023, arXiv:2312.09244 (centring).
Shapes: M pairs.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from puna.post.preference_rows import Strength

Margins = Literal["none", "small", "large"]

MARGINS: dict[Margins, dict[Strength, float]] = {
    "none": {},
    "small": {"significantly_better": 1.0, "better": 2 / 3, "slightly_better": 1 / 3, "marginally_better": 0.0},
    "large": {"significantly_better": 3.0, "better": 2.0, "slightly_better": 1.0, "marginally_better": 0.0},
}
"""Llama 2's two tables (2307.09288, table 27)."""


def bradley_terry_losses(
    better_M: Float[Tensor, " M"],
    worse_M: Float[Tensor, " M"],
    *,
    margin: Float[Tensor, " M"] | float = 0.0,
    probability: Float[Tensor, " M"] | float = 1.0,
    centring: float = 0.0,
) -> Float[Tensor, " M"]:
    """The loss of each pair in nats; ln 2 when both scores are equal and there is no margin.

    Args:
        better_M: Score of the preferred answer.
        worse_M: Score of the other one.
        margin: By how much the better one should win, >= 0.
        probability: That the label is right, in [0, 1].
        centring: Weight of the squared sum of both scores; 0.01 is usual.
    """
    difference_M = better_M - worse_M - margin
    loss_M = -logsigmoid(difference_M)
    if isinstance(probability, Tensor) or probability != 1.0:
        loss_M = probability * loss_M - (1.0 - probability) * logsigmoid(-difference_M)
    if centring:
        loss_M = loss_M + centring * (better_M + worse_M).square()
    return loss_M
