"""The noisy Bradley-Terry model: crowd-kit's likelihood, an exact gradient, and people who click left."""

import numpy as np
import pytest

from puna.post.preferences.bradley_terry import Comparisons, fit, loss_and_gradient, sigmoid


def drawn(seed, *, players=6, n=1200, attention=(0.95, 0.9, 0.9, 0.1), left_bias=(0.5, 0.5, 0.5, 0.95)):
    rng = np.random.default_rng(seed)
    scores = np.linspace(-2, 2, players)
    left = rng.integers(0, players, n)
    right = (left + rng.integers(1, players, n)) % players
    worker = rng.integers(0, len(attention), n)
    fair = sigmoid(scores[left] - scores[right])
    chance = np.where(rng.random(n) < np.array(attention)[worker], fair, np.array(left_bias)[worker])
    return Comparisons(left, right, rng.random(n) < chance, worker, players, len(attention)), scores


def test_the_gradient_is_that_of_finite_differences():
    data, _ = drawn(0, n=60)
    x = np.random.default_rng(1).normal(size=data.n_players + 2 * data.n_workers)
    _, gradient = loss_and_gradient(x, data, pull=0.1)
    for index in range(len(x)):
        step = np.zeros_like(x)
        step[index] = 1e-6
        high, low = (loss_and_gradient(x + s, data, pull=0.1)[0] for s in (step, -step))
        assert gradient[index] == pytest.approx((high - low) / 2e-6, abs=1e-5)


def crowd_kits_x(x, data):
    """Our parameters in crowd-kit's order: a common score first, then scores, biases, skills."""
    return np.concatenate([[0.0], x])


def crowd_kits_data(data):
    winner = np.where(data.left_won, data.left, data.right)
    return np.stack([data.left, data.right, winner], axis=1) + 1


def test_the_likelihood_is_crowd_kits():
    aggregation = pytest.importorskip("crowdkit.aggregation")
    data, _ = drawn(0)
    x = np.random.default_rng(2).normal(size=data.n_players + 2 * data.n_workers)
    theirs = aggregation.NoisyBradleyTerry._compute_log_likelihood(
        crowd_kits_x(x, data), crowd_kits_data(data), data.worker, data.n_players, data.n_workers, 0.0
    )
    assert loss_and_gradient(x, data)[0] == pytest.approx(theirs, rel=1e-12)


def test_our_fit_is_at_least_as_likely_as_crowd_kits_whose_gradient_is_not_exact():
    """crowd-kit writes a person's derivatives one place too low and keeps the last comparison only."""
    aggregation = pytest.importorskip("crowdkit.aggregation")
    pandas = pytest.importorskip("pandas")
    data, _ = drawn(0)
    frame = pandas.DataFrame(
        {"worker": data.worker, "left": data.left, "right": data.right,
         "label": np.where(data.left_won, data.left, data.right)}
    )  # fmt: skip
    theirs = aggregation.NoisyBradleyTerry(n_iter=200).fit(frame)

    def logit(p):
        p = np.clip(np.asarray(p, dtype=float), 1e-9, 1 - 1e-9)
        return np.log(p / (1 - p))

    x = np.concatenate([logit(s.sort_index()) for s in (theirs.scores_, theirs.biases_, theirs.skills_)])
    assert fit(data, pull=0.0).loss <= loss_and_gradient(x, data)[0] / len(data.left) + 1e-6
    ours = loss_and_gradient(x, data)[1]
    exact = aggregation.NoisyBradleyTerry._compute_gradient(
        crowd_kits_x(x, data), crowd_kits_data(data), data.worker, data.n_players, data.n_workers, 0.0
    )[1:]
    assert ours[: data.n_players - 1] == pytest.approx(exact[: data.n_players - 1], abs=1e-8)
    assert not np.allclose(ours[data.n_players :], exact[data.n_players :], atol=1e-3)


def test_scores_come_back_and_the_clicker_is_found():
    data, scores = drawn(3, n=6000)
    found = fit(data)
    assert np.corrcoef(found.scores, scores)[0, 1] > 0.99
    assert found.attention[3] < 0.3 < 0.7 < found.attention[:3].min()
    assert found.left_bias[3] > 0.9


def test_knowing_the_side_helps_when_a_favourite_always_stands_on_the_left():
    """Clickers and a design that shows the worst player on the left: plain win rates are fooled."""
    data, scores = drawn(4, n=3000, attention=(0.9, 0.05, 0.05), left_bias=(0.5, 0.97, 0.97))
    data = Comparisons(
        np.minimum(data.left, data.right), np.maximum(data.left, data.right), data.left_won, data.worker, 6, 3
    )
    rng = np.random.default_rng(0)
    fair = sigmoid(scores[data.left] - scores[data.right])
    attention = np.array([0.9, 0.05, 0.05])[data.worker]
    won = rng.random(3000) < np.where(rng.random(3000) < attention, fair, np.array([0.5, 0.97, 0.97])[data.worker])
    data = Comparisons(data.left, data.right, won, data.worker, 6, 3)
    wins = np.bincount(np.where(won, data.left, data.right), minlength=6) / np.bincount(
        np.concatenate([data.left, data.right]), minlength=6
    )
    assert np.corrcoef(wins, scores)[0, 1] < 0
    assert np.corrcoef(fit(data).scores, scores)[0, 1] > 0.9


def test_a_player_that_never_loses_keeps_a_finite_score():
    data = Comparisons(np.zeros(5, int), np.ones(5, int), np.ones(5, bool), np.zeros(5, int), 2, 1)
    assert np.isfinite(fit(data).scores).all()
