"""G7: rates, magnitudes and correlations of the features, by sampling."""

from __future__ import annotations

import math

import pytest
import torch

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, compose
from sae_placebo.lab.generators.sparse_draws import independent_support, orthonormal_rows
from sae_placebo.lab.generators.wrong_l0 import WrongL0Spec

N = 40_000
LARGE = WrongL0Spec()
SMALL = WrongL0Spec(preset="small")


@pytest.mark.parametrize("spec", [LARGE, SMALL])
def test_features_have_the_published_rates_and_magnitudes(spec: WrongL0Spec) -> None:
    drawn = spec.draw(N, generator(0, "t"))
    rates = spec.truth.rates
    counts = torch.bincount(drawn.codes.latents, minlength=len(rates))
    assert ((counts - N * rates).abs() < 5 * (N * rates).sqrt()).all()
    values = drawn.codes.values
    assert values.mean() == pytest.approx(1, abs=0.003)
    assert values.std() == pytest.approx(0.15, abs=0.003)
    rows = spec.truth.dictionary
    assert torch.allclose(rows @ rows.t(), torch.eye(len(rows)), atol=1e-5)
    assert torch.allclose(drawn.x, compose(drawn.codes, rows), atol=1e-5)


def test_presets_have_their_width_and_l0() -> None:
    assert (LARGE.d_in, SMALL.d_in) == (100, 20)
    # sum over i < 50 of 0.345 (49 - i) / 50 + 0.05
    assert LARGE.truth.l0 == pytest.approx(0.345 * 24.5 + 2.5, abs=1e-4)
    assert SMALL.truth.l0 == pytest.approx(2, abs=1e-5)
    assert LARGE.truth.rates[0] == pytest.approx(0.345 * 49 / 50 + 0.05, abs=1e-6)


@pytest.mark.parametrize("correlation", [0.4, -0.4])
def test_the_small_preset_correlates_feature_0_with_the_others_alone(correlation: float) -> None:
    spec = WrongL0Spec(preset="small", correlation=correlation)
    active = (spec.draw(N, generator(0, "t")).codes.dense() > 0).double()
    found = torch.corrcoef(active.t())
    # orthant probability of two Gaussians at the threshold of 0.4, by integration over correlation
    r = torch.linspace(0, correlation, 2001, dtype=torch.float64)
    c = float(torch.special.ndtri(torch.tensor(0.6).double()))
    density = torch.exp(-c * c / (1 + r)) / (2 * math.pi * (1 - r * r).sqrt())
    expected = float(torch.trapezoid(density, r)) / (0.4 * 0.6)
    assert found[0, 1:] == pytest.approx(expected, abs=5 / math.sqrt(N))
    off = found[1:, 1:] - torch.eye(4)
    assert float(off.abs().max()) < 5 / math.sqrt(N)


def test_correlations_of_the_large_preset_show_in_the_draw() -> None:
    c = LARGE.correlations
    assert torch.allclose(c.diagonal(), torch.ones(50))
    assert float(torch.linalg.eigvalsh(c.double()).min()) > 0
    above = torch.triu(torch.ones(50, 50), 1).bool()
    assert 0.4 < float((c[above] > 0).float().mean()) < 0.6
    active = (LARGE.draw(N, generator(0, "t")).codes.dense() > 0).double()
    found = torch.corrcoef(active.t())[above].float()
    clear = c[above].abs() > 0.15
    assert int(clear.sum()) > 100
    assert (found[clear].sign() == c[above][clear].sign()).all()


def test_equal_names_give_equal_tokens_and_other_seeds_other_worlds() -> None:
    first, again = (LARGE.draw(200, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    other = WrongL0Spec(seed=1)
    assert not torch.equal(other.correlations, LARGE.correlations)
    assert not torch.equal(other.truth.dictionary, LARGE.truth.dictionary)
    assert GENERATORS["wrong_l0"] is WrongL0Spec


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="50 orthonormal features do not fit in 40"):
        WrongL0Spec(d_in=40)
    with pytest.raises(ValueError, match=r"less than 0\.5"):
        WrongL0Spec(preset="small", correlation=0.6)
    with pytest.raises(ValueError, match="exchange them"):
        WrongL0Spec(weakest=0.9, strongest=0.3)
    with pytest.raises(SpecError, match="raise d_in"):
        orthonormal_rows(3, 2, generator(0, "rows"))


def test_sparse_draws_are_independent_and_have_their_rates() -> None:
    rates = torch.tensor([0.5, 0.01, 0.2, 0.9])
    tokens, features = independent_support(rates, N, generator(0, "s"))
    active = torch.zeros(N, 4)
    active[tokens, features] = 1
    assert len(tokens) == int(active.sum())
    assert bool((tokens.diff() >= 0).all())
    error = (rates * (1 - rates) / N).sqrt()
    assert ((active.mean(0) - rates).abs() < 5 * error).all()
    off = torch.corrcoef(active.t()) - torch.eye(4)
    assert float(off.abs().max()) < 5 / math.sqrt(N)
    # tokens are alike from first to last
    assert float(active[: N // 2].mean()) == pytest.approx(float(active[N // 2 :].mean()), abs=0.01)
