"""Agreement coefficients: equal to `krippendorff`, scikit-learn and naive twins; defined edges."""

import math
import warnings

import numpy as np
import pytest

from puna.post.preferences.agreement import (
    cohen_kappa,
    fleiss_kappa,
    gwet_ac,
    krippendorff_alpha,
    raw_agreement,
    with_interval,
)
from tests.reference import agreement_naive as naive

NAN = math.nan
# the example of Krippendorff (2011): 12 items, 4 raters, missing labels
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T


def random_ratings(seed, *, items=40, raters=5, categories=4, missing=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, categories + 1, items)
    ratings = np.where(
        rng.random((items, raters)) < 0.6, truth[:, None], rng.integers(1, categories + 1, (items, raters))
    )
    ratings = ratings.astype(float)
    ratings[rng.random((items, raters)) < missing] = NAN
    return ratings


@pytest.mark.parametrize(("level", "golden"), [("nominal", 0.743421), ("ordinal", 0.815388), ("interval", 0.849107)])
def test_alpha_of_krippendorffs_own_example(level, golden):
    assert krippendorff_alpha(EXAMPLE, level=level).value == pytest.approx(golden, abs=1e-6)


def test_alpha_of_the_docstring_of_fast_krippendorff():
    rows = "*****3412131*; 1*211334******; **212342***1*".replace(" ", "").split(";")
    rows = [["*", "*", "*", "*", "*", "3", "4", "1", "2", "1", "1", "3", "3", "*", "3"]]
    rows += [["1", "*", "2", "1", "3", "3", "4", "3", "*", "*", "*", "*", "*", "*", "*"]]
    rows += [["*", "*", "2", "1", "3", "4", "4", "*", "2", "1", "1", "3", "3", "*", "4"]]
    ratings = np.array([[NAN if v == "*" else float(v) for v in row] for row in rows]).T
    assert krippendorff_alpha(ratings, level="nominal").value == pytest.approx(0.691358, abs=1e-6)
    assert krippendorff_alpha(ratings, level="interval").value == pytest.approx(0.810845, abs=1e-6)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_equals_the_package_krippendorff_and_the_naive_twin(level, seed):
    krippendorff = pytest.importorskip("krippendorff")
    ratings = random_ratings(seed)
    ours = krippendorff_alpha(ratings, level=level).value
    theirs = krippendorff.alpha(reliability_data=ratings.T, level_of_measurement=level)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours == pytest.approx(naive.krippendorff_alpha(ratings.tolist(), level), abs=1e-12)


def test_cohen_golden():
    first = np.repeat([0.0, 0.0, 1.0, 1.0], [20, 5, 10, 15])
    second = np.repeat([0.0, 1.0, 0.0, 1.0], [20, 5, 10, 15])
    assert cohen_kappa(first, second).value == pytest.approx(0.4)


@pytest.mark.parametrize("weighting", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(4))
def test_cohen_equals_scikit_learn(weighting, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    ratings = random_ratings(seed, raters=2, missing=0.0)
    theirs = metrics.cohen_kappa_score(ratings[:, 0], ratings[:, 1], weights=None if weighting == "none" else weighting)
    assert cohen_kappa(ratings[:, 0], ratings[:, 1], weighting=weighting).value == pytest.approx(theirs, abs=1e-12)


def test_fleiss_golden():
    """The worked example of Fleiss (1971) as told by Wikipedia: 10 items, 14 raters, 5 categories, kappa 0.210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5.0), row) for row in table])
    assert fleiss_kappa(ratings).value == pytest.approx(0.20993, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_fleiss_and_gwet_equal_the_naive_twins(seed):
    ratings = random_ratings(seed)
    rows, categories = ratings.tolist(), [1.0, 2.0, 3.0, 4.0]
    assert fleiss_kappa(ratings).value == pytest.approx(naive.fleiss_kappa(rows, categories), abs=1e-12)
    for weighting in ("none", "linear", "quadratic"):
        theirs = naive.gwet_ac(rows, categories, weighting)
        assert gwet_ac(ratings, weighting=weighting).value == pytest.approx(theirs, abs=1e-12)


def test_gwet_golden():
    """Gwet (2014), table 4.? for the same example as Krippendorff's: AC1 0.77544, as irrCAC prints it."""
    assert gwet_ac(EXAMPLE).value == pytest.approx(0.77544, abs=1e-5)


def test_kappa_falls_where_one_label_is_rare_although_people_agree_and_gwet_does_not():
    """Feinstein and Cicchetti's paradox: 118 yes-yes, 5 and 2 disagreements, no no-no (Gwet 2008, table 6)."""
    first = np.repeat([1.0, 1.0, 0.0], [118, 5, 2])
    second = np.repeat([1.0, 0.0, 1.0], [118, 5, 2])
    ratings = np.stack([first, second], axis=1)
    assert raw_agreement(ratings).value == pytest.approx(0.944)
    assert cohen_kappa(first, second).value == pytest.approx(-0.0234, abs=1e-3)
    assert gwet_ac(ratings).value == pytest.approx(0.9408, abs=1e-3)


@pytest.mark.parametrize("measure", [krippendorff_alpha, fleiss_kappa, gwet_ac, raw_agreement])
def test_what_is_not_defined_has_no_value_and_says_why(measure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "one person" in measure(np.array([[1.0], [2.0]])).reason
        assert "two people" in measure(np.array([[1.0, NAN], [NAN, 2.0]])).reason
        same = measure(np.ones((5, 3)))
    if measure is raw_agreement:
        assert same.value == 1.0
    else:
        assert same.value is None and "one category" in same.reason


@pytest.mark.parametrize("measure", [krippendorff_alpha, fleiss_kappa, gwet_ac, raw_agreement])
def test_full_agreement_on_several_categories_is_one(measure):
    assert measure(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])).value == pytest.approx(1.0)


def test_gwet_of_one_category_on_a_known_scale_is_one():
    assert gwet_ac(np.ones((5, 3)), categories=[0.0, 1.0]).value == pytest.approx(1.0)


def test_cohen_edges():
    assert cohen_kappa(np.array([1.0, NAN]), np.array([NAN, 1.0])).reason == "no item was judged by both"
    assert cohen_kappa(np.ones(3), np.ones(3)).value is None


def test_the_interval_covers_the_value_and_narrows_with_items():
    few, many = random_ratings(1, items=30), random_ratings(1, items=480)
    small = with_interval(krippendorff_alpha, few, resamples=300)
    large = with_interval(krippendorff_alpha, many, resamples=300)
    for found in (small, large):
        assert found.low < found.value < found.high
    assert large.high - large.low < (small.high - small.low) / 2


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth = krippendorff_alpha(random_ratings(99, items=20_000)).value
    hits = [
        found.low <= truth <= found.high
        for found in (with_interval(krippendorff_alpha, random_ratings(s, items=80), resamples=200) for s in range(60))
    ]
    assert 0.85 <= np.mean(hits) <= 1.0
