from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_placebo.saes.kernels import Workspace, by_latent, largest, site_products


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def dense(latents: torch.Tensor, values: torch.Tensor, d_sae: int) -> torch.Tensor:
    return torch.zeros(len(values), d_sae, dtype=values.dtype).scatter_add(1, latents, values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([4096, 1024, 264, 100, 33]))
def test_largest_finds_the_values_that_topk_finds(k: int, seed: int, columns: int) -> None:
    random = torch.Generator().manual_seed(seed)
    # few distinct values, so that ties are everywhere
    values = torch.randint(0, 40, (5, columns), generator=random).float()
    found = largest(values, k)
    assert all(len(set(row)) == k for row in found.tolist())
    expected = values.topk(k, dim=1).values
    assert torch.equal(values.gather(1, found).sort(descending=True).values, expected)


def test_largest_repeats_its_choice_among_ties() -> None:
    values = torch.zeros(6, 2048)
    assert torch.equal(largest(values, 8), largest(values.clone(), 8))


def test_largest_keeps_nan_in_sight() -> None:
    values = draw(3, 4096).float()
    values[1, 17] = torch.nan
    assert 17 in largest(values, 4)[1].tolist()


def slots(n_tokens: int, k: int, d_sae: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [token k], each once per token, and the offsets of as many sites per token."""
    random = torch.Generator().manual_seed(4)
    latents = torch.stack([torch.randperm(d_sae, generator=random)[:k] for _ in range(n_tokens)])
    return latents, torch.arange(0, n_tokens * k + 1, k)


def test_largest_takes_the_lower_columns_among_ties() -> None:
    values = torch.zeros(3, 4096)
    values[0, [5, 9, 100, 4000]] = 1.0
    values[1, [7, 8]] = 2.0
    values[1, [1, 3000, 4095]] = 1.0
    values[2] = 3.0
    found = largest(values, 3).sort(dim=1).values
    assert found.tolist() == [[5, 9, 100], [1, 7, 8], [0, 1, 2]]


def test_site_products_match_dense_arithmetic() -> None:
    latents, offsets = slots(7, 3, 12)
    values, rows, target = draw(7, 3).relu(), draw(12, 5, seed=1), draw(7, 5, seed=2)
    error, products = site_products(offsets, latents.reshape(-1), values.reshape(-1), rows, target)
    expected = dense(latents, values, 12) @ rows - target
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(products, (expected @ rows.t()).gather(1, latents).reshape(-1))
    assert not values.requires_grad


def test_sums_by_latent_match_dense_arithmetic() -> None:
    latents, tokens = torch.tensor([0, 3, 3, 3, 5, 0]), torch.tensor([0, 0, 1, 2, 2, 3])
    weights, rows = draw(6), draw(4, 6, seed=1)
    sites = by_latent(latents, tokens, 7)
    kept = torch.zeros(4, 7, dtype=torch.float64)
    kept[tokens, latents] = weights
    torch.testing.assert_close(sites.sums(rows, weights), kept.t() @ rows)
    torch.testing.assert_close(sites.totals(weights), kept.sum(dim=0))
    assert sites.offsets.tolist() == [0, 2, 2, 2, 5, 5, 6, 6]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_every_time(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        latents, offsets = slots(500, 8, 64)
        latents, tokens = latents.reshape(-1), torch.arange(500).repeat_interleave(8)
        values, rows = draw(4000).float().relu(), draw(64, 16, seed=1).float()
        target = draw(500, 16, seed=2).float()

        def work() -> torch.Tensor:
            error, _ = site_products(offsets, latents, values, rows, target)
            return by_latent(latents, tokens, 64).sums(error, values)

        first = work()
        assert all(torch.equal(work(), first) for _ in range(5))
    finally:
        torch.set_num_threads(before)


def test_workspace_reuses_memory_and_grows() -> None:
    workspace, like = Workspace(), torch.zeros(1)
    first = workspace.buffer("z", (8, 3), like)
    smaller = workspace.buffer("z", (5, 3), like)
    assert smaller.shape == (5, 3)
    assert smaller.data_ptr() == first.data_ptr()
    assert workspace.buffer("z", (9, 3), like).shape == (9, 3)
    assert workspace.buffer("z", (5, 4), like).shape == (5, 4)
