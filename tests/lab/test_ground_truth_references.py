"""Reference dictionaries: each finds what it is made for, and is coded by inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import recovery
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.references import ksvd, reference_dictionary


def found(rows: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean max cosine, whatever the sign."""
    return recovery(torch.cat([rows, -rows]), truth).mmcs


def sparse(n: int, d_in: int, k: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(0, "sparse", n, d_in)
    truth = unit_rows(n, d_in, random)
    chosen = torch.rand(tokens, n, generator=random).topk(k, dim=1).indices
    values = 0.5 + torch.rand(tokens, k, generator=random)
    return (truth[chosen] * values[:, :, None]).sum(dim=1), truth


def test_ksvd_recovers_an_overcomplete_dictionary_and_pca_does_not() -> None:
    x, truth = sparse(24, 12, 2, 1500)
    learned = reference_dictionary("ksvd", x, 24, 0, k=2)
    assert torch.allclose(learned.directions.norm(dim=1), torch.ones(24), atol=1e-5)
    assert found(learned.directions, truth) > 0.95
    codes = learned.codes(x, 2)
    left = (x - learned.decode(codes)).square().sum() / x.square().sum()
    assert float(left) < 0.05
    assert codes.sparsity <= 2
    principal = reference_dictionary("pca", x, 24, 0)
    assert len(principal.directions) == 12
    assert found(principal.directions, truth) < 0.8


def test_pca_finds_the_directions_of_the_largest_variance_in_order() -> None:
    random = generator(0, "gaussian")
    x = torch.randn(2000, 5, generator=random) * torch.tensor([1.0, 5.0, 0.2, 3.0, 0.5]) + 7
    learned = reference_dictionary("pca", x, 2, 0)
    assert float(learned.directions[0, 1].abs()) > 0.99
    assert float(learned.directions[1, 3].abs()) > 0.99
    assert torch.allclose(learned.center, torch.full((5,), 7.0), atol=0.5)


def test_ica_finds_independent_features_of_a_complete_dictionary() -> None:
    random = generator(0, "sources")
    truth = unit_rows(6, 6, random)
    active = torch.rand(3000, 6, generator=random) < 0.08
    x = (active * (0.5 + torch.rand(3000, 6, generator=random))) @ truth
    assert found(reference_dictionary("ica", x, 6, 0).directions, truth) > 0.97


def test_kmeans_finds_clusters_and_codes_may_be_non_negative() -> None:
    random = generator(0, "clusters")
    truth = torch.eye(8)[:5]
    which = torch.randint(5, (2000,), generator=random)
    x = 3 * truth[which] + 0.1 * torch.randn(2000, 8, generator=random)
    learned = reference_dictionary("kmeans", x, 5, 0)
    centered = torch.nn.functional.normalize(truth - truth.mean(dim=0), dim=1)
    assert recovery(learned.directions, centered).share(0.95) >= 0.6
    codes = learned.codes(x, 2, nonnegative=True)
    assert float(codes.values.min()) >= 0


def test_ksvd_is_a_function_of_its_seed_and_replaces_copies() -> None:
    x, _ = sparse(16, 8, 2, 400)
    numbers = x.numpy()
    one, same, other = (ksvd(numbers, 16, 2, seed, rounds=4) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    cosines = np.abs(one @ one.T) - np.eye(16)
    assert cosines.max() < 0.9999


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(NotEstimable, match="not zero"):
        ksvd(np.zeros((10, 4), dtype=np.float32), 2, 1, 0)
    with pytest.raises(SpecError, match="k of 1 or more"):
        ksvd(np.ones((10, 4), dtype=np.float32), 2, 0, 0)
    with pytest.raises(SpecError, match="atoms"):
        reference_dictionary("pca", torch.ones(5, 3), 0, 0)
