"""What can be found at all: the reference values of published settings, and what more knowledge adds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sae_placebo.lab import GeneratorTruth, Sample, ceilings
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.generators.high_expansion import HighExpansionSpec
from sae_placebo.saes import Codes


# Reference values: mean over tokens of the share of a token's features that is found, by pursuit that takes
# the largest signed product (`nonnegative`) and by products. They are of one draw. Variable rates were not
# scaled there, so that how many features are active depends on it: at 18, all four of its values are met.
@pytest.mark.parametrize(
    ("settings", "pursuit", "linear"),
    [
        ({}, 0.695, 0.33),
        ({"sigma": 0.25}, 0.47, 0.37),
        ({"law": "variable", "l0": 18}, 0.78, 0.35),
        ({"law": "variable", "l0": 18, "sigma": 0.25}, 0.55, 0.39),
        ({"l0": 10}, 0.99, 0.50),
        ({"l0": 5}, 1.00, 0.70),
        ({"d_in": 200}, 1.00, 0.50),
        ({"d_in": 256, "n_features": 512, "l0": 5}, 1.00, 0.90),
        ({"d_in": 768, "n_features": 16_384, "l0": 34}, 1.00, 0.64),
    ],
)
def test_the_ceilings_of_published_settings(
    settings: dict[str, Any], pursuit: float, linear: float
) -> None:
    n = 100 if settings.get("d_in") == 768 else 1_000
    draw = HighExpansionSpec(**settings).held_out(n)
    found = ceilings(draw, n_tokens=n, over="tokens")
    assert found.nonnegative == pytest.approx(pursuit, abs=0.05)
    assert found.linear == pytest.approx(linear, abs=0.05)
    assert found.tokens == n


def test_a_token_counts_once_or_for_each_of_its_features() -> None:
    # e1 alone is found; of e1 + e2, which is the diagonal twice over, one of two is
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    codes = Codes(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), torch.ones(3), 3)
    draw = Sample(compose(codes, rows), codes, GeneratorTruth(rows, torch.ones(3) / 3))
    assert ceilings(draw).linear == pytest.approx(2 / 3)
    assert ceilings(draw, over="tokens").linear == pytest.approx(3 / 4)


def test_that_codes_are_positive_decides_between_opposite_features() -> None:
    # e1 and its opposite: nothing but the sign tells which one it is
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    offsets = torch.arange(5)
    codes = Codes(offsets, torch.tensor([0, 1, 1, 2]), torch.ones(4), 3)
    found = ceilings(Sample(compose(codes, rows), codes, GeneratorTruth(rows, torch.ones(3) / 3)))
    assert (found.omp, found.nonnegative, found.linear) == (0.5, 1.0, 1.0)


def test_signed_codes_have_no_non_negative_ceiling() -> None:
    rows = torch.eye(2)
    codes = Codes(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([-1.0, 0.5]), 2)
    truth = GeneratorTruth(rows, torch.ones(2), subspaces=((0, 1),))
    found = ceilings(Sample(compose(codes, rows), codes, truth))
    assert math.isnan(found.nonnegative)
    assert found.omp == 1.0
