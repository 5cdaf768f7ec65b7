"""Bradley and Terry's model for noisy people who lean to one side.

A comparison of i on the left with j on the right is, with chance s(skill of the person), a fair look at the two, and
otherwise a guess that prefers the left with chance s(side bias of the person), where s is the logistic function:

    P(left wins) = s(g) s(v_i - v_j) + (1 - s(g)) s(q)

v are the scores of what is compared, g and q belong to the person. So a person who clicks left all day gets a low g and
a high q, and says nothing about the scores. What is compared may be models (a ranking of a round) or the two answers of
every item. A small pull to the middle keeps scores finite that never lose.

Source: crowd-kit's noisy Bradley-Terry model (Ustalov et al. 2021, arXiv 2109.08584); Bradley and Terry 1952.

Differs:
    From crowd-kit 1.4: its gradient writes a person's two entries one place too low and overwrites instead of adding,
    and its regularizer has the sign that pushes scores apart; here the gradient is exact (tests compare it with finite
    differences) and the pull goes to the middle.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.core.errors import need


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Comparisons as index arrays.

    Attributes:
        left: Index of what stood on the left.
        right: Index of what stood on the right.
        left_won: Whether the left one was preferred.
        worker: Index of the person.
        n_players: Things compared.
        n_workers: People.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    left_won: NDArray[np.bool_]
    worker: NDArray[np.int64]
    n_players: int
    n_workers: int


@dataclass(frozen=True, slots=True)
class NoisyBradleyTerry:
    """A fitted model.

    Attributes:
        scores: One value a player, mean 0, in log-odds.
        attention: Each person's chance of a fair look, 0 to 1.
        left_bias: Each person's chance to take the left when guessing, 0 to 1.
        loss: Negative log-likelihood a comparison.
    """

    scores: NDArray[np.float64]
    attention: NDArray[np.float64]
    left_bias: NDArray[np.float64]
    loss: float


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function, without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def loss_and_gradient(
    x: NDArray[np.float64], data: Comparisons, *, pull: float = 0.0
) -> tuple[float, NDArray[np.float64]]:
    """Negative log-likelihood and its gradient.

    Args:
        x: Scores, then side biases (log-odds), then skills (log-odds).
        data: The comparisons.
        pull: Weight of half the squares of all parameters.

    Returns:
        Sum over the comparisons, plus the pull; and its derivative by x.
    """
    scores, bias, skill = np.split(x, [data.n_players, data.n_players + data.n_workers])
    sign = np.where(data.left_won, 1.0, -1.0)
    fair = sigmoid(sign * (scores[data.left] - scores[data.right]))
    guess = sigmoid(sign * bias[data.worker])
    look = sigmoid(skill[data.worker])
    chance = np.maximum(look * fair + (1 - look) * guess, 1e-300)
    gradient = pull * x
    by_difference = -look * fair * (1 - fair) * sign / chance
    np.add.at(gradient, data.left, by_difference)
    np.add.at(gradient, data.right, -by_difference)
    np.add.at(gradient, data.n_players + data.worker, -(1 - look) * guess * (1 - guess) * sign / chance)
    np.add.at(gradient, data.n_players + data.n_workers + data.worker, -look * (1 - look) * (fair - guess) / chance)
    return float(-np.log(chance).sum() + 0.5 * pull * (x**2).sum()), gradient


def fit(data: Comparisons, *, pull: float = 0.05, max_steps: int = 500) -> NoisyBradleyTerry:
    """Fits the model by L-BFGS.

    Args:
        data: The comparisons.
        pull: See `loss_and_gradient`; 0 gives the plain likelihood, whose best scores may be infinite.
        max_steps: Most steps.
    """
    optimize = need("scipy.optimize", extra="annotate")
    n, m = data.n_players, data.n_workers
    start = np.concatenate([np.zeros(n + m), np.full(m, 2.0)])  # people look fairly until shown otherwise
    found = optimize.minimize(
        lambda x: loss_and_gradient(x, data, pull=pull),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_steps},
    )
    scores, bias, skill = np.split(found.x, [n, n + m])
    plain, _ = loss_and_gradient(found.x, data)
    return NoisyBradleyTerry(
        scores - scores.mean() if n else scores, sigmoid(skill), sigmoid(bias), plain / max(len(data.left), 1)
    )
