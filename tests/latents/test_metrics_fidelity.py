"""Explained variance and sparsity against worked and planted cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.latents.classes.classification import CLASS_NAMES, decide
from sae_placebo.latents.metrics import METRICS, Evidence, token_statistics

DOCUMENTS = np.array([0, 0, 1, 1], dtype=np.int32)


def evidence(x: np.ndarray, x_hat: np.ndarray, **changes: Any) -> Evidence:
    """Two documents of two tokens; three latents: [0 1], [0], [0 1], [] are active."""

    def summed(values: np.ndarray) -> np.ndarray:
        return np.stack([values[:2].sum(0), values[2:].sum(0)]).astype(np.float64)

    fields: dict[str, Any] = {
        "token_ids": np.array([0, 1, 0, 1], dtype=np.int32),
        "documents": DOCUMENTS,
        "n_documents": 2,
        "offsets": np.array([0, 2, 3, 5, 5]),
        "latents": np.array([0, 1, 0, 1, 0]),
        "values": np.ones(5, dtype=np.float32),
        "d_sae": 3,
        "vocabulary": ["a", "b"],
        "squared_error": summed(((x - x_hat) ** 2).sum(1)),
        "activation_sum": summed(x),
        "activation_energy": summed((x**2).sum(1)),
    }
    return Evidence(**(fields | changes))


X = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]])
MISSED = X + np.array([1.0, 0.0])
ONES = np.ones((2, 1))


def test_explained_variance_by_hand() -> None:
    # mean 3: variance 9 + 1 + 1 + 9 = 20; every token missed by 1: 4
    base = evidence(X, MISSED)
    metric = METRICS["explained_variance"]
    assert metric.values(base, ONES)[0] == pytest.approx(1 - 4 / 20)
    # the second document alone: mean 5, variance 2, missed by 2
    found = metric.values(base, np.array([[1.0, 0.0], [1.0, 2.0]]))
    assert found[1] == pytest.approx(1 - 2 / 2)


def test_explained_variance_is_zero_at_the_mean_and_one_at_the_truth() -> None:
    metric = METRICS["explained_variance"]
    assert metric.values(evidence(X, np.broadcast_to(X.mean(0), X.shape)), ONES)[0] == 0
    assert metric.values(evidence(X, X), ONES)[0] == 1


def test_explained_variance_survives_a_large_mean() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(4, 2)) + 1e4
    noise = draw.normal(size=(4, 2))
    expected = 1 - (noise**2).sum() / ((x - x.mean(0)) ** 2).sum()
    found = METRICS["explained_variance"].values(evidence(x, x + noise), ONES)[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_explained_variance_needs_variance() -> None:
    same = np.ones((4, 2))
    with pytest.raises(NotEstimable, match="do not vary"):
        METRICS["explained_variance"].values(evidence(same, same), ONES)


def test_above_gaussian_is_zero_at_its_null_and_one_at_the_top() -> None:
    metric = METRICS["explained_variance_above_gaussian"]
    at_null = evidence(X, MISSED, gaussian_null_ev=0.8)
    assert metric.values(at_null, ONES)[0] == pytest.approx(0)
    assert METRICS["explained_variance"].null_value(at_null) == 0.8
    assert metric.values(evidence(X, X, gaussian_null_ev=0.8), ONES)[0] == pytest.approx(1)
    # (0.8 - 0.5) / (1 - 0.5)
    half = evidence(X, MISSED, gaussian_null_ev=0.5)
    assert metric.values(half, ONES)[0] == pytest.approx(0.6)


def test_lookup_relative_is_zero_where_a_table_does_as_well() -> None:
    metric = METRICS["lookup_relative_explained_variance"]
    base = evidence(X, MISSED, lookup_error=np.array([2.0, 2.0]))
    assert metric.values(base, ONES)[0] == pytest.approx(0)
    worse = evidence(X, MISSED, lookup_error=np.array([1.0, 0.0]))
    assert metric.values(worse, ONES)[0] == pytest.approx(-3)
    with pytest.raises(NotEstimable, match="leaves nothing"):
        metric.values(evidence(X, X, lookup_error=np.zeros(2)), ONES)


def test_sparsity_by_hand() -> None:
    base = evidence(X, X)
    columns = np.array([[1.0, 2.0], [1.0, 0.0]])
    # codes: 2 + 1 in document 0, 2 + 0 in document 1
    np.testing.assert_allclose(METRICS["l0"].values(base, columns), [5 / 4, 3 / 2])
    classes = decide(token_statistics(base, columns).columns, base.thresholds)
    np.testing.assert_allclose((classes == CLASS_NAMES.index("dead")).mean(0), [1 / 3, 1 / 3])
    # latent 0 is active on 3 of 4 tokens, latent 1 on 2 of 4; of document 0 on 2 and 1 of 2
    np.testing.assert_allclose(METRICS["median_density"].values(base, columns), [0.625, 0.75])


def test_a_constant_l0_is_exact_in_every_resample() -> None:
    base = evidence(
        X,
        X,
        offsets=np.arange(5, dtype=np.int64),
        latents=np.array([0, 1, 2, 0]),
        values=np.ones(4, dtype=np.float32),
    )
    columns = np.array([[1.0, 2.0, 0.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    assert np.all(METRICS["l0"].values(base, columns) == 1.0)
