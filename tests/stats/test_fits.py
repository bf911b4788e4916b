"""The one logistic regression and the one ridge: scikit-learn's on the same objective, and hard cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from sae_placebo.stats.fits import (
    Logistic,
    choose_ridge,
    fit_logistic,
    solve_ridge,
    squares_left,
)

# --- logistic regression -------------------------------------------------------------------------------


def labels(
    random: np.random.Generator, x: np.ndarray, strength: float = 1.0, rate: float = 0.2
) -> np.ndarray:
    """Return one label of a planted logistic regression on the first two features."""
    z = (x - x.mean(0)) / x.std(0)
    logits = strength * z[:, :2].sum(1) + math.log(rate / (1 - rate))
    return np.asarray(random.random(len(x)) < 1 / (1 + np.exp(-logits)))


def features(random: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return features of unequal scales and means, some of them mostly 0."""
    x = random.normal(size=(n, d)) * np.geomspace(0.01, 100, d) + np.arange(d)
    x[:, ::2] = np.maximum(x[:, ::2] - x[:, ::2].mean(0), 0)
    return x


def exact(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Return scikit-learn's log odds: the same loss with an intercept that is not penalized."""
    fitted = LogisticRegression(
        C=1 / (len(x) * ridge), solver="newton-cholesky", tol=1e-10, max_iter=500
    ).fit(x, y)
    return np.asarray(fitted.decision_function(x))


def standardized(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean(0)) / x.std(0))


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
@pytest.mark.parametrize("strength", [0.0, 1.0, 5.0])
def test_log_odds_are_those_of_scikit_learn(ridge: float, strength: float) -> None:
    random = np.random.default_rng(0)
    x = features(random, 1_500, 6)
    y = labels(random, x, strength)
    found = fit_logistic(x, y[:, None], ridge)
    assert found.weights.shape == (1, 6)
    assert found.logits(x)[:, 0] == pytest.approx(exact(standardized(x), y, ridge), abs=1e-4)


def test_given_units_are_those_that_the_penalty_is_on() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(800, 3)) * [1, 3, 0.2]
    y = labels(random, x)
    found = fit_logistic(x, y[:, None], 0.05, scaling="given").logits(x)[:, 0]
    assert found == pytest.approx(exact(x, y, 0.05), abs=1e-4)
    assert np.abs(found - exact(standardized(x), y, 0.05)).max() > 0.01


def test_an_intercept_may_be_penalized_like_a_weight() -> None:
    random = np.random.default_rng(2)
    x = features(random, 1_000, 3)
    y = labels(random, x, rate=0.03)
    found = fit_logistic(x, y[:, None], 0.02, intercept_ridge=0.02).logits(x)[:, 0]
    ones = np.column_stack([np.ones(len(x)), standardized(x)])
    fitted = LogisticRegression(
        C=1 / (len(x) * 0.02), fit_intercept=False, solver="newton-cholesky", tol=1e-10
    ).fit(ones, y)
    assert found == pytest.approx(fitted.decision_function(ones), abs=1e-4)
    free = fit_logistic(x, y[:, None], 0.02).logits(x)[:, 0]
    assert found.mean() > free.mean() + 0.1


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_separable_labels_get_finite_weights(rate: float) -> None:
    random = np.random.default_rng(3)
    x = features(random, 2_000, 4)
    y = x[:, 1] > np.quantile(x[:, 1], 1 - rate)
    for some in (slice(1, 2), slice(0, 4)):
        found = fit_logistic(x[:, some], y[:, None], 1e-3).logits(x[:, some])[:, 0]
        assert np.isfinite(found).all()
        assert found == pytest.approx(exact(standardized(x[:, some]), y, 1e-3), abs=1e-4)


def test_a_rare_label_that_one_rare_feature_tells_is_found() -> None:
    """Newton's method with whole steps from the base rate's log odds ends at a weight of 0 here."""
    random = np.random.default_rng(0)
    x = np.maximum(random.normal(size=(25_000, 1)) - 1.5, 0)
    scaled = x[:, 0] / x.std()
    y = random.random(len(x)) < 1 / (1 + np.exp(-(2 * scaled - 6.6)))
    found = fit_logistic(x, y[:, None], 1e-3)
    assert found.weights[0, 0] * x.std() == pytest.approx(1.9, abs=0.2)
    assert found.logits(x)[:, 0] == pytest.approx(exact(standardized(x), y, 1e-3), abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_feature_gets_no_weight(value: float) -> None:
    random = np.random.default_rng(4)
    x = features(random, 700, 3)
    y = labels(random, x)
    beside = np.column_stack([x, np.full(len(x), value)])
    found, without = fit_logistic(beside, y[:, None], 1e-2), fit_logistic(x, y[:, None], 1e-2)
    assert found.weights[0, 3] == 0
    assert found.weights[0, :3] == pytest.approx(without.weights[0])
    alone = fit_logistic(beside[:, 3:], y[:, None], 1e-2)
    assert alone.logits(beside[:, 3:]) == pytest.approx(math.log(y.mean() / (1 - y.mean())))


@pytest.mark.parametrize("intercept_ridge", [0.0, 1e-3])
def test_one_class_alone_is_answered_by_a_finite_intercept(intercept_ridge: float) -> None:
    x = features(np.random.default_rng(5), 300, 2)
    y = np.column_stack([np.zeros(300, dtype=bool), np.ones(300, dtype=bool)])
    logits = fit_logistic(x, y, 1e-3, intercept_ridge=intercept_ridge).logits(x)
    assert (logits[:, 0] < -4).all()
    assert (logits[:, 1] > 4).all()
    assert (np.abs(logits) < 60).all()


def test_many_tasks_are_fitted_as_each_alone() -> None:
    random = np.random.default_rng(6)
    own = np.stack([features(random, 400, 3) for _ in range(12)])
    y = np.stack([labels(random, x, task / 4) for task, x in enumerate(own)], axis=1)
    together = fit_logistic(own, y, 1e-2)
    assert together.weights.shape == (12, 3)
    for task in range(12):
        alone = fit_logistic(own[task], y[:, task : task + 1], 1e-2)
        assert together.weights[task] == pytest.approx(alone.weights[0], rel=1e-7)
        assert together.bias[task] == pytest.approx(alone.bias[0], rel=1e-7)
    shared = fit_logistic(own[0], y, 1e-2)
    copies = fit_logistic(np.broadcast_to(own[0], own.shape).copy(), y, 1e-2)
    assert shared.weights == pytest.approx(copies.weights, rel=1e-7, abs=1e-9)


def test_white_coordinates_are_penalized_as_newtons_method_penalizes_them() -> None:
    random = np.random.default_rng(7)
    x = (random.normal(size=(4_000, 6)) @ random.normal(size=(6, 6))).astype(np.float32) + 2
    y = np.stack([labels(random, x, 2.0, rate) for rate in (0.3, 0.05)], axis=1)
    found = fit_logistic(x, y, 1e-2, scaling="white")
    values, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64), bias=True))
    z = (x - x.mean(0)) @ (vectors / np.sqrt(values))
    for task in range(2):
        assert found.logits(x)[:, task] == pytest.approx(exact(z, y[:, task], 1e-2), abs=2e-3)
    newton = fit_logistic(z, y, 1e-2, scaling="given").logits(z)
    assert found.logits(x) == pytest.approx(newton, abs=2e-3)
    turned = fit_logistic((3 * x @ vectors).astype(np.float32), y, 1e-2, scaling="white")
    assert turned.logits((3 * x @ vectors).astype(np.float32)) == pytest.approx(
        found.logits(x), abs=2e-3
    )


def test_log_odds_are_linear_in_the_features() -> None:
    fitted = Logistic(np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([0.5, 0.0]))
    assert fitted.logits(np.array([[1.0, 1.0], [0.0, 2.0]])) == pytest.approx(
        np.array([[3.5, -1.0], [4.5, -2.0]])
    )


# --- ridge regression ----------------------------------------------------------------------------------

PENALTIES = (1e-4, 1e-2, 1.0, 100.0)


@pytest.fixture
def parts() -> tuple[Any, Any]:
    """Tokens to fit on and to choose on: a target that is told well, and one of noise alone."""
    random = np.random.default_rng(8)
    x = random.normal(size=(120, 30)) * np.geomspace(0.1, 3, 30)
    noise = random.normal(size=(120, 2))
    y = np.column_stack([x[:, -1] + 0.1 * noise[:, 0], 5 * noise[:, 1]])
    return (x[:60], y[:60]), (x[60:], y[60:])


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_weights_are_those_of_scikit_learn(parts: tuple[Any, Any], penalty: float) -> None:
    x, y = parts[0]
    wanted = Ridge(alpha=penalty * 60, fit_intercept=False).fit(x, y).coef_.T
    assert solve_ridge(x.T @ x, x.T @ y, penalty, unit=60) == pytest.approx(wanted, abs=1e-8)
    values, vectors = np.linalg.eigh(x.T @ x)
    turned = solve_ridge(values, vectors.T @ (x.T @ y), penalty, unit=60)
    assert vectors @ turned == pytest.approx(wanted, abs=1e-8)


def test_a_column_of_ones_that_is_free_is_an_intercept(parts: tuple[Any, Any]) -> None:
    x, y = parts[0]
    ones = np.column_stack([x, np.ones(60)])
    fitted = Ridge(alpha=60).fit(x, y + 7)
    found = solve_ridge(ones.T @ ones, ones.T @ (y + 7), 1.0, unit=60, free=(30,))
    assert found[:-1] == pytest.approx(fitted.coef_.T, abs=1e-8)
    assert found[-1] == pytest.approx(fitted.intercept_, abs=1e-8)


def test_the_penalty_chosen_leaves_the_least_on_held_out_tokens(parts: tuple[Any, Any]) -> None:
    (x, y), (held, truth) = parts
    # by hand: every penalty, by its squared error there
    coefficients = [Ridge(alpha=p * 60, fit_intercept=False).fit(x, y).coef_.T for p in PENALTIES]
    errors = np.array([((truth - held @ one) ** 2).sum(0) for one in coefficients])
    best = errors.argmin(0)
    assert best[0] != best[1]
    found = choose_ridge(
        x.T @ x, x.T @ y, PENALTIES, squares_left(held.T @ held, held.T @ truth), unit=60
    )
    assert found.penalties == pytest.approx(np.array(PENALTIES)[best])
    for target in range(2):
        assert found.weights[:, target] == pytest.approx(
            coefficients[best[target]][:, target], abs=1e-8
        )
    shared = choose_ridge(
        x.T @ x, x.T @ y, PENALTIES, lambda w: np.asarray(((truth - held @ w) ** 2).sum()), unit=60
    )
    assert shared.penalties == pytest.approx(PENALTIES[int(errors.sum(1).argmin())])


def test_an_infinite_penalty_reads_nothing_and_wins_where_all_others_do_harm(
    parts: tuple[Any, Any],
) -> None:
    (x, y), (held, truth) = parts
    statistics = x.T @ x, x.T @ y[:, :1], (*PENALTIES, math.inf)
    right, opposite = (
        choose_ridge(
            *statistics, squares_left(held.T @ held, sign * held.T @ truth[:, :1]), unit=60
        )
        for sign in (1, -1)
    )
    assert np.isfinite(right.penalties).all()
    assert (opposite.penalties == math.inf).all()
    assert (opposite.weights == 0).all()


def test_the_strongest_of_equal_penalties_is_chosen(parts: tuple[Any, Any]) -> None:
    x, y = parts[0]
    found = choose_ridge(x.T @ x, x.T @ y, PENALTIES, lambda w: np.zeros(2), unit=60)
    assert (found.penalties == 100.0).all()


def test_sufficient_statistics_leave_what_tokens_leave(parts: tuple[Any, Any]) -> None:
    x, y = parts[0]
    weights = np.random.default_rng(9).normal(size=(30, 2))
    direct = ((y - x @ weights) ** 2).sum(0) - (y**2).sum(0)
    assert squares_left(x.T @ x, x.T @ y)(weights) == pytest.approx(direct)
