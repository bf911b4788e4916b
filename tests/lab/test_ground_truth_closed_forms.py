"""Closed forms against exact minimization, Monte Carlo, and the draft's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.scores.closed_forms import (
    composition_boundary,
    epsilon_star,
    expected_cost,
    lasso_costs,
    optimum_angle,
    shrinkage,
    soft_threshold,
)


def numeric_crossover(lam: float, q: float) -> float:
    """The epsilon at which the exact expected costs of both dictionaries meet, found numerically."""

    def gap(epsilon: float) -> float:
        return expected_cost(90.0, lam, q, epsilon) - expected_cost(45.0, lam, q, epsilon)

    return float(brentq(gap, 0.0, 1.0e3 * q, xtol=1e-15, rtol=1e-14))


@pytest.mark.parametrize("lam", [0.01, 0.05, 0.1, 0.2, 0.6, 1.2])
@pytest.mark.parametrize("q", [0.05, 0.2, 0.5])
def test_the_crossover_is_where_exact_lasso_costs_meet(lam: float, q: float) -> None:
    assert abs(epsilon_star(lam, q) - numeric_crossover(lam, q)) < 1e-9


def test_the_crossover_has_the_published_values() -> None:
    assert epsilon_star(0.1, 0.2) == pytest.approx(0.0238, abs=5e-5)
    assert epsilon_star(0.2, 0.2) == pytest.approx(0.0486, abs=5e-5)
    assert epsilon_star(0.05, 0.1) == pytest.approx(0.00591, abs=5e-6)
    assert epsilon_star(1e-4, 0.3) / 3e-5 == pytest.approx(8 / 2 - 2 * math.sqrt(2), rel=1e-3)


def test_on_either_side_of_the_crossover_the_other_dictionary_is_cheaper() -> None:
    star = epsilon_star(0.1, 0.2)
    for share, faithful_wins in ((0.9, False), (1.1, True)):
        child, composite = (
            expected_cost(angle, 0.1, 0.2, share * star, p0=0.3) for angle in (90.0, 45.0)
        )
        assert (child < composite) == faithful_wins


@pytest.mark.parametrize(
    ("multiple", "degrees", "within"),
    [(0.0, 45, 1e-4), (0.88, 68, 1), (0.9, 68, 1), (2.0, 80, 1), (4.0, 85, 1)],
)
def test_the_best_row_turns_from_the_composite_to_the_child(
    multiple: float, degrees: float, within: float
) -> None:
    found = optimum_angle(0.1, 0.2, multiple * epsilon_star(0.1, 0.2))
    assert found == pytest.approx(degrees, abs=within)
    # no other angle is cheaper
    epsilon = multiple * epsilon_star(0.1, 0.2)
    best = expected_cost(found, 0.1, 0.2, epsilon)
    assert all(best <= expected_cost(a, 0.1, 0.2, epsilon) for a in np.arange(1.0, 180.0, 3.0))


def test_the_exact_lasso_agrees_with_projected_gradients() -> None:
    random = numpy_generator(0, "lasso")
    x = random.normal(size=(40, 5))
    atoms = random.normal(size=(4, 5))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((40, 4))
    for _ in range(4_000):
        codes = np.maximum(codes - 0.1 * (2 * (codes @ atoms - x) @ atoms.T + 0.3), 0)
    slow = np.square(x - codes @ atoms).sum(axis=1) + 0.3 * codes.sum(axis=1)
    assert np.allclose(lasso_costs(x, atoms, 0.3), slow, atol=1e-10)
    # a copy of an atom changes nothing
    assert np.allclose(lasso_costs(x, np.vstack([atoms, atoms[:1]]), 0.3), slow, atol=1e-10)


def test_a_single_feature_keeps_its_amplitude_less_half_the_penalty() -> None:
    assert soft_threshold(1.0, 1.0) == 0.5
    assert soft_threshold(0.2, 0.5) == 0.0
    assert shrinkage(1.0, 1.0) == 0.5
    assert shrinkage(2.0, 0.4) == pytest.approx(0.9)
    # against minimization on a grid of codes
    for r, lam in ((1.0, 1.0), (0.7, 0.3), (0.1, 0.5)):
        codes = np.linspace(0, 2, 200_001)
        grid = np.square(r - codes) + lam * codes
        assert codes[grid.argmin()] == pytest.approx(soft_threshold(r, lam), abs=2e-5)
        cost = lasso_costs(np.array([[r, 0.0]]), np.array([[1.0, 0.0]]), lam)[0]
        assert cost == pytest.approx(grid.min(), abs=1e-9)
    with pytest.raises(NotEstimable, match="nothing that could shrink"):
        shrinkage(0.0, 0.1)


@pytest.mark.parametrize("f", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_the_boundary_of_composition_is_that_of_simulated_tokens(f: float) -> None:
    random = numpy_generator(1, "boundary", f"{f}")
    a, own = random.random((2, 40_000))
    x = np.stack([a, (1 - f) * own + f * a], axis=1)
    pair, items = np.full((1, 2), math.sqrt(0.5)), np.eye(2)

    def gap(lam: float) -> float:
        return float((lasso_costs(x, pair, lam) - lasso_costs(x, items, lam)).mean())

    assert composition_boundary(f) == pytest.approx(brentq(gap, 0.0, 1.0), rel=0.05)


def test_the_boundary_has_the_stated_values() -> None:
    stated = {0.0: 0.41, 0.25: 0.19, 0.5: 0.077}  # 0.020 and 0.006 for 0.75 and 0.9 do not hold
    for f, value in stated.items():
        assert composition_boundary(f) == pytest.approx(value, rel=0.02)
    # where lambda is small the boundary is (1 - f)^2 / (12 (1 - sqrt 1/2))
    for f in (0.75, 0.9, 0.99):
        small = (1 - f) ** 2 / (12 - 12 * math.sqrt(0.5))
        assert composition_boundary(f) == pytest.approx(small, rel=0.02)
    assert composition_boundary(1.0) == 0.0
    assert composition_boundary(1 - 1e-9) == pytest.approx(0.0, abs=1e-9)


def test_what_lies_outside_the_formulas_is_refused() -> None:
    with pytest.raises(SpecError, match="sqrt 2"):
        epsilon_star(1.5, 0.2)
    with pytest.raises(SpecError, match="probability of parent and child"):
        epsilon_star(0.1, 0.0)
    with pytest.raises(SpecError, match="below zero"):
        optimum_angle(0.1, 0.2, -0.1)
    with pytest.raises(SpecError, match="between 0 and 1"):
        composition_boundary(1.5)
    with pytest.raises(SpecError, match="iterative"):
        lasso_costs(np.zeros((1, 2)), np.ones((11, 2)), 0.1)
