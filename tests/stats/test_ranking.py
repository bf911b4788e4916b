"""One AUROC: that of scikit-learn, that of all pairs, and NaN where there is nothing to rank."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.stats.ranking import auroc


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, which units are positive (both classes present), and weights not all whole."""
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 60))
    scores = random.integers(-3, int(random.integers(-2, 8)), n) / 2
    if seed % 3 == 0:
        scores = random.standard_normal(n).astype(np.float32)
    positive = random.random(n) < random.random()
    positive[0], positive[1] = True, False
    return scores, positive, random.gamma(1.0, size=n)


def of_all_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    ups, downs = scores[positive][:, None], scores[~positive]
    each = weights[positive][:, None] * weights[~positive]
    return float((each * ((ups > downs) + 0.5 * (ups == downs))).sum() / each.sum())


def test_it_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(200):
        scores, positive, weights = drawn(seed)
        plain = metrics.roc_auc_score(positive, scores)
        assert auroc(scores, positive) == pytest.approx(plain, abs=1e-12)
        weighted = metrics.roc_auc_score(positive, scores, sample_weight=weights)
        assert auroc(scores, positive, weights) == pytest.approx(weighted, abs=1e-12)


def test_it_is_that_of_all_pairs() -> None:
    for seed in range(200):
        scores, positive, weights = drawn(seed)
        ones = np.ones(len(scores))
        assert auroc(scores, positive) == pytest.approx(of_all_pairs(scores, positive, ones))
        weighted = of_all_pairs(scores, positive, weights)
        assert auroc(scores, positive, weights) == pytest.approx(weighted)


def test_replicates_are_each_as_if_alone_and_weights_of_one_change_no_bit() -> None:
    for seed in range(50):
        scores, positive, _ = drawn(seed)
        counts = np.random.default_rng(seed).integers(0, 4, (len(scores), 6))
        counts[:, 0] = 1
        found = auroc(scores, positive, counts)
        assert found.shape == (6,)
        assert found[0] == auroc(scores, positive)
        for replicate in range(6):
            # a unit that counts twice is there twice
            often = np.repeat(np.arange(len(scores)), counts[:, replicate])
            np.testing.assert_array_equal(found[replicate], auroc(scores[often], positive[often]))


def test_by_hand() -> None:
    scores = np.array([1.0, 2, 3, 4, 5])
    positive = np.array([False, False, True, False, True])
    assert auroc(scores, positive) == 5 / 6
    assert auroc(-scores, positive) == 1 / 6
    assert auroc(np.zeros(5), positive) == 0.5
    # a document drawn twice counts twice, one not drawn not at all
    assert auroc(scores, positive, np.array([[1.0], [1], [2], [0], [1]])) == [1]
    assert auroc(np.array([-np.inf, 0, 0, np.inf, np.inf]), positive) == 4 / 6


def test_it_ranks_whole_numbers_and_leaves_its_input_alone() -> None:
    scores, positive = np.array([3, 1, 2, 2]), np.array([True, False, True, False])
    assert auroc(scores, positive) == 3.5 / 4
    auroc(scores, positive, np.ones(4))
    assert scores.tolist() == [3, 1, 2, 2]


@pytest.mark.parametrize("positive", [np.ones(4, bool), np.zeros(4, bool)])
def test_a_class_that_is_missing_gives_nan(positive: np.ndarray) -> None:
    scores = np.arange(4.0)
    assert np.isnan(auroc(scores, positive))
    assert np.isnan(auroc(scores, positive, np.ones(4)))
    assert np.isnan(auroc(scores, positive, np.ones((4, 3)))).all()


def test_a_class_without_weight_gives_nan_in_that_replicate_alone() -> None:
    positive = np.array([True, False])
    found = auroc(np.array([2.0, 1.0]), positive, np.array([[1.0, 0, 1], [1, 1, 0]]))
    np.testing.assert_array_equal(found, [1, np.nan, np.nan])


def test_nothing_to_rank_gives_nan() -> None:
    none = np.zeros(0)
    assert np.isnan(auroc(none, none.astype(bool)))
    assert np.isnan(auroc(none, none.astype(bool), np.ones((0, 2)))).all()


@pytest.mark.parametrize("undefined", [0, 1])
def test_a_score_that_is_nan_gives_nan(undefined: int) -> None:
    scores, positive = np.array([1.0, 2.0, 3.0, 0.0]), np.array([True, False, True, False])
    scores[undefined] = np.nan
    assert np.isnan(auroc(scores, positive))
    assert np.isnan(auroc(scores, positive, np.ones((4, 2)))).all()
