from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.latents.base import Folds


def documents(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.repeat(np.arange(n), random.integers(20, 400, n)).astype(np.int32)


@pytest.mark.parametrize("n", [60, 100, 333])
def test_every_group_scores_and_sizes_are_close(n: int) -> None:
    owners = documents(n)
    folds = Folds.of(owners, n, 0)
    tokens = np.bincount(owners)
    per_group = np.bincount(folds.groups, weights=tokens)
    assert per_group.max() < 1.5 * per_group.min()
    shares = [tokens[folds.serving(purpose)].sum() / tokens.sum() for purpose in range(3)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.12)
    assert len(np.unique(folds.groups[folds.serving(2)])) >= min(20, n // 5)


def test_replicates_vary_as_the_bootstrap_does() -> None:
    n = 200
    owners = documents(n)
    folds, sizes = Folds.of(owners, n, 0), np.bincount(owners).astype(float)
    random = np.random.default_rng(1)
    draws = random.multinomial(n, [1 / n] * n, size=400).T
    weights = np.concatenate([np.ones((n, 1)), draws], axis=1)
    ratios, together = [], []
    for _ in range(60):
        value = random.normal(size=n)

        def mean(w: np.ndarray, value: np.ndarray = value) -> np.ndarray:
            return (w * (sizes * value)[:, None]).sum(0) / (w * sizes[:, None]).sum(0)

        found, bootstrap = folds.replicates(mean(folds.weights), weights), mean(weights)
        assert found[0] == pytest.approx(bootstrap[0])
        ratios.append(found[1:].std() / bootstrap[1:].std())
        together.append(np.corrcoef(found[1:], bootstrap[1:])[0, 1])
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert np.mean(together) > 0.2  # groups of ten documents know a part of what each of them does


def test_a_fold_that_is_undefined_counts_as_no_change() -> None:
    folds = Folds.of(documents(40), 40, 0)
    values = np.full(1 + folds.n_groups, np.nan)
    values[0] = 0.5
    weights = np.ones((40, 3)) * np.array([1, 2, 0.5])
    assert folds.replicates(values, weights) == pytest.approx([0.5, 0.5, 0.5])
