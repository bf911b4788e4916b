"""Moderated variances: the prior is found again, and a variance of one degree of freedom is steadied."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.moderation import moderated, variance_prior
from sae_placebo.stats.multiplicity import share_of_true_nulls


def _drawn(n, prior_df, variance, df, name):
    random = numpy_generator(0, name)
    true = variance * prior_df / random.chisquare(prior_df, n)
    return true, true * random.chisquare(df, n) / df


@pytest.mark.parametrize(("prior_df", "df"), [(4.0, 1), (10.0, 2), (6.0, 3)])
def test_the_prior_is_found_again(prior_df, df):
    _, seen = _drawn(400_000, prior_df, 2.5, df, "prior")
    found = variance_prior(seen, float(df))
    assert found.variance == pytest.approx(2.5, rel=0.1)
    assert found.df == pytest.approx(prior_df, rel=0.25)


def test_variances_that_differ_by_chance_alone_become_one():
    random = numpy_generator(0, "one variance")
    seen = 3.0 * random.chisquare(2, 200_000) / 2
    found = variance_prior(seen, 2.0)
    assert found.df > 50
    assert found.variance == pytest.approx(3.0, rel=0.1)


def test_a_moderated_variance_is_nearer_to_the_truth():
    true, seen = _drawn(2_000, 8.0, 1.0, 1, "nearer")
    steadied, df = moderated(seen, 1.0, variance_prior(seen, 1.0))

    def error(values):
        return float(np.mean((values - true) ** 2))

    assert error(steadied) < 0.5 * error(seen)
    assert np.all(df > 4)


def test_reference_value():
    """By hand: d0 = 4, s0 = 2, s2 = 5 on 2 degrees: (4 * 2 + 2 * 5) / 6 = 3 on 6."""
    from sae_placebo.stats.moderation import VariancePrior

    variance, df = moderated(np.array([5.0]), 2.0, VariancePrior(2.0, 4.0))
    assert variance[0] == pytest.approx(3.0)
    assert df[0] == 6.0


def test_too_few_change_nothing():
    found = variance_prior(np.arange(1.0, 9.0), 1.0)
    assert found.df == 0
    variance, df = moderated(np.array([1.0, 2.0]), 1.0, found)
    assert variance.tolist() == [1.0, 2.0]
    assert df.tolist() == [1.0, 1.0]
    assert math.isnan(variance_prior(np.array([np.nan]), 1.0).variance)


def test_no_degree_of_freedom_gives_the_prior():
    from sae_placebo.stats.moderation import VariancePrior

    variance, df = moderated(np.array([np.nan]), 0.0, VariancePrior(2.0, 4.0))
    assert variance[0] == 2.0
    assert df[0] == 4.0


def test_share_of_true_nulls():
    random = numpy_generator(0, "p values")
    p = np.concatenate([random.uniform(size=6_000), random.beta(0.05, 20, size=4_000)])
    assert share_of_true_nulls(p) == pytest.approx(0.6, abs=0.03)
    assert share_of_true_nulls(random.uniform(size=20)) <= 1
    assert share_of_true_nulls(np.array([0.01, 0.02, 0.03])) == pytest.approx(2 / 3)
    with pytest.raises(NotEstimable, match="no p value"):
        share_of_true_nulls(np.array([np.nan]))
