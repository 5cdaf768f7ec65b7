import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from puna.core.errors import UsageError
from puna.scaling.mixture import best_mix, choose_power, fit_mixing_law, spearman


def _made(power, n=400, noise=0.0):
    rng = np.random.default_rng(0)
    mixes = rng.dirichlet(np.full(4, 0.5), n)
    slope = np.array([[-3.0, -1.0, 0.5, 0.0], [0.2, -2.0, -0.5, 1.0]])
    losses = np.array([2.0, 1.5]) + np.exp(0.3 + mixes**power @ slope.T)
    return mixes, losses + noise * rng.standard_normal(losses.shape)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_law_is_found_again_from_its_own_losses(power):
    mixes, losses = _made(power)
    law = fit_mixing_law(mixes[:200], losses[:200], domains="abcd", targets="xy", power=power)
    assert np.abs(law.predict(mixes[200:]) - losses[200:]).max() < 0.02


def test_noise_does_not_lead_it_astray():
    mixes, losses = _made(0.5, noise=0.02)
    law = fit_mixing_law(mixes[:300], losses[:300], domains="abcd", targets="xy")
    assert np.abs(law.predict(mixes[300:]) - _made(0.5)[1][300:]).mean() < 0.02


def test_the_best_mix_is_that_of_a_search_over_all():
    mixes, losses = _made(0.5)
    law = fit_mixing_law(mixes, losses, domains="abcd", targets="xy")
    found = best_mix(law, prior=np.full(4, 0.25), kl=0.0, importance=np.array([1.0, 0.0]))
    everywhere = np.random.default_rng(1).dirichlet(np.ones(4), 20_000)
    assert found.loss <= law.predict(everywhere)[:, 0].min() + 1e-3
    assert found.loss < found.prior_loss
    capped = best_mix(law, prior=np.full(4, 0.25), kl=0.0, caps=np.array([0.3, 0.3, 0.5, 0.5]))
    assert capped.weights.sum() == pytest.approx(1)
    assert np.all(capped.weights <= np.array([0.3, 0.3, 0.5, 0.5]) + 1e-9)
    near = best_mix(law, prior=np.array([0.1, 0.2, 0.3, 0.4]), kl=1e3)
    assert near.weights == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_what_cannot_be_fitted_is_refused():
    mixes, losses = _made(0.5)
    with pytest.raises(UsageError, match="cannot fix"):
        fit_mixing_law(mixes[:5], losses[:5], domains="abcd", targets="xy")
    with pytest.raises(UsageError, match="positive"):
        fit_mixing_law(mixes, losses - 99, domains="abcd", targets="xy")
    law = fit_mixing_law(mixes, losses, domains="abcd", targets="xy")
    with pytest.raises(UsageError, match=r"add up to 0\.40"):
        best_mix(law, prior=np.ones(4), caps=np.full(4, 0.1))


def test_ranks_with_ties_share_their_mean():
    assert spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 20, 30])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)


def test_small_runs_rank_the_mixes_of_larger_ones():
    """RegMix's 512 runs of a million parameters, its 256 of 60 million: every domain's ranking, and Pile-CC's."""
    root = Path(os.environ.get("PUNA_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "corpus/mixing"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")

    def read(name):
        with gzip.open(root / name, "rt") as file:
            head, *rows = csv.reader(file)
        return head[1:], np.array(rows, dtype=float)[:, 1:]

    domains, mixes = read("train_mixture_1m.csv.gz")
    targets, losses = read("train_pile_loss_1m.csv.gz")
    _, large_mixes = read("test_mixture_60m.csv.gz")
    _, large_losses = read("test_pile_loss_60m.csv.gz")
    law = fit_mixing_law(mixes, losses, domains=domains, targets=targets)
    predicted = law.predict(large_mixes)
    ranks = [spearman(predicted[:, t], large_losses[:, t]) for t in range(len(targets))]
    assert np.median(ranks) >= 0.985
    linear = fit_mixing_law(mixes, losses, domains=domains, targets=targets, power=1.0)
    pile = targets.index("metric/the_pile_pile_cc_val_loss")
    assert spearman(linear.predict(large_mixes)[:, pile], large_losses[:, pile]) >= 0.955


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_form_that_made_the_runs_is_chosen_on_them_alone(power):
    mixes, losses = _made(power, n=200)
    chosen, trials = choose_power(mixes, losses, powers=(0.25, 0.5, 1.0), folds=4)
    assert chosen == power
    assert {trial.power: trial.rank.shape for trial in trials} == {0.25: (2,), 0.5: (2,), 1.0: (2,)}
