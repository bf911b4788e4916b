"""Half-widths of intervals: the quantiles in tables, and how often a mean's interval holds the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sae_placebo.stats.quantiles import mean_half_width, normal_quantile, student_quantile


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_they_are_those_of_scipy(level: float) -> None:
    assert normal_quantile(level) == pytest.approx(stats.norm.ppf((1 + level) / 2), rel=1e-14)
    for df in (1, 2, 7.5, 400):
        assert student_quantile(df, level) == stats.t.ppf((1 + level) / 2, df)


def test_95_percent_is_the_default() -> None:
    assert normal_quantile() == pytest.approx(1.959963984540054)
    assert student_quantile(1) == pytest.approx(12.7062047362)
    assert student_quantile(1e9) == pytest.approx(normal_quantile())


def test_student_takes_arrays_of_degrees() -> None:
    df = np.array([[1, 2], [3, 4]])
    found = student_quantile(df)
    assert found.shape == (2, 2)
    assert found[1, 0] == student_quantile(3)
    assert isinstance(student_quantile(3), float)


def test_the_interval_of_a_mean_by_hand_and_of_too_few() -> None:
    # standard deviation 1 about 2, three values
    assert mean_half_width(np.array([1.0, 2.0, 3.0])) == pytest.approx(1.959964 / math.sqrt(3))
    assert math.isnan(mean_half_width(np.array([1.0])))
    assert math.isnan(mean_half_width(np.zeros(0)))


def test_the_interval_of_a_mean_covers_it_19_times_of_20() -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 100))
    covers = [abs(row.mean()) <= mean_half_width(row) for row in rows]
    assert np.mean(covers) == pytest.approx(0.95, abs=0.015)
