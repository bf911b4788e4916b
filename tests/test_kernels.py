from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_placebo.saes.kernels import Workspace, by_latent, decode, largest, site_products


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


def test_site_products_match_dense_arithmetic() -> None:
    latents = torch.stack([torch.randperm(12)[:3] for _ in range(7)])
    values, rows, target = draw(7, 3).relu(), draw(12, 5, seed=1), draw(7, 5, seed=2)
    error, products = site_products(latents, values, rows, target)
    expected = dense(latents, values, 12) @ rows - target
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(products, (expected @ rows.t()).gather(1, latents))
    assert not values.requires_grad


def test_sums_by_latent_match_dense_arithmetic_and_drop_empty_slots() -> None:
    latents = torch.tensor([[0, 3], [3, 1], [3, 5], [5, 0]])
    active = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    weights, rows = draw(4, 2), draw(4, 6, seed=1)
    sites = by_latent(latents, active, 7)
    # what stands in an empty slot must not count, whatever it is
    kept = dense(latents, weights * active, 7)
    torch.testing.assert_close(sites.sums(rows, weights), kept.t() @ rows)
    torch.testing.assert_close(sites.totals(weights), kept.sum(dim=0))
    assert sites.fired().tolist() == [True, False, False, True, False, True, False]
    assert sites.offsets.tolist() == [0, 2, 2, 2, 5, 5, 6, 6]


def test_sums_count_the_last_latent_only_once() -> None:
    latents, active = torch.tensor([[1, 0], [1, 0]]), torch.tensor([[True, False], [True, False]])
    sites = by_latent(latents, active, 2)
    sums = sites.sums(torch.ones(2, 3), torch.full((2, 2), 5.0))
    assert sums.tolist() == [[0.0] * 3, [10.0] * 3]
    assert sites.totals(torch.full((2, 2), 5.0)).tolist() == [0.0, 10.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_every_time(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        latents = largest(draw(500, 64).float(), 8)
        values, rows = draw(500, 8).float().relu(), draw(64, 16, seed=1).float()
        first = by_latent(latents, values > 0, 64).sums(decode(latents, values, rows), values)
        for _ in range(5):
            again = by_latent(latents, values > 0, 64)
            assert torch.equal(again.sums(decode(latents, values, rows), values), first)
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
