"""The contrastive losses of the DPO family, one value per pair, as formulas on plain tensors.

All of them compare how likely the policy finds a chosen and a rejected answer to one prompt:

    DPO     -log sigma(z),  z = beta * ((lp_c - ref_c) - (lp_r - ref_r))          sums over the answer's tokens
    cDPO    -(1 - e) log sigma(z) - e log sigma(-z)                               labels wrong with probability e
    IPO     (((lp_c - ref_c) - (lp_r - ref_r)) - 1 / (2 tau))^2                   sums over the answer's tokens
    SimPO   -log sigma(beta * (lp_c / |c| - lp_r / |r|) - gamma)                  means, and no reference model

Nothing here knows about models, masks or packing: `post/dpo.py` makes the sums and hands them in.

Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7 (DPO); Mitchell, "A note on DPO with noisy preferences", 2023
(cDPO); Azar et al. 2023, arXiv:2310.12036, eq. 17 (IPO); Meng et al. 2024, arXiv:2405.14734, eq. 6 (SimPO).
Shapes: P pairs.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_losses(
    chosen_ratio: Float[Tensor, " P"],
    rejected_ratio: Float[Tensor, " P"],
    *,
    beta: float,
    label_smoothing: Float[Tensor, " P"] | float = 0.0,
) -> Float[Tensor, " P"]:
    """DPO's loss for each pair, with conservative labels when `label_smoothing` is above zero.

    Args:
        chosen_ratio: log pi(chosen) - log ref(chosen), summed over the counted tokens, in nats.
        rejected_ratio: the same for the rejected answer.
        beta: strength of the tie to the reference; rewards are `beta * ratio`.
        label_smoothing: probability e in [0, 0.5) that a label is wrong, one for all or one for each.

    Returns:
        The loss of each pair in nats; ln 2 when policy and reference agree.

    Source: Rafailov et al. 2023, eq. 7; label smoothing: Mitchell 2023.
    """
    z_P = beta * (chosen_ratio - rejected_ratio)
    if isinstance(label_smoothing, float) and label_smoothing == 0.0:
        return -logsigmoid(z_P)
    return -(1.0 - label_smoothing) * logsigmoid(z_P) - label_smoothing * logsigmoid(-z_P)


def ipo_losses(
    chosen_ratio: Float[Tensor, " P"], rejected_ratio: Float[Tensor, " P"], *, tau: float
) -> Float[Tensor, " P"]:
    """IPO's squared distance of the margin from 1 / (2 tau).

    Args:
        chosen_ratio: log pi(chosen) - log ref(chosen), summed over the counted tokens, in nats.
        rejected_ratio: the same for the rejected answer.
        tau: strength of the tie to the reference, > 0.

    Returns:
        The loss of each pair.

    Source: Azar et al. 2023, eq. 17.
    Differs: nothing; whoever hands in ratios divided by their answers' lengths has the form that TRL uses.
    """
    return (chosen_ratio - rejected_ratio - 1.0 / (2.0 * tau)).square()


def simpo_losses(
    chosen_mean: Float[Tensor, " P"], rejected_mean: Float[Tensor, " P"], *, beta: float, gamma: float
) -> Float[Tensor, " P"]:
    """SimPO's loss: length-normalised log probabilities with a target margin, without a reference.

    Args:
        chosen_mean: mean log pi of the chosen answer's counted tokens, in nats per token.
        rejected_mean: the same for the rejected answer.
        beta: scale of the means (the paper uses 2 to 10).
        gamma: margin that the chosen answer should win by, >= 0.

    Returns:
        The loss of each pair in nats.

    Source: Meng et al. 2024, eq. 6.
    """
    return -logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)
