"""Codes that are the best there are on a dictionary: against brute force, a reference solver, conditions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.inference import (
    best_of_k,
    duality_gap,
    nnls,
    nonnegative_lasso,
    nonnegative_pursuit,
    omp,
)


def planted(n: int, d_in: int, k: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens of k features each, and their dictionary."""
    random = generator(0, "planted", n, d_in)
    rows = unit_rows(n, d_in, random)
    chosen = torch.rand(tokens, n, generator=random).topk(k, dim=1).indices
    values = 0.5 + torch.rand(tokens, k, generator=random)
    return (rows[chosen] * values[:, :, None]).sum(dim=1), rows


@pytest.mark.parametrize("lam", [0.01, 0.2])
def test_lasso_agrees_with_coordinate_descent_of_sklearn(lam: float) -> None:
    x, rows = planted(24, 10, 3, 40)
    found = nonnegative_lasso(x, rows, lam).dense()
    # its objective is |x - a D|^2 / (2 d_in) + alpha sum a
    solver = Lasso(
        alpha=lam / (2 * 10), positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000
    )
    for token, code in zip(x.double().numpy(), found.double().numpy(), strict=True):
        theirs = solver.fit(rows.double().numpy().T, token).coef_
        assert np.allclose(code, theirs, atol=1e-4)


def test_the_duality_gap_certifies_the_lasso_and_refuses_others() -> None:
    x, rows = planted(64, 16, 4, 200)
    found = nonnegative_lasso(x, rows, 0.1).dense()
    energy = x.double().square().sum(dim=1)
    assert float((duality_gap(x, rows, found, 0.1) / energy).max()) < 1e-6
    assert float(duality_gap(x, rows, found, 0.1).min()) > -1e-9
    # the gap bounds how much worse another code is
    other = (found * 1.1).double()
    loss = [
        (x.double() - code.double() @ rows.double()).square().sum(dim=1) + 0.1 * code.sum(dim=1)
        for code in (found, other)
    ]
    worse = loss[1] - loss[0]
    assert bool((worse > 0).all())
    assert bool((duality_gap(x, rows, other, 0.1) >= worse - 1e-6).all())


def test_lasso_on_one_atom_and_on_orthonormal_atoms_is_the_soft_threshold() -> None:
    x = torch.tensor([[1.0, 0.3, 0.0], [0.04, -1.0, 2.0]])
    expected = (x - 0.1 / 2).clamp_min(0)
    assert torch.allclose(nonnegative_lasso(x, torch.eye(3), 0.1).dense(), expected)
    longer = nonnegative_lasso(x, 2 * torch.eye(3), 0.1).dense()
    assert torch.allclose(longer, ((2 * x - 0.05) / 4).clamp_min(0))


def test_copies_of_an_atom_and_tokens_of_nothing_are_solved() -> None:
    x, rows = planted(12, 6, 2, 30)
    x = torch.cat([x, torch.zeros(2, 6)])
    copies = torch.cat([rows, rows])
    once, twice = (nonnegative_lasso(x, found, 0.05).dense() for found in (rows, copies))
    assert float(once[-2:].sum() + twice[-2:].sum()) == 0
    assert torch.allclose(once @ rows, twice @ copies, atol=1e-3)
    assert torch.allclose(once.sum(dim=1), twice.sum(dim=1), atol=1e-3)


def test_nnls_agrees_with_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x, rows = planted(8, 10, 3, 40)
    x = x + 0.1 * torch.randn(x.shape, generator=generator(1, "noise"))
    found = nnls(x, rows).dense()
    for token, code in zip(x.double().numpy(), found.numpy(), strict=True):
        assert np.allclose(optimize.nnls(rows.double().numpy().T, token)[0], code, atol=1e-4)


def test_nnls_of_an_overcomplete_dictionary_leaves_nothing() -> None:
    x, rows = planted(40, 10, 3, 50)
    codes = nnls(x, rows)
    assert float((x - codes.dense() @ rows).norm(dim=1).max()) < 1e-3


def test_pursuit_finds_planted_codes_and_its_errors_fall() -> None:
    x, rows = planted(40, 40, 3, 60)
    path = nonnegative_pursuit(x, rows, 6)
    assert bool((path.errors.diff(dim=1) <= 1e-12).all())
    codes = path.at(torch.full((60,), 6))
    left = (x - codes.dense() @ rows).square().sum(dim=1).double()
    assert torch.allclose(left, path.errors[:, 6], atol=1e-5)
    assert float(codes.values.min()) > 0
    # a length for each token
    lengths = torch.arange(60) % 4
    shorter = path.at(lengths)
    assert bool((shorter.offsets.diff() <= lengths).all())
    left = (x - shorter.dense() @ rows).square().sum(dim=1).double()
    assert torch.allclose(left, path.errors[torch.arange(60), lengths], atol=1e-5)


def test_each_fit_of_pursuit_is_the_best_non_negative_one() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x, rows = planted(30, 6, 4, 40)
    path = nonnegative_pursuit(x, rows, 4)
    for token in range(40):
        chosen = rows[path.atoms[token]].double().numpy()
        _, length = optimize.nnls(chosen.T, x[token].double().numpy())
        assert float(path.errors[token, 4]) == pytest.approx(length**2, abs=1e-8)


def test_omp_of_either_sign_and_not() -> None:
    x = torch.tensor([[2.0, -3.0, 0.5]])
    either, positive = (omp(x, torch.eye(3), 2, nonnegative=sign) for sign in (False, True))
    assert np.allclose(either.matrix.toarray(), [[2.0, -3.0, 0.0]])
    assert np.allclose(positive.matrix.toarray(), [[2.0, 0.0, 0.5]])


def test_the_best_of_k_is_exact_where_few_supports_are() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x, rows = planted(8, 4, 2, 25)
    codes, exact = best_of_k(x, rows, 2)
    assert exact
    errors = (x - codes.dense() @ rows).square().sum(dim=1)
    for token, error in zip(x.double().numpy(), errors, strict=True):
        best = min(
            optimize.nnls(rows[list(pair)].double().numpy().T, token)[1] ** 2
            for pair in itertools.combinations(range(8), 2)
        )
        assert float(error) == pytest.approx(best, abs=1e-5)
    pursued, exact = best_of_k(*planted(200, 20, 2, 25), 2)
    assert not exact
    assert int(pursued.offsets.diff().max()) <= 2


def test_a_penalty_of_zero_is_refused() -> None:
    with pytest.raises(SpecError, match="nnls"):
        nonnegative_lasso(torch.ones(1, 2), torch.eye(2), 0.0)


@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_tokens_that_fista_leaves_are_solved_one_by_one(lam: float) -> None:
    # many times more atoms than dimensions, and a weak penalty: as many atoms in use as dimensions
    x, rows = planted(400, 30, 12, 24)
    codes = nonnegative_lasso(x, rows, lam) if lam else nnls(x, rows)
    left = x.double() - codes.dense().double() @ rows.double()
    if lam:
        gap = duality_gap(x, rows, codes.dense(), lam)
        assert float((gap / x.double().square().sum(dim=1)).max()) < 1e-5
        assert len(codes.latents) / 24 > 20
    else:
        assert float(left.norm(dim=1).max()) < 1e-3
