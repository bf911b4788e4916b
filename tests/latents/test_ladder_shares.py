"""Shares of latents by origin, given stable: standardised to how often the trained arm's latents fire."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sae_placebo.latents.ladder.ladder import Ladder, no_ladder
from sae_placebo.latents.metrics.base import Number
from sae_placebo.latents.metrics.ladder_shares import (
    DECLARED,
    LatentFacts,
    ladder_shares,
    rates_of,
)
from sae_placebo.latents.origin.rule import EXPLAINED, NOT_EXPLAINED, Verdicts
from sae_placebo.latents.profile import FoundPartners

N_FOLDS = 6
RATES = np.array([20.0, 60.0, 200.0])
# of stable latents in each bin of firing rates
NOT_EXPLAINED_BY_RATE = np.array([0.6, 0.4, 0.2, 0.1])
FIRING = np.array([10, 40, 100, 400])


def partners(has: np.ndarray | None, n: int) -> FoundPartners:
    shape = n, N_FOLDS
    nothing = np.full(n, np.nan)
    wide = None if has is None else np.repeat(has[:, None], N_FOLDS, axis=1)
    why = "one SAE seed" if has is None else None
    return FoundPartners(np.full(shape, 0.9), wide, None, nothing, nothing, why)


def shares(numbers_in_bins: list[int], stable: bool = True) -> dict[str, Number]:
    """Return the numbers of an SAE with so many stable latents in each bin, and as many that are not."""
    n_active, verdict, has = [], [], []
    for rate, n in enumerate(numbers_in_bins):
        found = round(NOT_EXPLAINED_BY_RATE[rate] * n)
        n_active += [FIRING[rate]] * 2 * n
        verdict += [NOT_EXPLAINED] * found + [EXPLAINED] * (2 * n - found)
        has += [True] * n + [False] * n
    m = len(n_active)
    of_fold = np.repeat(np.array(verdict, dtype=np.int8)[:, None], N_FOLDS, axis=1)
    facts = LatentFacts(
        judged=np.ones((m, N_FOLDS), dtype=bool),
        n_active=np.array(n_active, dtype=np.float64),
        in_placebo=partners(np.zeros(m, dtype=bool), m),
        in_sibling=partners(np.array(has) if stable else None, m),
        rates=RATES,
    )
    evidence = np.full(m, "", dtype=object)
    return ladder_shares(facts, climbed(m), 0, Verdicts(of_fold, evidence), 0.5)


def climbed(m: int) -> Ladder:
    found = no_ladder(m, N_FOLDS, "")
    r2 = (np.arange(8) / 10)[None, :, None, None] * np.ones((1, 1, m, N_FOLDS))
    return dataclasses.replace(found, by_portion=r2, reasons={})


@pytest.mark.parametrize("bins", [[100, 100, 100, 100], [400, 40, 20, 10], [10, 20, 40, 400]])
def test_how_often_latents_fire_makes_no_difference(bins: list[int]) -> None:
    found = shares(bins)
    value = found["stable_not_explained"].values
    assert value is not None
    assert value == pytest.approx(NOT_EXPLAINED_BY_RATE.mean())
    total = [found[f"stable_{name}"].values for name in ("explained", "not_explained")]
    assert np.sum(total, axis=0) == pytest.approx(1)
    # as they are, they differ, and among all latents half have no partner
    crude = np.average(NOT_EXPLAINED_BY_RATE, weights=bins)
    assert found["origin_not_explained"].values == pytest.approx(crude / 2)


def test_stable_latents_of_other_rates_are_not_compared() -> None:
    assert shares([50, 50, 50, 0])["stable_not_explained"].values is not None
    few = shares([50, 50, 0, 0])["stable_not_explained"]
    assert few.values is None
    assert "2 of 4 bins" in str(few.reason)


def test_without_another_seed_the_reason_is_told() -> None:
    found = shares([50, 50, 50, 50], stable=False)
    assert found["stable_explained"] == Number(None, None, "one SAE seed")
    assert found["origin_explained"].values is not None


def test_bins_hold_as_many_judged_latents_each() -> None:
    fires = np.arange(1_007, dtype=np.int64)
    ends = rates_of(fires, least=7)
    counts = np.bincount(np.searchsorted(ends, fires[7:], side="right"))
    assert counts.max() - counts.min() <= 1


def test_every_number_is_declared_and_rungs_are_cumulative() -> None:
    found = shares([20, 20, 20, 20])
    assert set(found) == set(DECLARED)
    values = [found[f"explained_up_to_{rung}"].values for rung in ("token", "bag", "window")]
    # R2 is .2 at the token, .4 at the bag, .5 at the window, .6 after it
    assert [float(value[0]) for value in values if value is not None] == [0, 0, 1]
    assert found["ladder_r2_token"].values == pytest.approx(0.2)
