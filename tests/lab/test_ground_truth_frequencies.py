"""Recovery by rate."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorTruth, expected_share
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.frequencies import recovery_by_rate


def test_frequent_features_are_found_and_rare_ones_not() -> None:
    random = generator(0, "test")
    rates = torch.logspace(-5, -1, 200)
    truth = GeneratorTruth(unit_rows(200, 64, random), rates)
    found = rates > 1e-3
    learned = torch.where(found[:, None], truth.dictionary, unit_rows(200, 64, random))
    bins = recovery_by_rate(learned * 7, truth, n_bins=4)
    assert [one.n for one in bins] == [50, 50, 50, 50]
    assert [one.share for one in bins] == [0.0, 0.0, 1.0, 1.0]
    assert sum(one.recovered for one in bins) == int(found.sum())
    assert all(one.low <= one.high for one in bins)
    assert bins[0].high < bins[1].low
    # none of 50 is not none at all
    assert 0 == bins[0].share_low < bins[0].share_high < 0.08
    assert bins[3].share_low > 0.92
    assert bins[0].cosine == pytest.approx(bins[0].null_cosine, abs=0.05)
    assert bins[3].cosine == pytest.approx(1.0)
    assert all(0 < one.null_cosine_sd < 0.02 for one in bins)
    order = torch.randperm(200, generator=random)
    twice = recovery_by_rate(torch.cat([learned, learned])[order.repeat(2)], truth, n_bins=4)
    assert [one.recovered for one in twice] == [one.recovered for one in bins]


def test_the_null_share_is_that_of_random_directions() -> None:
    truth = GeneratorTruth(unit_rows(300, 4, generator(0, "test")), torch.full((300,), 0.01))
    (only,) = recovery_by_rate(torch.eye(4), truth, threshold=0.8, draws=60)
    assert (only.n, only.low) == (300, only.high)
    assert only.null_share == pytest.approx(expected_share(4, 4, 0.8), abs=0.03)


def test_what_cannot_be_binned_is_refused() -> None:
    truth = GeneratorTruth(torch.eye(3), torch.zeros(3))
    with pytest.raises(NotEstimable, match="no feature ever occurs"):
        recovery_by_rate(torch.eye(3), truth)
    with pytest.raises(SpecError, match="2 or more"):
        recovery_by_rate(torch.eye(3), truth, draws=1)
    some = GeneratorTruth(torch.eye(3), torch.tensor([0.0, 0.1, 0.1]))
    assert sum(one.n for one in recovery_by_rate(torch.eye(3), some)) == 2
