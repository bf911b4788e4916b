"""What can be found at all: the reference values of published settings, and what more knowledge adds."""

from __future__ import annotations

import math

import pytest
import torch

from sae_placebo.ground_truth import Draw, Truth, ceilings
from sae_placebo.ground_truth.base import compose, unit_rows
from sae_placebo.saes import Codes
from sae_placebo.spec import generator

TOKENS = 150


def lognormal(d_in: int, n: int, l0: float, sigma: float) -> Draw:
    """Return tokens of independent features, equally frequent, with log-normal amplitudes."""
    random = generator(0, "lognormal", d_in, n)
    rows = unit_rows(n, d_in, random)
    active = torch.rand(TOKENS, n, generator=random) < l0 / n
    offsets = torch.zeros(TOKENS + 1, dtype=torch.int64)
    torch.cumsum(active.sum(dim=1), dim=0, out=offsets[1:])
    latents = active.nonzero()[:, 1]
    codes = Codes(
        offsets, latents, torch.exp(sigma * torch.randn(len(latents), generator=random)), n
    )
    return Draw(compose(codes, rows), codes, Truth(rows, torch.full((n,), l0 / n)))


@pytest.mark.parametrize(
    ("d_in", "n", "l0", "sigma", "omp", "linear"),
    [
        (100, 3200, 20, 0.5, (0.67, 0.72), 0.33),
        (100, 3200, 20, 0.25, (0.47, 0.47), 0.37),
        (200, 3200, 20, 0.5, (1.00, 1.00), 0.50),
        (256, 512, 5, 0.5, (1.00, 1.00), 0.90),
    ],
)
def test_the_ceilings_of_published_settings(
    d_in: int, n: int, l0: float, sigma: float, omp: tuple[float, float], linear: float
) -> None:
    found = ceilings(lognormal(d_in, n, l0, sigma), n_tokens=TOKENS)
    assert omp[0] - 0.05 <= found.omp <= omp[1] + 0.05
    assert found.linear == pytest.approx(linear, abs=0.05)
    # knowing that codes are positive does not hurt
    assert found.nonnegative >= found.omp - 0.01
    assert found.tokens == TOKENS


def test_that_codes_are_positive_decides_between_opposite_features() -> None:
    # e1 and its opposite: nothing but the sign tells which one it is
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    offsets = torch.arange(5)
    codes = Codes(offsets, torch.tensor([0, 1, 1, 2]), torch.ones(4), 3)
    found = ceilings(Draw(compose(codes, rows), codes, Truth(rows, torch.ones(3) / 3)))
    assert (found.omp, found.nonnegative, found.linear) == (0.5, 1.0, 1.0)


def test_signed_codes_have_no_non_negative_ceiling() -> None:
    rows = torch.eye(2)
    codes = Codes(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([-1.0, 0.5]), 2)
    truth = Truth(rows, torch.ones(2), subspaces=((0, 1),))
    found = ceilings(Draw(compose(codes, rows), codes, truth))
    assert math.isnan(found.nonnegative)
    assert found.omp == 1.0
