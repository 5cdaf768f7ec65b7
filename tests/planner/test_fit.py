"""The fit: finds what made the data, keeps the prior where there is none, and predicts sources it has not seen."""

from dataclasses import fields, replace

import numpy as np
import pytest

from puna.planner.constants import FITTED, PRIOR, Constants
from puna.planner.fit import families, fit, leave_out, relative_errors, score, sources
from puna.planner.layout import STACKS
from puna.planner.published import Published, read_published
from puna.planner.step_time import step_seconds
from tests.planner.rows import published_file, work


def made(constants, source="made"):
    works = [
        work(size, cluster, micro_batch=micro, seq_len=seq, recompute=mode, stack=STACKS["unseen"])
        for size in ("1B", "8B")
        for cluster in ("8xH100", "8xA100", "64xH100")
        for micro, seq in ((1, 2048), (1, 8192), (1, 65536))
        for mode in ("none", "full")
    ]
    speeds = [w.tokens / float(step_seconds(w, constants).total) / w.cluster.n_gpus for w in works]
    return [Published(i, source, "m", w, s, None) for i, (w, s) in enumerate(zip(works, speeds, strict=True))]


def test_a_fit_finds_the_efficiencies_that_made_the_data():
    true = replace(PRIOR, product_efficiency=(0.9, 0.6, *PRIOR.product_efficiency[2:]))
    rows = [row for k in range(4) for row in made(true, f"source {k}")]
    found = fit(rows)
    assert found.product_efficiency[0] > 0.82  # the prior, 0.80 and 0.72, holds a share
    assert found.product_efficiency[1] < 0.67
    assert score(relative_errors(rows, found)).p90 < score(relative_errors(rows, PRIOR)).p90 / 3


def test_what_the_data_cannot_tell_keeps_its_prior():
    found = fit(made(PRIOR))
    assert found.product_efficiency[5] == pytest.approx(PRIOR.product_efficiency[5])
    assert found.score_traffic == pytest.approx(PRIOR.score_traffic)


def test_one_wild_row_moves_little():
    rows = made(PRIOR)
    rows[0] = replace(rows[0], tokens_per_second=rows[0].tokens_per_second / 10)
    assert score(relative_errors(rows[1:], fit(rows))).p90 < 0.03


def test_leaving_out_fits_without_the_group():
    true = replace(PRIOR, product_efficiency=tuple(0.8 * e for e in PRIOR.product_efficiency))
    rows = [*made(PRIOR, "a"), *made(true, "b")]
    errors = leave_out(rows, sources(rows))
    half = len(rows) // 2
    assert np.median(errors[:half]) > 0.03
    assert np.median(errors[half:]) < -0.03


def test_an_empty_score_is_no_error():
    assert score(relative_errors([])).n == 0


@pytest.fixture(scope="module")
def rows():
    return read_published(published_file())[0]


def test_the_constants_in_the_code_are_those_of_the_fit(rows):
    found = fit(rows)
    for field in fields(Constants):
        assert getattr(FITTED, field.name) == pytest.approx(getattr(found, field.name), rel=1e-3), field.name


def test_sources_that_the_fit_has_not_seen_are_predicted_within_the_targets(rows):
    found = score(leave_out(rows, sources(rows)))
    assert found.n > 350
    assert found.median <= 0.10
    assert found.p90 <= 0.25


def test_software_that_the_fit_has_not_seen_is_predicted_too(rows):
    found = score(leave_out(rows, families(rows)))
    assert found.median <= 0.10
    assert found.p90 <= 0.25
