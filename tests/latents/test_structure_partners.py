"""Partners that were planted are found, and codes that know nothing of each other have almost none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.latents.base import Folds
from sae_placebo.latents.partners.partners import (
    Partners,
    PartnerSpec,
    best_partners,
    has_partner,
    independent_best,
    moved,
    null_has_partner,
    thresholds,
)
from sae_placebo.saes.fast import SWITCH, available

N, D = 6_000, 120


def documents(n: int = N, length: int = 60) -> np.ndarray:
    return np.repeat(np.arange(-(-n // length)), length)[:n].astype(np.int32)


def folds(n: int = N) -> Folds:
    return Folds.of(documents(n), int(documents(n)[-1]) + 1, seed=0, n_groups=5)


def codes(seed: int, n: int = N, d: int = D) -> sp.csr_matrix:
    """Independent latents, their rates spread over a decade and a half."""
    random = np.random.default_rng(seed)
    rates = np.geomspace(0.003, 0.1, d)
    active = random.random((n, d)) < rates
    dense = np.where(active, random.gamma(2.0, 1.0, (n, d)), 0).astype(np.float32)
    return sp.csr_matrix(dense)


def changed(a: sp.csr_matrix, keep: float, seed: int = 5) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return a permuted copy with noise, a part of the firings dropped; and where each latent went."""
    random = np.random.default_rng(seed)
    to = random.permutation(a.shape[1])
    out = a.tocoo()
    kept = random.random(out.nnz) < keep
    value = (out.data * random.uniform(0.7, 1.3, out.nnz))[kept].astype(np.float32)
    return sp.csr_matrix((value, (out.row[kept], to[out.col[kept]])), shape=a.shape), to


@pytest.fixture(params=["compiled", "scipy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(SWITCH, "1" if request.param == "compiled" else "0")
    if request.param == "compiled" and not available():
        pytest.skip("numba is not installed")
    return str(request.param)


def test_planted_partners_are_found(path: str) -> None:
    a = codes(0)
    b, to = changed(a, keep=0.9)
    found = best_partners(a, b, documents(), folds())
    assert (found.partner == to).all()
    assert has_partner(found)[:, 0].mean() == 1
    assert np.nanmean(null_has_partner(found)) < 0.03
    assert found.correlation.shape == (D, 6)
    same = best_partners(a, a, documents(), folds())
    assert (same.partner == np.arange(D)).all()
    assert np.allclose(same.correlation, 1)
    assert np.allclose(same.f1, 1)
    assert np.allclose(same.jaccard, 1)


def test_correlations_are_numpys(path: str) -> None:
    a, b = codes(1), codes(2)
    found = best_partners(a, b, documents(), folds())
    one, other = a.toarray().astype(float), b.toarray().astype(float)
    every = np.corrcoef(one.T, other.T)[:D, D:]
    assert (found.partner == every.argmax(axis=1)).all()
    assert np.allclose(found.correlation[:, 0], every.max(axis=1), atol=1e-10)
    weights = folds().weights[documents()]
    for i in (0, 50, D - 1):
        x, y = one[:, i], other[:, found.partner[i]]
        for fold in (1, 4):
            kept = weights[:, fold] > 0
            expected = np.corrcoef(x[kept], y[kept])[0, 1]
            assert found.correlation[i, fold] == pytest.approx(expected, abs=1e-10)
        both, either = np.sum((x > 0) & (y > 0)), np.sum((x > 0) | (y > 0))
        assert found.jaccard[i, 0] == pytest.approx(both / either)
        p, q = np.mean(x > 0), np.mean(y > 0)
        assert found.f1[i, 0] == pytest.approx(2 * both / N / (p + q))
        assert found.f1_null[i] == pytest.approx(2 * p * q / (p + q))


def test_the_f1_null_is_reached_by_independent_firing() -> None:
    random = np.random.default_rng(3)
    dense = (random.random((60_000, 2)) < [0.2, 0.1]).astype(np.float32)
    a, b = sp.csr_matrix(dense[:, :1]), sp.csr_matrix(dense[:, 1:])
    found = best_partners(a, b, documents(60_000), folds(60_000))
    assert found.f1_null[0] == pytest.approx(2 * 0.2 * 0.1 / 0.3, abs=0.003)
    assert found.f1[0, 0] == pytest.approx(found.f1_null[0], abs=0.01)


@pytest.mark.skipif(not available(), reason="numba is not installed")
def test_both_paths_and_any_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    a = codes(6)
    b = changed(a, keep=0.5)[0] + codes(7)
    runs = [best_partners(a, b, documents(), folds(), threads=n) for n in (1, 3)]
    monkeypatch.setattr("sae_placebo.latents.partners.products._DENSE", 0)
    runs.append(best_partners(a.tocsc(), b, documents(), folds()))
    monkeypatch.setenv(SWITCH, "0")
    runs.append(best_partners(a, b, documents(), folds()))
    monkeypatch.setattr("sae_placebo.latents.partners.products._BLOCK_NUMBERS", 1000)
    runs.append(best_partners(a, b, documents(), folds()))
    for other in runs[1:]:
        for name in ("partner", "correlation", "shifted", "f1", "jaccard", "by_rate"):
            assert np.array_equal(getattr(runs[0], name), getattr(other, name), equal_nan=True)


def test_independent_codes_have_almost_no_partner() -> None:
    found = best_partners(codes(8), codes(9), documents(), folds())
    assert np.nanmean(has_partner(found)[:, 0]) == 0
    # the null is what it claims to be: the same distribution as without any movement
    least = np.quantile(found.shifted, 0.95)
    assert np.mean(found.correlation[:, 0] > least) < 0.12
    assert np.median(found.correlation[:, 0]) == pytest.approx(np.median(found.shifted), abs=0.01)


def test_the_nulls_quantile_counts_where_it_is_above_the_threshold() -> None:
    found = best_partners(codes(8), codes(9), documents(), folds())
    spec = PartnerSpec(threshold=0.01, strata=3, latents_per_stratum=20)
    least = thresholds(found, spec)
    assert least.min() > 0.01
    assert least[:20].mean() != least[-20:].mean(), "by firing rate"
    assert np.mean(null_has_partner(found, spec)) == pytest.approx(0.05, abs=0.03)
    assert np.mean(has_partner(found, spec)[:, 0]) < 0.15


def test_expected_best_of_independent_firing() -> None:
    random = np.random.default_rng(4)
    n, rates = 20_000, np.geomspace(0.002, 0.2, 80)
    best = []
    for _ in range(12):
        x = (random.random((n, 80)) < rates).astype(np.float32)
        y = (random.random((n, 80)) < rates).astype(np.float32)
        best.append(np.corrcoef(x.T, y.T)[:80, 80:].max(axis=1))
    expected = independent_best((n * rates).astype(np.int64), n * rates, n)
    assert np.abs(np.mean(best, axis=0) - expected).mean() < 0.002


def test_movement_keeps_documents_and_rates() -> None:
    owners = documents(600)
    place = moved(owners, "within_documents", 0)
    assert (owners[place] == owners).all()
    assert (place != np.arange(600)).all()
    assert (np.sort(place) == np.arange(600)).all()
    stream = moved(owners, "stream", 0)
    assert (owners[stream] != owners).all()
    assert (np.sort(stream) == np.arange(600)).all()
    assert (moved(owners, "stream", 0) == stream).all()
    assert (moved(owners, "stream", 1) != stream).any()
    with pytest.raises(NotEstimable, match="cannot be moved past it"):
        moved(np.zeros(50, np.int32), "stream", 0)
    with pytest.raises(NotEstimable, match="alone in their document"):
        moved(np.arange(50), "within_documents", 0)


def test_silent_latents_have_no_partner(path: str) -> None:
    a, b = codes(0).tolil(), codes(0).tolil()
    a[:, 3] = 0
    b[:, 5] = 0
    found = best_partners(a.tocsr(), b.tocsr(), documents(), folds())
    assert found.partner[3] == -1
    assert np.isnan(found.correlation[3]).all()
    assert np.isnan([found.shifted[3], found.f1_null[3], found.by_rate[3]]).all()
    assert np.isnan(has_partner(found)[3]).all()
    assert 5 not in found.partner
    assert found.n_active[3] == 0
    nothing = sp.csr_matrix((N, D), dtype=np.float32)
    none = best_partners(codes(0), nothing, documents(), folds())
    assert (none.partner == -1).all()
    with pytest.raises(NotEstimable):
        has_partner(none)


def test_what_cannot_be_moved_has_no_null() -> None:
    a = codes(0, n=500)
    alone = Folds.of(np.arange(500), 500, seed=0, n_groups=5)
    found: Partners = best_partners(a, a, np.arange(500), alone)
    assert np.isnan(found.shifted).all()
    assert "alone in their document" in str(found.reason)
    assert np.nanmin(found.correlation[:, 0]) > 0.99
    with pytest.raises(NotEstimable, match="alone in their document"):
        thresholds(found)
    with pytest.raises(SpecError, match="cannot be paired"):
        best_partners(a, codes(0), documents(), folds())
