"""Pursuit finds what was planted, and explains of noise what the reference table says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sae_placebo.baselines.pursuit import (
    AtomCodes,
    largest_products,
    pursue,
    pursue_nonnegative,
    refitted,
)
from sae_placebo.stats.random_dictionaries import random_dictionary_ev


def directions(m: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((m, d)).astype(np.float32)
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def explained(x: np.ndarray, codes: AtomCodes, rows: np.ndarray) -> float:
    return 1 - float(np.square(x - codes.decode(rows)).sum() / np.square(x).sum())


# d, m, k and the variance of isotropic noise that each code explains
REFERENCE = [(64, 512, 8, 0.44, 0.47, 0.70), (128, 1024, 16, 0.44, 0.46, 0.72)]


@pytest.mark.parametrize(("d", "m", "k", "linear", "least", "omp"), REFERENCE)
def test_noise_is_explained_as_far_as_the_reference_says(
    d: int, m: int, k: int, linear: float, least: float, omp: float
) -> None:
    x = np.random.default_rng(0).standard_normal((256, d)).astype(np.float32)
    rows = directions(m, d, 1)
    assert explained(x, pursue(x, rows, k).at(k), rows) == pytest.approx(omp, abs=0.02)
    for coder, expected in (("linear", linear), ("least_squares", least), ("omp", omp)):
        found = random_dictionary_ev(d, m, k, coder, 0, n_samples=256)
        # the reference is of 32 samples
        assert found == pytest.approx(expected, abs=0.025), coder
    # the same by this module: the k largest positive products with one scale, and refitted
    products = x @ rows.T
    top = largest_products(np.maximum(products, 0), k)
    decoded = top.decode(rows)
    scale = float((x * decoded).sum() / np.square(decoded).sum())
    one_scale = AtomCodes(top.atoms, top.values * np.float32(scale), m)
    assert explained(x, one_scale, rows) == pytest.approx(linear, abs=0.02)
    assert explained(x, refitted(top, x, rows), rows) == pytest.approx(least, abs=0.025)


def test_each_length_on_the_way_is_the_least_squares_code_of_its_atoms() -> None:
    x = np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32)
    rows = directions(80, 24, 3)
    path = pursue(x, rows, 6)
    for k in (1, 3, 6):
        codes = path.at(k)
        for i in range(len(x)):
            chosen = rows[codes.atoms[i]].astype(np.float64)
            best, *_ = np.linalg.lstsq(chosen.T, x[i].astype(np.float64), rcond=None)
            np.testing.assert_allclose(codes.values[i], best, atol=2e-4)


def test_orthonormal_directions_take_the_largest_products() -> None:
    x = np.random.default_rng(4).standard_normal((50, 16)).astype(np.float32)
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((16, 16)))[0].astype(np.float32)
    fast = pursue(x, basis, 5).at(5)
    products = np.abs(x @ basis.T)
    for i in range(len(x)):
        assert set(fast.atoms[i]) == set(np.argsort(-products[i])[:5])
    assert explained(x, pursue(x, basis, 16).at(16), basis) == pytest.approx(1, abs=1e-5)


def test_planted_atoms_are_found() -> None:
    random = np.random.default_rng(6)
    rows = directions(60, 40, 7)
    atoms = np.argsort(random.random((200, 60)), axis=1)[:, :3]
    sizes = 1 + random.random((200, 3)).astype(np.float32)
    x = np.einsum("tk,tkd->td", sizes, rows[atoms]).astype(np.float32)
    for codes in (pursue(x, rows, 3).at(3), pursue_nonnegative(x, rows, 3)):
        hit = [set(a) == set(b) for a, b in zip(codes.atoms, atoms, strict=True)]
        assert np.mean(hit) > 0.9
    assert np.all(pursue_nonnegative(x, rows, 3).values >= 0)


def test_nonnegative_coefficients_are_the_best_on_their_atoms() -> None:
    from scipy.optimize import nnls

    x = np.random.default_rng(8).standard_normal((25, 12)).astype(np.float32)
    rows = directions(30, 12, 9)
    codes = pursue_nonnegative(x, rows, 4)
    for i in range(len(x)):
        used = np.unique(codes.atoms[i])
        _, norm = nnls(rows[used].T.astype(np.float64), x[i].astype(np.float64))
        left = x[i] - (codes.values[i][:, None] * rows[codes.atoms[i]]).sum(axis=0)
        assert np.linalg.norm(left) == pytest.approx(norm, abs=1e-3)


def test_atoms_that_repeat_add_nothing_and_break_nothing() -> None:
    rows = np.repeat(directions(3, 8, 10), 4, axis=0)
    x = np.random.default_rng(11).standard_normal((20, 8)).astype(np.float32)
    codes = pursue(x, rows, 6).at(6)
    assert np.isfinite(codes.values).all()
    basis = np.linalg.qr(rows[::4].T)[0]
    best = np.square(x @ basis).sum() / np.square(x).sum()
    assert explained(x, codes, rows) == pytest.approx(best, abs=1e-3)


def test_codes_survive_the_sparse_form() -> None:
    codes = AtomCodes(
        np.array([[2, 0], [1, 3]], np.int32), np.array([[1.5, 0], [-2, 4]], np.float32), 5
    )
    again = AtomCodes.of(codes.matrix)
    rows = directions(5, 3, 12)
    np.testing.assert_allclose(again.decode(rows), codes.decode(rows))
    assert codes.sparsity == 1.5
    assert list(itertools.chain(*codes.largest(1).values)) == [1.5, 4]
