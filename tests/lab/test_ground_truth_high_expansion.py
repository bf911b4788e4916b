"""G9: rates and amplitudes of many independent features."""

from __future__ import annotations

import math

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS
from sae_placebo.lab.generators.high_expansion import HighExpansionSpec
from sae_placebo.lab.scores.ceilings import ceilings

N = 20_000


@pytest.mark.parametrize("law", ["constant", "variable"])
@pytest.mark.parametrize(("d_in", "l0"), [(100, 20.0), (200, 5.0)])
def test_rates_and_amplitudes(law: str, d_in: int, l0: float) -> None:
    spec = HighExpansionSpec.model_validate({"law": law, "d_in": d_in, "l0": l0})
    truth, codes = spec.truth, spec.draw(N, generator(0, "t")).codes
    assert truth.l0 == pytest.approx(l0, abs=1e-3)
    assert codes.n_tokens == N
    counts = torch.bincount(codes.latents, minlength=3200)
    error = (N * truth.rates * (1 - truth.rates)).sqrt()
    assert ((counts - N * truth.rates).abs() < 5 * error + 4).all()
    spread = (counts - N * truth.rates) / error
    assert float(spread.std()) == pytest.approx(1, abs=0.06)
    logs = codes.values.log()
    assert logs.mean() == pytest.approx(0, abs=5 * 0.5 / math.sqrt(len(logs)))
    assert logs.std() == pytest.approx(0.5, abs=0.01)


def test_rates_of_both_laws_are_as_published() -> None:
    assert torch.allclose(HighExpansionSpec().truth.rates, torch.tensor(0.00625))
    rates = HighExpansionSpec(law="variable").truth.rates
    logs = rates.log10()
    assert logs.max() - logs.min() == pytest.approx(4.3, abs=0.02)
    # without scaling, the sum is 3200 (10^-1.2 - 10^-5.5) / (4.3 ln 10) = 20.4 on average
    assert logs.max() == pytest.approx(-1.2, abs=0.03)
    wider = HighExpansionSpec(law="variable", d_in=400).truth.rates
    assert torch.equal(wider, rates)


def test_what_the_true_dictionary_finds_is_a_limit_at_100_dimensions_alone() -> None:
    found = ceilings(HighExpansionSpec().held_out(200), n_tokens=150)
    # pursuit that does not know that codes are positive, that does, and one linear layer
    assert found.omp == pytest.approx(0.47, abs=0.07)
    assert found.nonnegative == pytest.approx(0.65, abs=0.08)
    assert found.linear == pytest.approx(0.31, abs=0.05)
    wide = ceilings(HighExpansionSpec(d_in=200).held_out(200), n_tokens=100)
    assert wide.omp > 0.98
    assert wide.linear == pytest.approx(0.49, abs=0.05)


def test_equal_names_give_equal_tokens() -> None:
    spec = HighExpansionSpec(law="variable")
    first, again = (spec.draw(300, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert GENERATORS["high_expansion"] is HighExpansionSpec


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="lower l0"):
        HighExpansionSpec(l0=20, n_features=10)
    with pytest.raises(ValueError, match="exchange them"):
        HighExpansionSpec(lowest=-1.0, highest=-2.0)
