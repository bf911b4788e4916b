"""The bootstrap: what is drawn, that it is what was drawn before, and how often intervals hold."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts, resampled_units
from sae_placebo.stats.effects import document_weights


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_each_resample_draws_as_many_units_as_there_are() -> None:
    counts, units = resampled_counts(generator(), 30, 400), resampled_units(generator(), 30, 400)
    assert counts.shape == units.shape == (400, 30)
    assert counts.dtype == np.float64
    assert (counts.sum(1) == 30).all()
    assert (units.min(), units.max()) == (0, 29)


def test_both_ways_to_draw_have_one_law() -> None:
    n, resamples = 12, 20_000
    units = resampled_units(generator(1), n, resamples)
    from_units = (units[:, :, None] == np.arange(n)).sum(1)
    for counts in (resampled_counts(generator(2), n, resamples), from_units):
        assert counts.mean(0) == pytest.approx(np.ones(n), abs=0.04)
        # a count is binomial with n draws of chance 1 / n
        assert counts.var(0) == pytest.approx(np.full(n, 1 - 1 / n), abs=0.06)
        assert np.cov(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(-1 / n, abs=0.04)


def test_draws_take_from_the_generator_what_the_written_out_calls_took() -> None:
    ours, plain = generator(3), generator(3)
    np.testing.assert_array_equal(
        resampled_counts(ours, 7, 5), plain.multinomial(7, np.full(7, 1 / 7), size=5)
    )
    np.testing.assert_array_equal(resampled_units(ours, 7, 5), plain.integers(0, 7, size=(5, 7)))
    assert ours.random() == plain.random()


def test_weights_of_documents_are_such_draws_behind_a_column_of_ones() -> None:
    weights = document_weights(9, 40, 5)
    assert weights.shape == (9, 41)
    assert (weights[:, 0] == 1).all()
    assert (weights.sum(0) == 9).all()
    # recorded: the intervals of trials already made come from these draws
    assert weights[:, 1].tolist() == [0, 2, 1, 2, 2, 0, 1, 1, 0]


def test_an_interval_is_of_the_outer_twentieth() -> None:
    assert percentile_interval(np.arange(1001.0)) == (25, 975)
    assert percentile_interval(np.array([0.0, 1.0])) == pytest.approx((0.025, 0.975))
    assert percentile_interval(np.array([0.0, 1.0]), method="nearest") == (0, 1)
    assert percentile_interval(np.array([3.0])) == (3, 3)


def test_undefined_replicates_spread_or_are_left_out() -> None:
    some = np.concatenate([np.arange(1001.0), [np.nan, np.inf]])
    assert np.isnan(percentile_interval(some)).all()
    assert percentile_interval(some, leave_out_undefined=True) == (25, 975)
    assert np.isnan(percentile_interval(np.array([np.nan]), leave_out_undefined=True)).all()
    assert np.isnan(percentile_interval(np.zeros(0))).all()


def test_infinite_replicates_have_bounds_by_the_nearest() -> None:
    some = np.concatenate([np.arange(90.0), np.full(10, np.inf)])
    assert percentile_interval(some, method="nearest") == (2, np.inf)


def test_intervals_of_a_mean_hold_it_about_19_times_of_20() -> None:
    held = []
    for seed in range(300):
        random = generator(seed)
        values = random.exponential(size=80)
        low, high = percentile_interval(resampled_counts(random, 80, 300) @ values / 80)
        held.append(low <= 1 <= high)
    assert 0.88 <= np.mean(held) <= 0.98
