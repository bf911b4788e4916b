"""G14: training and test differ in who occurs with whom, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS
from sae_placebo.lab.generators.compositional_shift import CompositionalShiftSpec

N = 20_000
SPECS = [
    CompositionalShiftSpec(n_held_out=2),
    CompositionalShiftSpec(law="independent", d_in=32, n_features=24, l0=3.0, n_held_out=4),
]


@pytest.mark.parametrize("spec", SPECS)
def test_held_out_pairs_occur_at_test_alone(spec: CompositionalShiftSpec) -> None:
    train = spec.draw(N, generator(0, "t")).codes.dense() > 0
    test = spec.shifted().draw(N, generator(0, "t")).codes.dense() > 0
    assert spec.pairs
    for i, j in spec.pairs:
        assert not (train[:, i] & train[:, j]).any()
        assert (test[:, i] & test[:, j]).any()
    if spec.law == "sets":
        held = torch.zeros(N, dtype=torch.bool)
        for i, j in spec.pairs:
            held |= test[:, i] & test[:, j]
        assert held.all()
        assert (train.sum(1) == 2).all()
        assert (test.sum(1) == 2).all()
    else:
        for i, j in spec.pairs:
            assert torch.equal(test[:, i], test[:, j])


@pytest.mark.parametrize("spec", SPECS)
def test_rates_dictionary_and_amplitudes_are_the_same(spec: CompositionalShiftSpec) -> None:
    other = spec.shifted()
    assert other.shift
    assert torch.equal(spec.truth.dictionary, other.truth.dictionary)
    assert torch.equal(spec.truth.rates, other.truth.rates)
    for one in (spec, other):
        codes = one.draw(N, generator(0, "t")).codes
        rates = one.truth.rates
        counts = torch.bincount(codes.latents, minlength=len(rates))
        assert ((counts - N * rates).abs() < 5 * (N * rates).sqrt()).all()
        assert float(codes.values.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(codes.values.min()) > 0
        dense = codes.dense() > 0
        for group in one.truth.exclusive:
            assert int(dense[:, list(group)].sum(1).max()) <= 1
    assert set(spec.pairs) <= set(spec.truth.exclusive)
    assert not set(spec.pairs) & set(other.truth.exclusive)


def test_what_is_not_held_out_stays_independent() -> None:
    spec = SPECS[1]
    for one in (spec, spec.shifted()):
        active = (one.draw(N, generator(0, "t")).codes.dense() > 0).double()
        off = torch.corrcoef(active.t()).fill_diagonal_(0)
        for i, j in spec.pairs:
            off[i, j] = off[j, i] = 0
        assert float(off.abs().max()) < 5 / N**0.5


def test_widths_and_rows() -> None:
    assert CompositionalShiftSpec().d_in == 8
    assert CompositionalShiftSpec(items=6).d_in == 12
    assert CompositionalShiftSpec(law="independent").d_in == 256
    rows = CompositionalShiftSpec().truth.dictionary
    assert torch.allclose(rows @ rows.t(), torch.eye(8), atol=1e-5)


def test_equal_names_give_equal_tokens() -> None:
    for spec in SPECS:
        first, again = (spec.draw(300, generator(1, "t")) for _ in range(2))
        assert torch.equal(first.x, again.x)
    assert GENERATORS["compositional_shift"] is CompositionalShiftSpec


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="leave none to train on"):
        CompositionalShiftSpec(n_held_out=4)
    with pytest.raises(ValueError, match="need 8 features, there are 6"):
        CompositionalShiftSpec(law="independent", n_features=6, l0=1.0, n_held_out=4)
    with pytest.raises(ValueError, match="active with probability"):
        CompositionalShiftSpec(law="independent", n_features=4, l0=2.5, n_held_out=2)
