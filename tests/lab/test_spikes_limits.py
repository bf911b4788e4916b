"""Detection limits: a known curve is found again, and what cannot be known is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.lab.spikes.grid import Grid, packed
from sae_placebo.lab.spikes.limits import Limit, firth, limit_of, placed, verified
from sae_placebo.lab.spikes.planting import Spike
from sae_placebo.saes import SAE, TopKSpec

TRUE = np.array([20.0, 4.0, 12.0])
"""Half are found at frequency 0.01 from magnitude 10^-1 on: 20 - 8 - 12 = 0."""


def chance(frequency: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    z = TRUE[0] + TRUE[1] * np.log10(frequency) + TRUE[2] * np.log10(magnitude)
    return np.asarray(1 / (1 + np.exp(-z)))


def planted(seed: int, repeats: int = 12) -> Limit:
    random = np.random.default_rng(seed)
    f, m, k = (
        one.ravel()
        for one in np.meshgrid([1e-3, 3e-3, 1e-2, 3e-2], np.geomspace(0.03, 1, 8), range(repeats))
    )
    return limit_of(f, m, random.random(len(f)) < chance(f, m), k.astype(np.int64), seed)


def test_a_known_limit_lies_within_its_interval() -> None:
    half = 10.0 ** -np.array([1.0])
    covered = 0
    for seed in range(12):
        limit = planted(seed)
        one = limit.magnitude(0.5, 0.01)
        covered += one.low <= half[0] <= one.high
        assert one.value == pytest.approx(0.1, rel=0.3)
        assert one.high / one.low < 2
        assert limit.unit == "trainings"
        assert limit.certain[0] > 0.85 * limit.certain[1] > 0
    assert covered >= 9
    sure = limit.magnitude(0.95, 0.01)
    assert sure.value > one.value
    assert limit.probability(np.array([0.01]), np.array([sure.value]))[0] == pytest.approx(0.95)


def test_rarer_needs_larger_and_outside_is_said_to_be_outside() -> None:
    limit = planted(0)
    assert limit.magnitude(0.5, 1e-3).value > limit.magnitude(0.5, 3e-2).value
    assert limit.magnitude(0.5, 1e-2).extrapolated == 0
    assert limit.magnitude(0.5, 1e-4).extrapolated >= 1
    outside = limit.extrapolated(np.array([1e-2, 1e-4, 1e-2]), np.array([0.1, 0.1, 10.0]))
    np.testing.assert_allclose(outside, [0, 1, 1], atol=1e-12)


def test_a_clean_split_has_a_finite_fit_and_few_trainings_draw_plantings() -> None:
    m = np.geomspace(0.1, 1, 40)
    limit = limit_of(np.full(40, 0.01), m, m > 0.3, np.zeros(40, dtype=np.int64), 0)
    one = limit.magnitude(0.5, 0.01)
    assert one.value == pytest.approx(0.3, rel=0.1)
    assert limit.unit == "plantings"
    assert np.isfinite(limit.coefficients).all()


def test_the_penalized_fit_is_the_published_one() -> None:
    # one binary column, no cell empty: Jeffreys' prior adds a half to every cell of the 2 x 2 table
    x = np.repeat([0.0, 1.0], [10, 14])
    y = np.concatenate([np.arange(10) < 2, np.arange(14) < 9])
    design = np.stack([np.ones(24), x], axis=1)
    expected = [math.log(2.5 / 8.5), math.log(9.5 / 5.5) - math.log(2.5 / 8.5)]
    ones = np.ones((2, 24))
    np.testing.assert_allclose(firth(design, y * ones, ones), [expected] * 2, atol=1e-5)
    cells = np.array([[1.0, 0.0], [1.0, 1.0]])
    counted = firth(cells, np.array([[2.0, 9.0]]), np.array([[10.0, 14.0]]))
    np.testing.assert_allclose(counted, [expected], atol=1e-5)


@pytest.mark.parametrize("found", [True, False])
def test_no_limit_where_all_or_none_were_found(found: bool) -> None:
    every = np.full(20, found)
    with pytest.raises(NotEstimable, match="of 20 spikes were detected"):
        limit_of(np.full(20, 0.01), np.full(20, 0.3), every, np.arange(20), 0)


def test_no_limit_where_larger_ones_are_found_less_often() -> None:
    m = np.geomspace(0.1, 1, 40)
    limit = limit_of(np.full(40, 0.01), m, m < 0.3, np.zeros(40, dtype=np.int64), 0)
    with pytest.raises(NotEstimable, match="larger spikes"):
        limit.magnitude(0.5, 0.01)


def test_verification_counts_what_the_world_gives() -> None:
    limit = planted(0)
    random = np.random.default_rng(3)
    calls: list[tuple[int, float]] = []

    def recover(spikes: list[Spike], seed: int) -> np.ndarray:
        calls.append((seed, sum(s.frequency * s.magnitude**2 for s in spikes)))
        f, m = (np.array([getattr(s, k) for s in spikes]) for k in ("frequency", "magnitude"))
        return random.random(len(spikes)) < chance(f, m)

    grid = Grid(amplitude="constant", per_training=40)
    told = verified(recover, limit, 0.01, 500, n=100, grid=grid)
    assert told.holds
    assert told.found_above >= 95
    assert told.interval_above()[1] > 0.95
    assert told.interval_below()[0] < 0.05
    assert told.above > limit.magnitude(0.95, 0.01).high > told.below
    assert [seed for seed, _ in calls] == list(range(500, 500 + len(calls)))
    assert max(energy for _, energy in calls) <= grid.energy_share
    never = verified(lambda s, _: np.zeros(len(s), dtype=bool), limit, 0.01, 0, n=20, grid=grid)
    assert (never.found_above, never.holds) == (0, False)


def test_a_grid_shares_trainings_and_keeps_to_the_energy() -> None:
    grid = Grid()
    groups = grid.trainings(0)
    names = [spike.name for group in groups for spike in group]
    assert len(names) == len(set(names)) == 6 * 5 * 6
    for group in groups:
        energy = sum(s.frequency * s.squared_amplitude() * s.magnitude**2 for s in group)
        assert energy <= grid.energy_share
        assert len(group) <= grid.per_training
    assert groups == grid.trainings(0) != grid.trainings(1)
    with pytest.raises(SpecError, match="more than"):
        packed([grid.spike(0.5, 1.0, "a")], 10, 0.01)


def test_real_latents_are_placed_by_rate_and_size() -> None:
    decoder = torch.eye(4)
    params = {
        "W_enc": decoder.t() * 1.0,
        "b_enc": torch.zeros(4),
        "W_dec": decoder,
        "b_dec": torch.zeros(4),
    }
    x = torch.zeros(1000, 4)
    x[:10, 0] = 2.0
    x[10:40, 1] = 5.0
    limit = planted(0)
    told = placed(limit, SAE(TopKSpec(d_sae=4, k=1), params), x, 10.0)
    assert told.latents.tolist() == [0, 1]
    np.testing.assert_allclose(told.rates, [0.01, 0.03])
    np.testing.assert_allclose(told.magnitudes, [0.2, 0.5], rtol=1e-5)
    np.testing.assert_allclose(told.probability, limit.probability(told.rates, told.magnitudes))
    assert told.share_inside() == 1.0
    with pytest.raises(NotEstimable, match="no latent fires"):
        placed(limit, SAE(TopKSpec(d_sae=4, k=1), params), torch.zeros(3, 4), 10.0)
